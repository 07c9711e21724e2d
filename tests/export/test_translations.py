"""Operators that torch's exporter would write longer, slower, or for fewer shapes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import passfx
from passfx.runtime.reference import run_model
from tests.passes.strategies import Forms, Model

Function = Callable[..., Any]
attention = functional.scaled_dot_product_attention


def written(form: Function, *inputs: Tensor, opset: int = 20, **options: Any) -> Any:
    """The operators of the proven file of a form, and the file."""
    model = Model(form)
    path = options.pop("folder") / "model.onnx"
    optimized = passfx.optimize(model, inputs, **options)
    optimized.export(path, opset=opset)
    return [node.op_type for node in onnx.load(path).graph.node], path


def tokens(*shape: int) -> list[Tensor]:
    return [torch.randn(shape or (2, 4, 6, 8)) for _ in range(3)]


@pytest.mark.parametrize("opset", [18, 20])
def test_attention_is_five_operators(opset: int, tmp_path: Path) -> None:
    ops, _ = written(lambda m, *x: attention(*x), *tokens(), opset=opset, folder=tmp_path)
    assert ops == ["Transpose", "Mul", "MatMul", "Softmax", "MatMul"]


def test_attention_is_one_operator_of_a_later_opset(tmp_path: Path) -> None:
    form: Function = lambda m, *x: attention(*x, is_causal=True)  # noqa: E731
    ops, _ = written(form, *tokens(), opset=23, folder=tmp_path)
    assert ops == ["Attention"]


@pytest.mark.parametrize("opset", [20, 23])
def test_attention_takes_three_axes(opset: int, tmp_path: Path) -> None:
    ops, _ = written(lambda m, *x: attention(*x), *tokens(4, 6, 8), opset=opset, folder=tmp_path)
    assert ops == ["Transpose", "Mul", "MatMul", "Softmax", "MatMul"]


FORMS: dict[str, Function] = {
    "scale": lambda m, q, k, v: attention(q, k, v, scale=0.3),
    "causal": lambda m, q, k, v: attention(q, k, v, is_causal=True),
    "causal, more keys": lambda m, q, k, v: attention(q[:, :, :4], k, v, is_causal=True),
    "added mask": lambda m, q, k, v: attention(q, k, v, k @ q.transpose(-1, -2)),
    "grouped queries": lambda m, q, k, v: attention(q, k[:, :2], v[:, :2], enable_gqa=True),
    "one head": lambda m, q, k, v: attention(q, k[:, :1], v[:, :1]),
}


@pytest.mark.parametrize("opset", [18, 20])
@pytest.mark.parametrize("dynamic", [False, True])
def test_attention_of_every_kind(opset: int, dynamic: bool, tmp_path: Path) -> None:
    """The file is proven as it is written."""
    size = torch.export.Dim("tokens", min=5, max=32)
    options = {"dynamic_shapes": [({0: torch.export.Dim("batch"), 2: size},) * 3]}
    forms = {name: form for name, form in FORMS.items() if not dynamic or "head" not in name}
    model = Forms(forms, Model(lambda m: None))
    optimized = passfx.optimize(model, tokens(), **(options if dynamic else {}))
    optimized.export(tmp_path / "model.onnx", opset=opset)


def test_a_row_that_a_mask_hides_as_a_whole_is_zero(tmp_path: Path) -> None:
    """Where torch's own translation gives the mean of all values."""
    query, key, value = tokens()
    kept = torch.rand(2, 1, 6, 6) > 0.5
    kept[0, 0, 2] = False
    form: Function = lambda m, q, k, v, kept: attention(q, k, v, kept)  # noqa: E731
    ops, path = written(form, query, key, value, kept, folder=tmp_path)
    assert ops[-3:] == ["IsNaN", "Where", "MatMul"]
    names = [item.name for item in onnx.load(path).graph.input]
    given = dict(zip(names, (item.numpy() for item in (query, key, value, kept)), strict=True))
    ((result,),) = run_model(ir.load(path), [given])
    torch.testing.assert_close(torch.as_tensor(result), attention(query, key, value, kept))
    assert not torch.as_tensor(result)[0, :, 2].any()


def test_rms_norm_ends_in_a_product_with_its_weight(tmp_path: Path) -> None:
    """As ONNX Runtime's own fusion wants it."""
    weight = torch.rand(8)
    for form in (
        lambda m, x: functional.rms_norm(x, (8,), weight, 1e-6),
        lambda m, x: functional.rms_norm(x, (8,), None, 1e-6),
        lambda m, x: functional.rms_norm(x, (8,), weight),
    ):
        ops, _ = written(form, torch.randn(2, 5, 8), folder=tmp_path)
        assert ops == ["Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul"]
    ops, _ = written(form, torch.randn(2, 5, 8), opset=23, folder=tmp_path)
    assert ops == ["RMSNormalization"]


def test_gelu_before_its_operator(tmp_path: Path) -> None:
    x = torch.randn(3, 50) * 4
    ops, _ = written(lambda m, x: functional.gelu(x), x, opset=18, folder=tmp_path)
    assert sorted(ops) == ["Add", "Div", "Erf", "Mul", "Mul"]
    tanh: Function = lambda m, x: functional.gelu(x, approximate="tanh")  # noqa: E731
    ops, _ = written(tanh, x, opset=18, folder=tmp_path)
    assert ops == ["Mul", "Mul", "Add", "Mul", "Sigmoid", "Mul"]
    assert written(tanh, x, folder=tmp_path)[0] == ["Gelu"]
