"""What only moves, scales or shifts: slices stay slices, and shifts go where a border lets them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from passfx.graph.editor import Editor
from passfx.graph.query import operators
from passfx.passes.collapse import Collapse
from passfx.passes.remove_noops import RemoveNoops
from tests.helpers import apply, assert_preserves, assert_same_structure, draws, ops, randomize
from tests.passes.strategies import Model

Function = Callable[..., Any]


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def collapse(function: Function, *x: Tensor, **parts: Any) -> tuple[nn.Module, GraphModule, Editor]:
    model = randomize(Model(function, **parts).double())
    return model, *apply(Collapse(), model, *x)


def kernels(graph: GraphModule) -> list[tuple[int, ...]]:
    """The weights of the convolutions that are left."""
    layers = [node for node in operators(graph) if "conv" in node.name]
    return [tuple(node.args[1].meta["val"].shape) for node in layers]


# ------------------------------------------------------------------------------------------- fires


def normalized(m: Any, x: Tensor) -> Tensor:
    """The preprocessing of torchvision's Inception (`transform_input`), then a layer."""
    given = [x[:, n : n + 1] * (0.2 + n) + (0.3 - n) for n in range(3)]
    return m.layer(torch.cat(given, 1))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(3, 4, 3, stride=2), {"conv2d": 1}),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), {"pad": 1, "conv2d": 1}),
        (nn.Conv2d(3, 4, 3, padding=1), {"add": 1, "conv2d": 1}),
        (nn.ConvTranspose2d(3, 4, 3), {"add": 1, "conv_transpose2d": 1}),
    ],
)
def test_maps_of_channels_one_by_one_go_into_the_layer(layer: Any, expected: Any) -> None:
    x = randn(2, 3, 9, 8)
    model, graph, editor = collapse(normalized, x, layer=layer)
    assert ops(graph) == expected, editor.refusals
    assert_preserves(graph, model, [x])
    assert not Collapse().run(graph).modified


def test_parts_of_a_split_that_are_scaled_and_put_back_are_one_map() -> None:
    def forward(m: Any, grid: Tensor) -> Tensor:
        x, y = grid.split([1, 1], dim=-1)
        return torch.cat([2 * x / 6 - 1, 2 * y / 4 - 1], dim=-1)

    x = randn(4, 7, 5, 2)
    model, graph, _ = collapse(forward, x)
    assert ops(graph) == {"mul": 1, "add": 1}
    assert_preserves(graph, model, [x])
    assert not Collapse().run(graph).modified


@pytest.mark.parametrize("value", [1.0, 2.0])
def test_images_of_bytes_are_shifted_and_the_layer_scales_them(value: float) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.norm(m.layer((x / 255 - m.mean) / m.std))

    x = randn(1, 3, 9, 7)
    parts = {"mean": torch.rand(1, 3, 1, 1), "std": torch.rand(3, 1, 1) + value}
    layer = nn.Conv2d(3, 4, 7, stride=2, padding=3, bias=False)
    model, graph, _ = collapse(forward, x, layer=layer, norm=nn.BatchNorm2d(4), **parts)
    expected = Model(
        lambda m, x: m.layer(x + m.shift),
        layer=nn.Conv2d(3, 4, 7, stride=2, padding=3),
        shift=torch.zeros(3, 1, 1),
    )
    assert_same_structure(graph, expected.double(), x)
    assert_preserves(graph, model, [x])
    assert not Collapse().run(graph).modified


def test_a_shift_is_shared_by_layers_that_are_added() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = x * m.scale + m.shift
        return m.a(y) + m.b(y)

    x = randn(2, 3, 8, 9)
    parts = {"scale": torch.rand(3, 1, 1) + 1, "shift": torch.rand(3, 1, 1)}
    layers = {"a": nn.Conv2d(3, 4, 3, padding=1), "b": nn.Conv2d(3, 4, 5, padding=2)}
    model, graph, _ = collapse(forward, x, **parts, **layers)
    assert ops(graph) == {"add": 1, "conv2d": 1}
    assert_preserves(graph, model, [x])


def test_a_crop_between_layers_is_a_slice_or_less_padding() -> None:
    x = randn(2, 4, 9, 8)

    def padded(m: Any, x: Tensor) -> Tensor:
        return m.norm(m.layer(x)[:, :, 1:-1, 1:-1])

    layer = nn.Conv2d(4, 4, 3, padding=1)
    model, graph, _ = collapse(padded, x, layer=layer, norm=nn.BatchNorm2d(4))
    assert ops(graph) == {"conv2d": 1}
    assert kernels(graph) == [(4, 4, 3, 3)]
    assert_preserves(graph, model, [x])

    def cropped(m: Any, x: Tensor) -> Tensor:
        return m.norm(m.layer(x[:, :, 2:] * 2))

    model, graph, _ = collapse(cropped, x, layer=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4))
    assert ops(graph) == {"slice": 1, "conv2d": 1}
    assert kernels(graph) == [(4, 4, 3, 3)]
    assert_preserves(graph, model, [x])


@pytest.mark.parametrize("sizes", [(8, 6), (9, 7), (8, 7)])
def test_a_stride_takes_what_it_leaves_out_by_itself(sizes: tuple[int, int]) -> None:
    x = randn(1, 4, *sizes)
    layer = nn.Conv2d(4, 6, 1)
    model, graph, _ = collapse(lambda m, x: m.layer(x[:, :, ::2, ::2]), x, layer=layer)
    assert_same_structure(
        graph,
        Model(lambda m, x: m.layer(x), layer=nn.Conv2d(4, 6, 1, stride=2)).double(),
        x,
    )
    assert_preserves(graph, model, [x])


# ----------------------------------------------------------------------------------------- refuses


