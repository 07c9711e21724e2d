"""Random inputs for an ONNX file."""

from collections.abc import Sequence

import torch
from torch import Tensor

from passfx.errors import SourceError
from passfx.graph.query import dtype_name
from passfx.runtime.session import Port
from passfx.source.inputs import InputShape, draw, parse_input_shape


def draw_inputs(
    ports: Sequence[Port],
    batches: Sequence[int] | None = None,
    shapes: Sequence[str] = (),
    seed: int = 0,
) -> dict[int, list[Tensor]]:
    """Inputs of a file for each batch size, as `passfx.source.inputs.draw` draws them.

    Args:
        ports: the file's inputs.
        batches: sizes of their first axes; by default the file's own, or 1 where it varies.
        shapes: "[NAME:]1x3x224x224[:DTYPE]" for inputs of which more than the first axis varies;
            the first size gives way to the batch size.

    Raises:
        SourceError: a shape, dtype or batch size that the file does not take, or one that is
            missing.
    """
    given = _by_name(ports, [parse_input_shape(text) for text in shapes])
    if batches is None:
        fixed = {port.shape[0] for port in ports if port.shape and isinstance(port.shape[0], int)}
        batches = [min(fixed)] if fixed else [1]
    generator = torch.Generator().manual_seed(seed)
    return {
        batch: [
            draw(_sizes(port, given.get(port.name), batch), port.dtype, generator) for port in ports
        ]
        for batch in batches
    }


def _by_name(ports: Sequence[Port], shapes: Sequence[InputShape]) -> dict[str, tuple[int, ...]]:
    dtypes = {port.name: port.dtype for port in ports}
    given: dict[str, tuple[int, ...]] = {}
    for shape in shapes:
        name = shape.name or next((name for name in dtypes if name not in given), "")
        if name not in dtypes:
            raise SourceError(
                f"there is no input for the shape {shape.name or 'x'.join(map(str, shape.sizes))}; "
                f"the inputs are {', '.join(map(str, ports))}"
            )
        if shape.dtype not in (None, dtypes[name]):
            wanted, has = dtype_name(dtypes[name]), dtype_name(shape.dtype)
            raise SourceError(f"the input {name} of the file is {wanted}, not {has}")
        given[name] = shape.sizes
    return given


def _sizes(port: Port, given: tuple[int, ...] | None, batch: int) -> tuple[int, ...]:
    if given is not None and len(given) != len(port.shape):
        raise SourceError(f"{port}, which has not {len(given)} axes")
    sizes = []
    for axis, wanted in enumerate(port.shape):
        size = batch if axis == 0 else given[axis] if given else wanted
        if not isinstance(size, int):
            raise SourceError(
                f"{port}: say how large axis {axis} is, with --input-shape {port.name}:…"
            )
        if axis and isinstance(wanted, int) and size != wanted:
            raise SourceError(f"{port}: axis {axis} cannot be {size}")
        sizes.append(size)
    if port.shape and isinstance(port.shape[0], int) and port.shape[0] != batch:
        raise SourceError(
            f"{port}: its batch size is {port.shape[0]}, not {batch}; "
            "convert with --dynamic-batch for another one"
        )
    return tuple(sizes)
