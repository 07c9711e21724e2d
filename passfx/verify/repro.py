"""A rewrite that was undone, as files that show the failure without passfx."""

from collections.abc import Sequence
from itertools import count, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from passfx.capture.region import is_input, region_program
from passfx.files import write_text, writing
from passfx.graph.editor import Certificate, Edit
from passfx.graph.query import value
from passfx.verify.draws import Draw, Layout
from passfx.verify.values import Values, landmarks

_DIFFERENCE = 1e-12

_SCRIPT = """# The pass {name} rewrote {at} ({what}), and passfx undid it: {failure}.
import pathlib, torch

program = torch.export.load(pathlib.Path(__file__).with_suffix(".pt2"))
generator = torch.Generator().manual_seed({seed})
inputs = {inputs}
old, new = program.module()(*inputs)  # the results before and after, in float64
{show}
"""
_SHOW = """for a, b in zip(old, new):
    error = (a - b).abs().max() / a.abs().max() if a.shape == b.shape else float("inf")
    print("before:", a, "after:", b, "relative error:", float(error), sep="\\n")"""
_ALONE = 'print("before:", *old, "after: the new operators do not run", sep="\\n")'


def save_repro(folder: Path, pass_name: str, edit: Edit, certificate: Certificate) -> None:
    """Write `PASS-NODE.pt2`, the region before and after, and `PASS-NODE.py`, which compares them.

    The program gives two lists, the results of the old nodes and of the new ones, of the same
    inputs, in float64. New nodes that do not run are left out of it, and the script says so.

    Raises:
        ExportError: the folder cannot be written to.
    """
    frontier, drawn = edit.frontier, certificate.inputs
    if drawn is None:
        drawn = _captured(edit)
    given = dict(zip(frontier, drawn, strict=True))
    inputs = tuple(item for item in drawn if is_input(item))
    program, runs = region_program(edit, given, inputs)
    path = _free(folder / f"{pass_name}-{edit.match.at.name}")
    with writing(path):
        torch.export.save(program, path.with_suffix(".pt2"))
    seed, written = _redrawn(program, inputs) if runs else (0, _EXAMPLES)
    text = _SCRIPT.format(
        what=edit.match.what, name=pass_name, at=edit.match.at.name, failure=certificate.failure,
        seed=seed, inputs=written, show=_SHOW if runs else _ALONE,
    )  # fmt: skip
    write_text(path.with_suffix(".py"), text)


def _captured(edit: Edit) -> tuple[Any, ...]:
    """Values of the captured sizes."""
    fakes = [value(node) for node in edit.frontier]
    nodes = [*edit.match.nodes, *edit.added]
    drawing = Values(torch.Generator().manual_seed(0), landmarks(nodes), integers=(0, 2))
    sizes = Layout(fakes, False).at(Draw(None, ()))
    return tuple(drawing.draw(fake, sizes) for fake in fakes)


def _free(path: Path) -> Path:
    """A path that no earlier rewrite has taken."""
    names = (path.with_name(f"{path.name}-{number}") if number else path for number in count())
    return next(name for name in names if not name.with_suffix(".py").exists())


_EXAMPLES = "program.example_inputs[0]"


def _redrawn(program: ExportedProgram, inputs: Sequence[Any]) -> tuple[int, str]:
    """A seed and an expression of inputs that show the failure; else those that are saved."""
    if all(isinstance(item, Tensor) and not item.is_complex() for item in inputs):
        compare = program.module()
        for gain, limit, seed in product((1.0, 8.0, 64.0), (2, 99), range(8)):
            generator = torch.Generator().manual_seed(seed)
            old, new = compare(*(_draw(item, gain, limit, generator) for item in inputs))
            if any(_differs(a, b) for a, b in zip(old, new, strict=True)):
                return seed, f"[{', '.join(_expression(item, gain, limit) for item in inputs)}]"
    return 0, _EXAMPLES


def _draw(like: Tensor, gain: float, limit: int, generator: torch.Generator) -> Tensor:
    if like.is_floating_point():
        return gain * torch.randn(like.shape, dtype=like.dtype, generator=generator)
    return torch.randint(limit, like.shape, generator=generator).to(like.dtype)


def _expression(like: Tensor, gain: float, limit: int) -> str:
    """What `_draw` computes, as text."""
    shape, options = list(like.shape), f"dtype={like.dtype}, generator=generator"
    if like.is_floating_point():
        return f"{gain} * torch.randn({shape}, {options})"
    return f"torch.randint({limit}, {shape}, generator=generator).to({like.dtype})"


def _differs(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return True
    return not torch.allclose(b, a, rtol=_DIFFERENCE, atol=_DIFFERENCE)