def rotated(m: Any, x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], -1)


# Of [2, 4, 6, 8], or of fewer dimensions.
STAYS: dict[str, tuple[Function, tuple[int, ...]]] = {
    "a rotary embedding of four dimensions": (rotated, (2, 4, 6, 8)),
    "a rotary embedding of three": (rotated, (4, 6, 8)),
    "a rotary embedding of two": (rotated, (6, 8)),
    "halves by chunk": (lambda m, x: torch.cat([-x.chunk(2, -1)[1], x.chunk(2, -1)[0]], -1),
                        (2, 6, 8)),
    "a slice that is negated": (lambda m, x: -x[:, :, 1:], (2, 4, 6, 8)),
    "a slice that is shifted": (lambda m, x: x[..., :-1] + 1e-5, (2, 4, 6, 8)),
    "a pad that is scaled": (lambda m, x: functional.pad(x, (1, 1)) * m.gamma, (2, 4, 6, 8)),
    "every other position, scaled": (lambda m, x: x[:, :, ::2, ::2] * m.gamma, (2, 4, 6, 8)),
    "channels in another order": (lambda m, x: torch.cat([x[:, 2:], x[:, :2]], 1), (2, 4, 6, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_what_only_moves_and_scales_becomes_no_layer(name: str) -> None:
    function, shape = STAYS[name]
    x = randn(*shape)
    _, graph, editor = collapse(function, x, gamma=nn.Parameter(torch.rand(4, 1, 1)))
    assert not editor.modified
    assert not any("conv" in name or "linear" in name for name in ops(graph))


def test_a_norm_alone_before_a_zero_border_stays_with_the_reason() -> None:
    parts = {"norm": nn.BatchNorm2d(4), "layer": nn.Conv2d(4, 4, 3, padding=1)}
    _, graph, editor = collapse(lambda m, x: m.layer(m.norm(x)), randn(1, 4, 6, 6), **parts)
    assert ops(graph) == {"batch_norm": 1, "conv2d": 1}
    assert "would leak over its zero padding" in editor.refusals[0].reason


def test_a_scale_of_zero_keeps_its_shift() -> None:
    parts = {"scale": torch.tensor([1.0, 0.0, 2.0]).reshape(3, 1, 1), "shift": torch.rand(3, 1, 1)}
    x, layer = randn(1, 3, 6, 6), nn.Conv2d(3, 4, 3, padding=1)
    forward = lambda m, x: m.layer(x * m.scale + m.shift)  # noqa: E731
    model, graph, _ = collapse(forward, x, layer=layer, **parts)
    assert ops(graph) == {"batch_norm": 1, "conv2d": 1}
    assert_preserves(graph, model, [x])


# --------------------------------------------------------------------------------------- preserves


@settings(max_examples=draws(40))
@given(
    cut=st.tuples(*[st.integers(-3, 3)] * 4),
    step=st.integers(1, 3),
    kernel=st.integers(1, 3),
    options=st.fixed_dictionaries({"stride": st.integers(1, 3), "padding": st.integers(0, 2)}),
    sizes=st.tuples(st.integers(9, 13), st.integers(9, 13)),
    after=st.booleans(),
)
def test_crops_shifts_and_layers_preserve(
    cut: tuple[int, ...],
    step: int,
    kernel: int,
    options: dict[str, int],
    sizes: tuple[int, int],
    after: bool,
) -> None:
    def cropped(x: Tensor) -> Tensor:
        low, high, left, right = (abs(side) for side in cut)
        x = x[:, :, low : x.shape[2] - high : step]
        return functional.pad(x, (cut[2], right)) if left > 1 else x[..., left:]

    def forward(m: Any, x: Tensor) -> Tensor:
        if after:
            return m.norm(cropped(m.layer(x * m.scale + m.shift)))
        return m.norm(m.layer(cropped(x) * m.scale + m.shift))

    x = randn(2, 3, *sizes)
    parts = {"scale": torch.rand(3, 1, 1) + 0.5, "shift": torch.randn(3, 1, 1)}
    layer = nn.Conv2d(3, 4, kernel, **options)
    if (
        after
        and min((size + 2 * options["padding"] - kernel) // options["stride"] for size in sizes) < 7
    ):
        layer = nn.Conv2d(3, 4, kernel, padding=options["padding"])
    model, graph, editor = collapse(forward, x, layer=layer, norm=nn.BatchNorm2d(4), **parts)
    assert not any(refusal.undone for refusal in editor.refusals)
    assert_preserves(graph, model, [x])
    assert not Collapse().run(graph).modified


# ------------------------------------------------------------------- what comes before the collapse


def test_an_axis_that_is_dropped_and_put_back_is_a_slice() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.cat([x[:, 0].unsqueeze(1), x[:, -1].unsqueeze(1), x[..., 2].unsqueeze(1)], 1)

    x = randn(2, 4, 4, 4)
    model = Model(forward).double()
    graph, _ = apply(RemoveNoops(), model, x)
    assert ops(graph) == {"slice": 2, "select": 1, "unsqueeze": 1, "cat": 1}
    assert_preserves(graph, model, [x])
    assert not RemoveNoops().run(graph).modified


def test_concatenations_within_one_are_one() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        shared = torch.cat([x, x + 1], 1)
        inner = torch.cat([torch.cat([x, x * 2], 1), x * 3], -3)
        other = torch.cat([x, torch.cat([x, x], 2)[:, :, :4]], 1)
        return torch.cat([inner, shared, other], 1), shared

    x = randn(2, 3, 4, 5)
    graph, _ = apply(RemoveNoops(), Model(forward).double(), x)
    assert ops(graph)["cat"] == 3
    wanted = Model(forward).double()(x)
    assert torch.equal(graph(x)[0], wanted[0])
