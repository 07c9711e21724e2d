"""What passfx makes of a network: right, refused in one sentence, or wrong."""

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from passfx.errors import PassfxError, VerificationError, named_line
from passfx.jobs.optimize import Optimized, capture_source, rewritten
from passfx.pipeline import Plan
from passfx.runtime.reference import open_session
from passfx.source.spec import SourceSpec
from tests.fuzz.network import Network, tensors_of

SIZES = 5
# By the narrowest floating dtype of a network: relative to the output, and beside that absolute,
# for outputs that cancel (no value of a network is larger than a few hundred).
_TOLERANCES = {torch.float64: (1e-9, 1e-11), torch.float32: (1e-3, 1e-4)}
_COARSE = (5e-2, 5e-2)

Run = Callable[[tuple[Tensor, ...]], Any]


@dataclass(frozen=True)
class Outcome:
    """What came of a network.

    Attributes:
        kind: "fine", "refused" (a sentence said why), "unproven" (the final proof said no), or a
            failure: "mismatch" or "error" (anything but a sentence).
        why: the reason, empty where it is fine.
        undone: the reasons of rewrites whose certificate failed.
        rewrites: how many were committed, with and without certificates.
        sizes: how many other sizes ran right; `kept_out`: how many were refused by a rule.
    """

    kind: str
    why: str = ""
    undone: tuple[str, ...] = ()
    rewrites: tuple[int, ...] = ()
    sizes: int = 0
    kept_out: int = 0

    @property
    def failed(self) -> bool:
        """Whether it is a failure of passfx."""
        return self.kind in ("mismatch", "error")


def check(network: Network) -> Outcome:
    """Rewrite a network with certificates and without, and compare both with the model itself."""
    captured = _attempt(lambda: _captured(network))
    if isinstance(captured, Outcome):
        return captured
    both = []
    for verify in (True, False):
        found = _attempt(lambda: rewritten(captured, Plan(verify=verify)))  # noqa: B023
        if isinstance(found, Outcome):
            return replace(found, why=f"{found.why} (verify={verify})")
        both.append(found)
    passes = both[0].report.passes
    undone = tuple(
        f"{item.name}: {refusal.reason}" for item in passes for refusal in item.refusals
        if refusal.undone or "undone" in refusal.reason
    )  # fmt: skip
    rewrites = tuple(sum(len(item.rewrites) for item in one.report.passes) for one in both)
    runs = {
        "with certificates": lambda given: both[0].module(*given),
        "without certificates": lambda given: both[1].module(*given),
    }
    outcome = _compare(network, captured, runs)
    return replace(outcome, undone=undone, rewrites=rewrites)


def check_file(network: Network) -> Outcome:
    """Convert the network in float32, and compare what ONNX Runtime computes with the model."""
    network = network.single()
    captured = _attempt(lambda: _captured(network))
    if isinstance(captured, Outcome):
        return captured
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"

        def convert() -> Any:
            found = rewritten(captured, Plan())
            found.export(path)
            return found, open_session(path)

        made = _attempt(convert)
        if isinstance(made, Outcome):
            return made
        found, session = made
        tree = pytree.tree_structure(found.module(*network.example()))

        def run(given: tuple[Tensor, ...]) -> Any:
            named = zip(captured.captured.placeholders, given, strict=True)
            names = set(captured.captured.input_names)
            read = [item for node, item in named if node.name in names]
            return pytree.tree_unflatten(session.run(read), tree)

        return _compare(network, captured, {"in the file": run})


def _attempt(work: Callable[[], Any]) -> Any:
    """What comes of it, or the outcome that its error is."""
    try:
        return work()
    except VerificationError as error:
        return Outcome("unproven", str(error))
    except PassfxError as error:
        return Outcome("refused", str(error))
    except Exception as error:
        return Outcome("error", named_line(error))


