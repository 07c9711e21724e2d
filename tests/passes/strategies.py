"""Shared by the tests of the passes: models written in one line, and random convolutions."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule

from passfx.graph.query import is_constant

CONVS = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.ConvTranspose1d: nn.BatchNorm1d,
    nn.ConvTranspose2d: nn.BatchNorm2d,
    nn.ConvTranspose3d: nn.BatchNorm3d,
}


class Model(nn.Module):
    """`Model(lambda m, x: m.norm(m.conv(x)), conv=..., norm=...)`; tensors become buffers."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


class Forms(nn.Module):
    """Many functions of the same inputs in one model, so that one capture serves many tests.

    The result is a dict: the name of a form → its value.
    """

    def __init__(self, forms: Mapping[str, Callable[..., Any]], parts: nn.Module) -> None:
        super().__init__()
        self.forms = forms
        self.parts = parts

    def forward(self, *inputs: Any) -> dict[str, Any]:
        return {name: form(self.parts, *inputs) for name, form in self.forms.items()}


def results(graph_module: GraphModule) -> tuple[Any, ...]:
    """The nodes that a graph returns."""
    return tuple(graph_module.graph.output_node().args[0])


def run(model: nn.Module, *inputs: Any) -> Any:
    """The result of a captured graph or of a model in eval mode, in its own dtypes."""
    with torch.no_grad():
        return model.eval()(*inputs)


def constants(graph_module: GraphModule) -> dict[str, Tensor]:
    """The constants that a graph reads, by their dotted names."""
    return {
        str(node.target): graph_module.get_buffer(node.target)
        if node.target in dict(graph_module.named_buffers())
        else graph_module.get_parameter(node.target)
        for node in graph_module.graph.nodes
        if is_constant(node)
    }


@st.composite
def convolutions(draw: st.DrawFn, dims: tuple[int, ...] = (1, 2, 3)) -> tuple[nn.Module, Tensor]:
    """A float64 convolution, transposed or not, and an input just large enough or larger."""
    kind = draw(st.sampled_from([item for item in CONVS if int(item.__name__[-2]) in dims]))
    rank = int(kind.__name__[-2])
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    groups = draw(st.integers(1, 3))
    kernel, dilation, stride = each(1, 3), each(1, 2), each(1, 3)
    reach = tuple(step * (tap - 1) + 1 for step, tap in zip(dilation, kernel, strict=True))
    padding: Any = tuple(draw(st.integers(0, tap)) for tap in reach)
    options: dict[str, Any] = {"bias": draw(st.booleans()), "groups": groups}
    if "Transpose" in kind.__name__:
        options["output_padding"] = tuple(
            draw(st.integers(0, max(a, b) - 1)) for a, b in zip(stride, dilation, strict=True)
        )
        padding = tuple(draw(st.integers(0, (tap - 1) // 2)) for tap in reach)
    elif draw(st.booleans()) and set(stride) == {1}:
        padding = draw(st.sampled_from(["same", "valid"]))
    conv = kind(
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        **options,
    ).double()
    size = tuple(tap + draw(st.integers(0, 4)) for tap in reach)
    batch = draw(st.integers(1, 3))
    return conv, torch.randn(batch, conv.in_channels, *size, dtype=torch.float64)
