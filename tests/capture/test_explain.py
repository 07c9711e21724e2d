"""Why a model cannot be captured: one sentence, with the line and the way out."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from passfx.capture.program import capture
from passfx.errors import CaptureError
from tests.capture.programs import Function, function
from tests.helpers import clean_imports

VARIES: Any = ({0: Dim.DYNAMIC},)
LIBRARY = """
def suppress(boxes):
    if boxes.sum() > 0:
        return boxes
    return -boxes
"""


def told(model: nn.Module, *args: Any, **options: Any) -> str:
    with pytest.raises(CaptureError) as caught:
        capture(model, args, **options)
    message = str(caught.value)
    for word in ("\n", "TORCH_LOGS", "UserError", "GuardOn", "u0", "http"):
        assert word not in message
    return message


def line(model: Function, number: int) -> str:
    return f"{__file__}:{model.function.__code__.co_firstlineno + number}"


def test_flow_of_the_users_own_code() -> None:
    def body(x: Tensor) -> Tensor:
        for _ in range(int(x.sum())):
            x = x + 1
        return x

    model = function(body)
    assert told(model, torch.ones(3)) == (
        f"Function cannot be captured at {line(model, 1)} (for _ in range(int(x.sum())):): its "
        "flow depends on the value of a tensor; use torch.where or torch.cond there"
    )


def test_flow_of_a_library_has_its_line_and_that_of_the_caller(tmp_path: Path) -> None:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    file = folder / "some_boxes.py"
    file.write_text(LIBRARY)
    with clean_imports(tmp_path):
        sys.path.insert(0, str(folder))
        import some_boxes  # type: ignore[import-not-found]

        model = function(lambda x: some_boxes.suppress(x) * 2)
        message = told(model, torch.ones(3))
    assert message.startswith(
        f"Function cannot be captured at {file}:3 (if boxes.sum() > 0:), called at {line(model, 0)}"
        ": its flow depends on the value of a tensor; that is library code: convert the parts"
    )
    assert "torch.where" not in message


def test_a_long_line_of_code_is_cut() -> None:
    def body(x: Tensor) -> Tensor:
        while x.sum() > 0 and x.sum() > 1 and x.sum() > 2 and x.sum() > 3 and x.sum() > 4 + 3 + 2:
            x = x - 1
        return x

    assert " and x.sum() > …): its flow" in told(function(body), torch.ones(3))


def test_a_size_that_becomes_a_constant_has_the_line() -> None:
    def body(x: Tensor) -> Tensor:
        y = x + 1
        return y.reshape(2, -1)[0] + y.reshape(2, -1)[: len(x)].sum()

    model = function(body)
    assert told(model, torch.ones(2, 3), dynamic_shapes=VARIES).startswith(
        "Function cannot be captured for sizes that vary as declared: axis 0 of x becomes the "
        f"constant 2 at {line(model, 2)} (return y.reshape(2, -1)"
    )


def test_the_way_out_names_the_batch() -> None:
    def body(x: Tensor) -> Tensor:
        return torch.stack([item * 2 for item in x])

    message = told(function(body), torch.ones(2, 3), dynamic_shapes=VARIES)
    assert "axis 0 of x becomes the constant 2" in message
    assert "; leave the batch fixed, or declare the range" in message
    assert "for item in x" in message


def test_a_constant_size_of_a_nested_input() -> None:
    class Fixed(nn.Module):
        def forward(self, x: dict[str, Any]) -> Tensor:
            y = x["a"][0]
            return y.reshape(2, -1, 5) if y.shape[2] == 5 else y

    x = {"a": [torch.ones(2, 3, 5)]}
    for dim, named in ((Dim.DYNAMIC, "axis 2 of x['a'][0]"), (Dim("height"), "height")):
        message = told(Fixed(), x, dynamic_shapes={"x": {"a": [{2: dim}]}})
        assert f": {named} becomes the constant 5 at" in message
        assert "(return y.reshape(2, -1, 5) if y.shape[2] == 5 else y)" in message
        assert "; leave such a size fixed, or" in message


def test_a_range_that_is_narrower_than_declared() -> None:
    def body(x: Tensor) -> Tensor:
        return x + 1 if x.shape[0] > 5 else x

    message = told(function(body), torch.ones(8, 3), dynamic_shapes=({0: Dim("b", max=64)},))
    assert "cannot be captured for sizes that vary as declared: " in message


class Cache:
    """Keys and values of earlier calls, which no graph takes as an input."""

    def __init__(self) -> None:
        self.keys = [torch.ones(3)]


def test_an_object_among_the_inputs() -> None:
    message = told(function(lambda x, y: x + y.keys[0]), torch.ones(3), Cache())
    assert message == (
        "Function cannot be captured: torch.export takes no tests.capture.test_explain.Cache as an "
        "input; give its tensors in tuples, lists or dicts, or leave a cache out (use_cache=False)"
    )


def test_other_failures_have_the_line() -> None:
    def body(x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() + 1)

    model = function(body)
    assert f"cannot be captured at {line(model, 1)} (return torch.from_numpy(" in told(
        model, torch.ones(3)
    )
