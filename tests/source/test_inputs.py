"""Example inputs, input shapes, and arguments as text."""

from pathlib import Path
from typing import Any

import pytest
import torch

from passfx.errors import SourceError
from passfx.source.inputs import InputShape, parse_argument, parse_input_shape
from passfx.source.load import load_source
from passfx.source.spec import SourceSpec
from tests.source.nets import FILE, write


@pytest.mark.parametrize(
    ("inputs", "args", "kwargs"),
    [
        ("torch.ones(1, 3, 4, 4)", [(1, 3, 4, 4)], {}),
        ("(torch.ones(1, 3), torch.ones(2))", [(1, 3), (2,)], {}),
        ("[torch.ones(1, 3)]", [(1, 3)], {}),
        ("{'x': torch.ones(5)}", [], {"x": (5,)}),
    ],
)
def test_example_inputs_forms(
    tmp_path: Path, inputs: str, args: list[Any], kwargs: dict[str, Any]
) -> None:
    source = load_source(SourceSpec(f"{write(tmp_path / 'net.py', inputs)}:build"))
    assert [item.shape for item in source.args] == args
    assert {name: item.shape for name, item in source.kwargs.items()} == kwargs


def test_example_inputs_may_be_a_value(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(FILE + "\nexample_inputs = torch.ones(1, 3, 4, 4)\n")
    assert load_source(SourceSpec(f"{path}:build")).args[0].shape == (1, 3, 4, 4)


def test_input_shapes_go_before_example_inputs(net: Path) -> None:
    source = load_source(SourceSpec(f"{net}:build", input_shapes=["2x3x4x4"]))
    assert [item.shape for item in source.args] == [(2, 3, 4, 4)]


def test_named_input_shapes_are_keywords(net: Path) -> None:
    shapes = ["1x3x4x4", "mask:1,1,4,4"]
    source = load_source(SourceSpec(f"{net}:build", input_shapes=shapes))
    assert [item.shape for item in source.args] == [(1, 3, 4, 4)]
    assert {name: item.shape for name, item in source.kwargs.items()} == {"mask": (1, 1, 4, 4)}


def test_random_inputs_have_the_dtype_of_the_model(net: Path) -> None:
    shapes = ["1x3x4x4"]
    assert (
        load_source(SourceSpec(f"{net}:build_half", input_shapes=shapes)).args[0].dtype
        == torch.float16
    )
    assert (
        load_source(SourceSpec(f"{net}:build", input_shapes=shapes)).args[0].dtype == torch.float32
    )


def test_no_example_inputs(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(FILE)
    with pytest.raises(SourceError, match=r"give --input-shape 1x3x224x224, or define example_in"):
        load_source(SourceSpec(f"{path}:build"))
    path.write_text(f"{FILE}\nclass Two(Net):\n    def forward(self, ids, *, mask, x=1): ...\n")
    asked = r"give --input-shape NAME:1x3x224x224\[:int64\] for each of ids, mask, or define"
    with pytest.raises(SourceError, match=asked):
        load_source(SourceSpec(f"{path}:Two"))


def test_failing_example_inputs_are_placed(tmp_path: Path) -> None:
    path = write(tmp_path / "net.py", "torch.ones(1) / nothing")
    line = len(path.read_text().splitlines())
    with pytest.raises(SourceError, match=rf"example_inputs\(\) of .* NameError.*net.py:{line}\)"):
        load_source(SourceSpec(f"{path}:build"))


@pytest.mark.parametrize(
    ("text", "name", "sizes", "dtype"),
    [
        ("1x3x224x224", None, (1, 3, 224, 224), None),
        ("1,3,8,8", None, (1, 3, 8, 8), None),
        ("1, 3, 8, 8", None, (1, 3, 8, 8), None),
        ("x:2x5", "x", (2, 5), None),
        ("mask:7", "mask", (7,), None),
        ("serving:x:0:2x5", "serving:x:0", (2, 5), None),
        ("ids:1x128:int64", "ids", (1, 128), torch.int64),
        ("1x128:long", None, (1, 128), torch.int64),
        ("1:bool", None, (1,), torch.bool),
        ("x:1x3:float32", "x", (1, 3), torch.float32),
        ("a:b:1,3:half", "a:b", (1, 3), torch.float16),
        ("float16:1x3", "float16", (1, 3), None),
    ],
)
def test_input_shape(
    text: str, name: str | None, sizes: tuple[int, ...], dtype: torch.dtype | None
) -> None:
    assert parse_input_shape(text) == InputShape(name, sizes, dtype)


@pytest.mark.parametrize(
    "text",
    ["", "x:", "1x3x", "1x-3", "0x3", "1*3", "axb", "1x3:x", "1.5x2", ":", "int64", "x:int64",
     "1x3:qint8", "1x3:nn", "1x3:Tensor", "x:1x3:int64:int64"],
)  # fmt: skip
def test_wrong_input_shape(text: str) -> None:
    with pytest.raises(SourceError, match=r"not of the form \[NAME:\]1x3x224x224\[:int64\]"):
        parse_input_shape(text)


def test_misspelt_dtype() -> None:
    with pytest.raises(SourceError, match=r"'ids:1x8:int46' is not .*; did you mean int64\?$"):
        parse_input_shape("ids:1x8:int46")


INPUTS_OF_EACH_KIND = """
import torch
from torch import nn

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(2, 4)

    def forward(self, ids, mask=None, image=None):
        x = self.table(ids)
        x = x if mask is None else x * mask[..., None]
        return x if image is None else x + image.float().mean()

def half():
    return Words().half()
"""


def test_dtypes_of_inputs(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(INPUTS_OF_EACH_KIND)
    shapes = ["2x9:int64", "mask:2x9:bool", "image:64x64x3:uint8"]
    source = load_source(SourceSpec(f"{tmp_path / 'net.py'}:Words", input_shapes=shapes))
    (ids,), mask, image = source.args, source.kwargs["mask"], source.kwargs["image"]
    assert (ids.dtype, mask.dtype, image.dtype) == (torch.int64, torch.bool, torch.uint8)
    assert set(ids.flatten().tolist()) == {0, 1} == set(mask.flatten().tolist())
    assert (int(image.min()), int(image.max())) == (0, 255)
    assert source.notes == (
        "integers of 2x9 are drawn from 0 and 1; example_inputs() may give others",
    )


def test_dtype_where_none_is_given(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(INPUTS_OF_EACH_KIND)
    name = f"{tmp_path / 'net.py'}:half"
    source = load_source(SourceSpec(name, input_shapes=["2x9:int64", "mask:2x9"]))
    assert source.kwargs["mask"].dtype == torch.float16
    assert "inputs are drawn in the model's own float16" in source.notes
    source = load_source(SourceSpec(name, input_shapes=["2x9:int64", "mask:2x9:float32"]))
    assert source.kwargs["mask"].dtype == torch.float32
    assert len(source.notes) == 1


@pytest.mark.parametrize(
    ("shapes", "problem"),
    [
        (["mask:2x9"], "missing a required argument: 'ids'"),
        (["2x9"] * 4, "too many positional arguments"),
        (["2x9", "msk:2x9"], "got an unexpected keyword argument 'msk'"),
        (["2x9", "ids:2x9"], "multiple values for argument 'ids'"),
        (["2x9", "mask:2x9", "mask:2x9"], "--input-shape gives 'mask' twice"),
    ],
)
def test_inputs_that_forward_does_not_take(tmp_path: Path, shapes: list[str], problem: str) -> None:
    (tmp_path / "net.py").write_text(INPUTS_OF_EACH_KIND)
    with pytest.raises(SourceError, match=problem):
        load_source(SourceSpec(f"{tmp_path / 'net.py'}:Words", input_shapes=shapes))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=8", 8),
        ("a=-0.5", -0.5),
        ("a=(3, 3)", (3, 3)),
        ("a=true", True),
        ("a=False", False),
        ("a=none", None),
        ("a='8'", "8"),
        ("a=relu", "relu"),
        ("a=x=y", "x=y"),
        ("a=", ""),
        ("a={'k': [1]}", {"k": [1]}),
    ],
)
def test_argument(text: str, value: Any) -> None:
    key, parsed = parse_argument(text)
    assert key == "a"
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["width", "=3", "a b=3", "3=a"])
def test_wrong_argument(text: str) -> None:
    with pytest.raises(SourceError, match="not of the form key=value"):
        parse_argument(text)