def _captured(network: Network) -> Optimized:
    dim = Dim.DYNAMIC if network.seed % 2 else Dim.AUTO
    dynamic = None
    if network.is_dynamic:
        dynamic = tuple(dict.fromkeys(item.dynamic, dim) or None for item in network.inputs)
    return capture_source(SourceSpec(network.module(), network.example(), dynamic_shapes=dynamic))


def _compare(network: Network, captured: Optimized, runs: dict[str, Run]) -> Outcome:
    """Run everything on the example, on other values, and at other sizes where they may vary."""
    model, rng = network.module(), random.Random(network.seed)
    dtypes = {
        value.dtype
        for node in captured.captured.graph_module.graph.nodes
        for value in tensors_of(node.meta.get("val"))
        if value.is_floating_point()
    }
    narrowest = min(dtypes, key=lambda dtype: torch.finfo(dtype).bits, default=torch.float64)
    tolerance = _TOLERANCES.get(narrowest, _COARSE)
    right = kept_out = 0
    shapes: list[Sequence[Sequence[int]]] = [network.shapes] * 3
    shapes += [_resized(network, rng) for _ in range(SIZES if network.is_dynamic else 0)]
    for turn, given in enumerate(shapes):
        seed, resized = network.seed + turn, turn > 2 and given != network.shapes
        expected = _eager(model, network.example(given, seed))
        if expected is None:
            continue  # sizes that the model itself does not take
        for name, run in runs.items():
            at = f" {name}, at {given}, seed {seed}"
            try:
                with torch.no_grad():
                    result = run(tuple(item.clone() for item in network.example(given, seed)))
            except (ValueError, PassfxError) as error:
                if not resized:
                    return Outcome("error", f"{named_line(error)}{at}")
                kept_out += 1
                continue
            except Exception as error:
                return Outcome("error", f"{named_line(error)}{at}")
            if difference := _difference(result, expected, tolerance):
                return Outcome("mismatch", difference + at)
            right += resized
    return Outcome("fine", sizes=right, kept_out=kept_out)


def _eager(model: nn.Module, given: tuple[Tensor, ...]) -> Any:
    try:
        with torch.no_grad():
            return model(*(item.clone() for item in given))
    except Exception:
        return None


def _resized(network: Network, rng: random.Random) -> list[list[int]]:
    """Other sizes of the dynamic axes; those that are equal in the example stay equal."""
    sizes: dict[int, int] = {}
    shapes = network.shapes
    for item, shape in zip(network.inputs, shapes, strict=True):
        for axis in item.dynamic:
            size = shape[axis]
            near = rng.choice((1, 2, size - 1, size + 1, 2 * size, rng.randint(1, 2 * size + 3)))
            shape[axis] = sizes.setdefault(size, max(1, near))
    return shapes


def _difference(result: Any, expected: Any, tolerance: tuple[float, float]) -> str | None:
    """How a result differs from what was expected; None where it does not."""
    if pytree.tree_structure(result) != pytree.tree_structure(expected):
        return "another structure"
    for number, (a, b) in enumerate(zip(tensors_of(result), tensors_of(expected), strict=True)):
        if a.dtype != b.dtype or a.shape != b.shape:
            return f"output {number} is {a.dtype} {list(a.shape)}, not {b.dtype} {list(b.shape)}"
        if not b.dtype.is_floating_point:
            if not torch.equal(a, b):
                return f"output {number} has other integers"
            continue
        a, b = a.double(), b.double()
        finite = b.isfinite()
        if not torch.equal(a.isfinite(), finite) or not torch.equal(
            a[~finite].nan_to_num(), b[~finite].nan_to_num()
        ):
            return f"output {number} is not finite at the same places"
        scale = float(b[finite].abs().max()) if finite.any() else 0.0
        error = float((a - b)[finite].abs().max()) if finite.any() else 0.0
        if error > tolerance[0] * scale + tolerance[1]:
            return f"output {number} differs by {error:.1e}, its largest value is {scale:.1e}"
    return None
