"""What was found and done, as frozen values: the parts of a report that every room may make."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Rewrite:
    """One committed edit: where, what, the nodes it removed and added, its certificate's error."""

    at: str
    module: str
    what: str
    removed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    error: float | None = None


@dataclass(frozen=True)
class Refusal:
    """The right shape, but unsafe: where, and why.

    `undone`: whether it was rewritten first, and the certificate failed.
    """

    at: str
    module: str
    reason: str
    undone: bool = False


@dataclass(frozen=True)
class PassReport:
    """What one pass did, over all rounds."""

    name: str
    seconds: float = 0.0
    rolled_back: bool = False
    rewrites: tuple[Rewrite, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    def then(self, later: "PassReport") -> "PassReport":
        """Both rounds of a pass as one; a refusal that repeats is told once."""
        new = (item for item in later.refusals if item not in self.refusals)
        return replace(
            later,
            seconds=self.seconds + later.seconds,
            rolled_back=self.rolled_back or later.rolled_back,
            rewrites=(*self.rewrites, *later.rewrites),
            refusals=(*self.refusals, *new),
        )


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: dtype as torch names it ("float32"), a dynamic size by its name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} ({self.dtype} {'x'.join(map(str, self.shape)) or 'scalar'})"


@dataclass(frozen=True)
class OnnxReport:
    """A file that was written; `bytes` includes external data, `opset` is the standard one's."""

    path: str
    bytes: int
    nodes: int
    ops: dict[str, int]
    opset: int | None = None
