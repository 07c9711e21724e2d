"""Sizes that vary, and the names and ranges that they have."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

from models.pass_layer import PassCNNAdd
from models.resnet import resnet18
from passfx.capture.program import capture
from passfx.errors import CaptureError
from passfx.graph.evaluate import run_flat
from passfx.verify.error import relative_error
from tests.capture.programs import BATCH, Pair, function, image
from tests.helpers import randomize


def test_a_dynamic_batch_from_an_example_of_one() -> None:
    model = randomize(PassCNNAdd())
    x = image(1, 3, 4, 4)
    found = capture(model, (x,), dynamic_shapes={"x": BATCH})
    assert x.shape[0] == 1
    assert found.flat_inputs[0].shape[0] == 2
    assert list(found.dim_names.values()) == ["batch"]
    assert [found.dim_name(str(n)) for n in found.results[0].meta["val"].shape] == [
        "batch", "64", "4", "4",
    ]  # fmt: skip
    for batch in (1, 2, 5):
        y = image(batch, 3, 4, 4)
        (result,) = run_flat(found.graph_module, [y], double=False)
        assert relative_error(result, model.eval()(y)) <= 1e-6


def test_dynamic_spatial_sizes_are_named_after_input_and_axis() -> None:
    model = randomize(resnet18())
    shapes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.AUTO},)
    found = capture(model, (image(1, 3, 64, 96),), dynamic_shapes=shapes)
    assert set(found.dim_names.values()) == {"batch", "x_2", "x_3"}
    y = image(3, 3, 33, 70)
    (result,) = run_flat(found.graph_module, [y], double=False)
    with torch.no_grad():
        assert relative_error(result, model.eval()(y)) <= 1e-5


def test_dims_keep_their_names_and_their_ranges() -> None:
    rows = Dim("rows", min=2, max=7)
    found = capture(
        function(lambda x, y: torch.cat([x, y], 1) * 2),
        (image(1, 3), image(1, 4)),
        dynamic_shapes={"x": {0: rows, 1: Dim("left", max=64)}, "y": {0: rows}},
    )
    assert set(found.dim_names.values()) == {"rows", "left"}
    (fake,) = (item.meta["val"] for item in found.results)
    assert [found.dim_name(str(size)) for size in fake.shape] == ["rows", "left + 4"]
    bounds = {(int(item.lower), int(item.upper)) for item in _ranges(found)}
    assert bounds == {(2, 7), (2, 64)} or bounds == {(2, 7), (0, 64)}


def _ranges(found: Any) -> list[Any]:
    return list(found.program.range_constraints.values())


def test_two_unnamed_batches_have_two_names() -> None:
    shapes = {"x": BATCH, "y": BATCH}
    found = capture(
        function(lambda x, y: (x + 1, y + 1)), (image(1, 3), image(4, 3)), dynamic_shapes=shapes
    )
    assert set(found.dim_names.values()) == {"batch", "y_batch"}


def test_dims_of_nested_inputs() -> None:
    def body(x: Any) -> Tensor:
        return x["a"] + x["b"][0] * x["b"][1]

    def inputs(batch: int) -> Any:
        return OrderedDict(a=image(batch, 3), b=(image(batch, 3), image(batch, 3)))

    shapes = {"x": {"a": BATCH, "b": (BATCH, BATCH)}}
    found = capture(function(body), (inputs(1),), dynamic_shapes=shapes)
    assert isinstance(found.args[0], OrderedDict)
    assert set(found.dim_names.values()) == {"batch"}
    given = inputs(4)
    assert torch.equal(found.graph_module(given), body(given))


def test_dims_of_a_named_tuple() -> None:
    found = capture(
        function(lambda x: x.first + x.second),
        (Pair(image(1, 3), image(1, 3)),),
        dynamic_shapes={"x": Pair(BATCH, BATCH)},
    )
    assert found.graph_module(Pair(image(4, 3), image(4, 3))).shape == (4, 3)


def test_dims_leave_keyword_inputs_keywords() -> None:
    def body(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return x * y - z

    x, y, z = (image(5, 3) for _ in range(3))
    found = capture(
        function(body),
        (x[:1],),
        {"z": z[:1], "y": y[:1]},
        dynamic_shapes={"x": BATCH, "y": BATCH, "z": BATCH},
    )
    assert torch.equal(found.graph_module(x, y=y, z=z), x * y - z)
    assert list(found.kwargs) == ["y", "z"]  # in the order of forward, whatever the caller's


def test_a_shapes_collection() -> None:
    x = image(1, 3)
    shapes = torch.export.ShapesCollection()
    shapes[x] = BATCH
    found = capture(function(lambda x: x + 1), (x,), dynamic_shapes=shapes)
    assert found.graph_module(image(4, 3)).shape == (4, 3)
    assert list(found.dim_names.values()) == ["batch"]


def test_dims_that_do_not_fit_the_inputs_are_refused() -> None:
    with pytest.raises(CaptureError, match="cannot be captured.*dynamic_shapes"):
        capture(
            function(lambda x: x[0] + x[1]),
            ([image(1, 3), image(1, 3)],),
            dynamic_shapes={"x": [BATCH]},
        )
