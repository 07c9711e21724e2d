"""A network as data: values made one after the other, each by one Python expression.

Nothing here draws or judges; `Network.source()` is the whole network as a Python file, and what is
run is that file, so that what is printed is what failed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

Settings = tuple[tuple[str, Any], ...]
Shapes = Sequence[Sequence[int]]

_PRELUDE = '''\
import torch
from torch import nn
from torch.nn import functional as F


def holed(module):
    """A layer with zeros along the first tap of every axis, and in its first filter."""
    for axis in range(2, module.weight.ndim):
        module.weight.data.select(axis, 0).zero_()
    module.weight.data[0] = 0
    return module


def randomized(module):
    """Norms with random statistics and affine parameters; a fresh one proves nothing."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        owner = module.get_submodule(name.rpartition(".")[0])
        if "Norm" in type(owner).__name__ and tensor.is_floating_point():
            tensor.data.uniform_(0.5, 2.0)
            if name.endswith(("mean", "bias")):
                tensor.data.sub_(1.2)
    return module
'''


@dataclass(frozen=True)
class Part:
    """A module or tensor that the network owns: "nn.Conv2d(3, 4, 3{settings})"."""

    text: str
    settings: Settings = ()


@dataclass(frozen=True)
class Step:
    """One value: an expression over earlier ones ({0}, {1}, …), of a part ({part}), or neither.

    `settings` are its keyword arguments, which a minimiser may leave out.
    """

    text: str
    reads: tuple[int, ...] = ()
    settings: Settings = ()
    part: int | None = None

    @property
    def writes(self) -> bool:
        """Whether it changes a tensor in place."""
        return "_(" in self.text


@dataclass(frozen=True)
class Input:
    """A tensor that is drawn: its kind, its sizes, and which of them may vary."""

    kind: str
    shape: tuple[int, ...]
    dynamic: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """What makes it."""
        return f"{_KINDS[self.kind]}".format(list(self.shape))


_KINDS = {
    "float": "torch.randn({}, dtype=torch.float64)",
    "single": "torch.randn({}, dtype=torch.float32)",
    "tokens": "torch.randint(0, 7, {})",
    "mask": "torch.rand({}) < 0.6",
}


@dataclass(frozen=True)
class Network:
    """Inputs are the values 0, 1, …; then comes one value a step.

    `form` is how the results are returned: "single", "tuple" or "dict".
    """

    inputs: tuple[Input, ...]
    parts: tuple[Part, ...]
    steps: tuple[Step, ...]
    results: tuple[int, ...]
    form: str
    seed: int
    dtype: str = "float64"

    @property
    def is_dynamic(self) -> bool:
        """Whether any size may vary."""
        return any(item.dynamic for item in self.inputs)

    def source(self) -> str:
        """The network as a Python file: `Net`, `build()` and `inputs()`."""
        given = ", ".join(f"v{number}" for number in range(len(self.inputs)))
        parts = [f"self.part{i} = {filled(item)}" for i, item in enumerate(self.parts)]
        steps = []
        for number, step in enumerate(self.steps, len(self.inputs)):
            reads = [f"v{read}" for read in step.reads]
            steps.append(f"v{number} = {filled(step, *reads, part=f'self.part{step.part}')}")
        lines = [
            *(_PRELUDE, "", "class Net(nn.Module):", "    def __init__(self):"),
            "        super().__init__()",
            *(f"        {line}" for line in parts),
            *("", f"    def forward(self, {given}):"),
            *(f"        {line}" for line in steps),
            f"        return {self._returned()}",
            *("", "", "def build():", f"    torch.manual_seed({self.seed})"),
            f"    return randomized(Net().to(torch.{self.dtype}).eval())",
            *("", "", f"def inputs(shapes, seed={self.seed}):", "    torch.manual_seed(seed)"),
            f"    return ({''.join(self._drawn(i) for i in range(len(self.inputs)))})",
            *("", "", f"SHAPES = {[list(item.shape) for item in self.inputs]}"),
            f"DYNAMIC = {[list(item.dynamic) for item in self.inputs]}",
            "",
        ]
        return "\n".join(lines)

    def _drawn(self, number: int) -> str:
        return f"{_KINDS[self.inputs[number].kind].format(f'shapes[{number}]')}, "

    def _returned(self) -> str:
        names = [f"v{number}" for number in self.results]
        if self.form == "single" and len(names) == 1:
            return names[0]
        if self.form == "dict":
            return f"dict({', '.join(f'out{i}={name}' for i, name in enumerate(names))})"
        return f"({', '.join(names)},)"

    def namespace(self) -> dict[str, Any]:
        """The source, executed."""
        names: dict[str, Any] = {}
        exec(compile(self.source(), f"<network {self.seed}>", "exec"), names)
        return names

    def module(self) -> nn.Module:
        """The network in float64 and eval mode, with its own random weights."""
        module: nn.Module = self.namespace()["build"]()
        return module

    def example(self, shapes: Shapes = (), seed: int | None = None) -> tuple[Tensor, ...]:
        """Its inputs, of these shapes or its own, from this seed or its own."""
        seed = self.seed if seed is None else seed
        given: tuple[Tensor, ...] = self.namespace()["inputs"](shapes or self.shapes, seed)
        return given

    @property
    def shapes(self) -> list[list[int]]:
        """The sizes of the inputs."""
        return [list(item.shape) for item in self.inputs]

    def single(self) -> "Network":
        """The same network in float32."""

        def narrow(text: str) -> str:
            return text.replace("torch.float64", "torch.float32").replace("double()", "float()")

        kinds = {"float": "single"}
        return replace(
            self,
            inputs=tuple(
                replace(item, kind=kinds.get(item.kind, item.kind)) for item in self.inputs
            ),
            steps=tuple(replace(step, text=narrow(step.text)) for step in self.steps),
            dtype="float32",
        )

    def pruned(self) -> "Network":
        """Without the inputs, parts and steps that no result needs.

        A step that writes in place is needed by whoever reads what it wrote to, so those that
        write stay.
        """
        first = len(self.inputs)
        needed = set(self.results)
        for number in reversed(range(first, first + len(self.steps))):
            step = self.steps[number - first]
            if number in needed or step.writes:
                needed |= {number, *step.reads}
        place = {old: new for new, old in enumerate(sorted(needed))}
        kept = [n for n in sorted(needed) if n >= first]
        used = sorted({p for n in kept if (p := self.steps[n - first].part) is not None})
        steps = tuple(
            replace(
                step,
                reads=tuple(place[read] for read in step.reads),
                part=None if step.part is None else used.index(step.part),
            )
            for step in (self.steps[n - first] for n in kept)
        )
        return replace(
            self,
            inputs=tuple(item for n, item in enumerate(self.inputs) if n in needed),
            parts=tuple(self.parts[number] for number in used),
            steps=steps,
            results=tuple(place[number] for number in self.results),
        )


def filled(item: Part | Step, *reads: str, part: str = "") -> str:
    """The expression, with its settings and the names of what it reads."""
    settings = "".join(f", {name}={given!r}" for name, given in item.settings)
    text = item.text.replace("{settings}", settings)
    return text.format(*reads, part=part).replace("(, ", "(")


def prelude() -> dict[str, Any]:
    """The names that an expression may use."""
    names: dict[str, Any] = {}
    exec(_PRELUDE, names)
    return names


def tensors_of(result: Any) -> list[Tensor]:
    """The tensors of a result, flat."""
    return [item for item in torch.utils._pytree.tree_leaves(result) if isinstance(item, Tensor)]
