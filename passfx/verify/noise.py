"""What rounding may do to the results of a model, by example."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from passfx.graph.evaluate import evaluate, run_flat
from passfx.graph.ops import LAYERS, MATMULS
from passfx.graph.query import is_call, is_constant, tensors, value


def rounded_results(
    graph_module: GraphModule,
    inputs: Iterable[Any],
    generator: torch.Generator,
    half: torch.dtype | None = None,
) -> list[Tensor]:
    """The results of one run in which every operator rounds in its own, random way.

    An implementation of an operator is as good as its dtype allows if it gives the exact result
    for operands that are off in their last place (backward stability; Higham, Accuracy and
    Stability of Numerical Algorithms, 1.5). So each operator gets operands that are off by up to
    one unit in the last place, drawn anew for each. What is exact at these values (it moves data,
    or subtracts a mask of zeros and ones from one) stays exact.

    Args:
        graph_module: a captured graph; it runs in its own dtypes.
        inputs: flat, as `run_flat` takes them.
        half: the dtype whose units float32 operands are off by; by default their own.
    """
    compute = partial(_evaluate_rounding, generator=generator, half=half)
    return tensors(run_flat(graph_module, inputs, double=False, compute=compute))


def computed_in(dtype: torch.dtype, half: torch.dtype | None) -> torch.dtype:
    """The dtype in which a value of the model is computed where float32 is lowered to `half`."""
    return half if half and dtype == torch.float32 else dtype


def _evaluate_rounding(
    nodes: Iterable[Node],
    values: dict[Node, Any],
    *,
    double: bool,
    generator: torch.Generator,
    half: torch.dtype | None,
) -> None:
    """`evaluate`, with operands that are off where an operator rounds."""
    for node in nodes:
        read = {item: values[item] for item in node.all_input_nodes}
        if not is_constant(node) and _rounds(node, dict(read), half):
            move = partial(_moved, generator=generator, half=half)
            read = {item: map_aggregate(given, move) for item, given in read.items()}
        evaluate([node], read, double=double)
        values[node] = read[node]


def _rounds(node: Node, read: dict[Node, Any], half: torch.dtype | None) -> bool:
    """Whether an operator has to round its result for these operands.

    Products do, but for rare ones, and are dear to try. Of float64, which is the reference itself,
    only numbers that are short pass for exact.
    """
    if is_call(node, *LAYERS, *MATMULS):
        return True
    evaluate([node], read)
    fakes, results = (
        tensors(items if isinstance(items, list | tuple) else [items])
        for items in (value(node), read[node])
    )
    for fake, result in zip(fakes, results, strict=True):
        if fake.is_complex():
            return True
        dtype = computed_in(fake.dtype, half)
        short = torch.float32 if dtype == torch.float64 else dtype
        if fake.is_floating_point() and not ((result.to(short) == result) | result.isnan()).all():
            return True
    return False


def _moved(item: Any, generator: torch.Generator, half: torch.dtype | None) -> Any:
    """A tensor off by up to a unit in the last place; zero, infinity and NaN stay."""
    if not isinstance(item, Tensor) or not (item.is_floating_point() or item.is_complex()):
        return item
    limits = torch.finfo(computed_in(item.dtype, half))
    wide = torch.float64 if item.dtype in (torch.float64, torch.complex128) else torch.float32
    errors = torch.empty(item.shape, dtype=wide).uniform_(-1, 1, generator=generator)
    errors = errors.mul_(limits.eps).to(item.device)
    moved = item * (1 + errors)
    if limits.bits == 16:  # where numbers end within what models hold
        moved += errors * limits.smallest_normal * (item != 0)
    return moved.to(item.dtype)
