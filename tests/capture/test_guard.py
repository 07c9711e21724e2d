"""Inputs that a captured graph is not right for are refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule

import passfx
from passfx.capture.guard import InputCheck
from passfx.capture.program import capture
from passfx.pipeline import optimize_graph


def guarded(model: nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> GraphModule:
    """A captured graph that checks its inputs."""
    found = capture(model, args, kwargs)
    module, _ = optimize_graph(found, [])  # a copy, without the checks that the tracer attaches
    InputCheck.of(found, module).attach(module)
    return module


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(2, 4, 6, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def double(image: Tensor) -> GraphModule:
    return guarded(Double(), (image,))


def test_inputs_like_the_example_are_taken(double: GraphModule, image: Tensor) -> None:
    for x in (image, image + 1):
        assert torch.equal(double(x), 2 * x)
        assert torch.equal(double(x=x), 2 * x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x: x[:1],
            r"input x must be torch\.float32 \[2, 4, 6, 7\], not torch\.float32 \[1, 4, 6, 7\]; "
            "sizes that vary are declared with dynamic_shapes",
        ),
        (lambda x: x.double(), r"must be torch\.float32 \[2, 4, 6, 7\], not torch\.float64"),
        (lambda x: x[0], r"not torch\.float32 \[4, 6, 7\]"),
        (lambda x: 3.0, r"input x must be a tensor, not 3\.0"),
        (lambda x: [x, x], "nested in another way than the example inputs were"),
    ],
)
def test_other_inputs_are_refused(
    double: GraphModule, image: Tensor, change: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        double(change(image))


def test_missing_and_extra_inputs_are_python_errors(double: GraphModule, image: Tensor) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        double()
    with pytest.raises(TypeError, match="unexpected keyword argument 'y'"):
        double(image, y=image)
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        double(image, image)


def test_other_nesting_is_refused() -> None:
    class Total(nn.Module):
        def forward(self, items: list[Tensor], named: dict[str, Tensor]) -> Tensor:
            return sum(items, start=torch.zeros(2)) + sum(named.values())

    items, named = [torch.ones(2), torch.ones(2)], {"a": torch.ones(2)}
    module = guarded(Total(), (items, named))
    assert torch.equal(module(items, named), torch.full((2,), 3.0))
    for wrong in (
        ([*items, torch.ones(2)], named),
        (items[:1], named),
        (items, {"b": torch.ones(2)}),
        (items, {**named, "b": torch.ones(2)}),
        (torch.ones(2), named),
    ):
        with pytest.raises(ValueError, match="nested in another way"):
            module(*wrong)


def test_values_that_became_part_of_the_graph_are_refused() -> None:
    class Switch(nn.Module):
        def forward(
            self, x: Tensor, flag: bool, scale: float, mask: Tensor | None = None
        ) -> Tensor:
            return (x if flag else -x) * scale

    x = torch.randn(3)
    module = guarded(Switch(), (x, True, 2.0), {"mask": None})
    torch.testing.assert_close(module(x, True, 2.0, mask=None), 2 * x)
    with pytest.raises(ValueError, match="input flag must be True, with which .* not False"):
        module(x, False, 2.0, mask=None)
    with pytest.raises(ValueError, match=r"input scale must be 2\.0, .* not 3\.0"):
        module(x, True, 3.0, mask=None)
    with pytest.raises(ValueError, match="input mask must be None, .* not a tensor"):
        module(x, True, 2.0, mask=x)


class Times(nn.Module):
    def forward(self, x: Tensor, y: Any) -> Tensor:
        return x * y


@pytest.mark.parametrize(("given", "other"), [(2, 2.0), (2.0, 2), (1, True), (True, 1)])
def test_an_equal_number_of_another_type_is_refused(given: Any, other: Any) -> None:
    x = torch.tensor([1, 2])
    module = guarded(Times(), (x, given))
    assert module(x, given).dtype == (x * given).dtype
    with pytest.raises(ValueError, match=f"input y must be {given!r}, .*, not {other!r}"):
        module(x, other)


def test_a_size_that_the_tracer_fixed_is_fixed() -> None:
    """`Dim.AUTO` lets the tracer decide; its graph is right for one size of the last axis."""

    class Enlarge(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            small = x[..., 4:]
            return nn.functional.interpolate(
                small, scale_factor=1.5, mode="nearest-exact", recompute_scale_factor=True
            )

    auto = {2: Dim.AUTO, 3: Dim.AUTO}
    found = passfx.optimize(Enlarge(), (torch.randn(1, 2, 6, 5),), dynamic_shapes=(auto,))
    assert found.module(torch.randn(1, 2, 8, 5)).shape == (1, 2, 12, 1)
    with pytest.raises(ValueError, match=r"input x must be .* \[1, 2, any, 5\]"):
        found.module(torch.randn(1, 2, 6, 6))
    assert found.report.inputs[0].shape == (1, 2, "x_2", 5)
