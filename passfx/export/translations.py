"""Operators that torch's exporter writes longer than need be, slower, or for fewer shapes.

Each function is one translation, called with ONNX values in place of tensors, for the opsets that
lack the operator itself. Names and order of the arguments are those of the operator's schema.
"""

from collections.abc import Callable, Sequence
from math import inf, pi, sqrt
from typing import Any

import numpy
import onnx_ir as ir
import torch
from onnxscript import opset18, opset23

op: Any = opset18  # whose stubs know no lists of numbers
aten = torch.ops.aten

# The first opsets that have these operators.
_GELU_OPSET = 20
_RMS_NORM_OPSET = 23
_ATTENTION_OPSET = 23

Translation = Callable[..., Any]


def translations(opset: int) -> dict[Translation, Translation]:
    """The translations for a file of this opset, as `torch.onnx.export` takes them."""
    has_attention = opset >= _ATTENTION_OPSET
    found: dict[Translation, Translation] = {
        aten.scaled_dot_product_attention.default: attention if has_attention else products
    }
    if opset < _GELU_OPSET:
        found[aten.gelu.default] = _gelu
    if opset < _RMS_NORM_OPSET:
        found[aten.rms_norm.default] = _rms_norm
    return found


def _gelu(self: Any, approximate: str = "none") -> Any:
    """x/2·(1 + erf(x/√2)), in the order that ONNX Runtime makes one operator of.

    The one by tanh is x·sigmoid(2·√(2/π)·(x + 0.044715·x³)), which is shorter.
    """
    if approximate == "tanh":
        slope = 2 * sqrt(2 / pi)
        square = op.Mul(op.Mul(self, self), _number(0.044715 * slope, self))
        return op.Mul(self, op.Sigmoid(op.Mul(self, op.Add(square, _number(slope, self)))))
    erf = op.Erf(op.Div(self, _number(sqrt(2), self)))
    return op.Mul(op.Mul(self, _number(0.5, self)), op.Add(erf, _number(1.0, self)))


def _rms_norm(
    input: Any, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> Any:
    """x/√(mean(x²) + ε)·w, in the order that ONNX Runtime makes one operator of; so w is there."""
    if eps is None:
        wide = torch.float64 if input.dtype == ir.DataType.DOUBLE else torch.float32
        eps = torch.finfo(wide).eps
    axes = op.Constant(value_ints=list(range(-len(normalized_shape), 0)))
    mean = op.ReduceMean(op.Pow(input, _number(2.0, input)), axes, keepdims=1)
    normed = op.Div(input, op.Sqrt(op.Add(mean, _number(eps, input))))
    if weight is None:
        ones = numpy.ones([int(size) for size in normalized_shape], input.dtype.numpy())
        weight = op.Constant(value=ir.tensor(ones, dtype=input.dtype))
    return op.Mul(normed, weight)


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """The operator, which is for four axes."""
    if len(query.shape) != 4 or len(key.shape) != 4 or len(value.shape) != 4:
        return products(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    given = {} if attn_mask is None else {"attn_mask": attn_mask}
    result, *_ = opset23.Attention(query, key, value, **given, scale=scale, is_causal=is_causal)
    return result


def products(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(scale·q·kᵀ + mask)·v.

    A row that a boolean mask hides as a whole is zero, as in torch; softmax makes NaN of it.
    """
    count = len(query.shape)
    keys, values = (_repeated(item, query) for item in (key, value)) if enable_gqa else (key, value)
    swapped = op.Transpose(keys, perm=[*range(count - 2), count - 1, count - 2])
    factor = _scale(query) if scale is None else _number(scale, query)
    scores = op.MatMul(op.Mul(query, factor), swapped)
    if is_causal:
        scores = op.Add(scores, _causal_mask(query, key))
    if attn_mask is None:
        return op.MatMul(op.Softmax(scores, axis=-1), values)
    if attn_mask.dtype != ir.DataType.BOOL:
        return op.MatMul(op.Softmax(op.Add(scores, attn_mask), axis=-1), values)
    weights = op.Softmax(op.Where(attn_mask, scores, _number(-inf, query)), axis=-1)
    seen = op.Where(op.IsNaN(weights), _number(0.0, query), weights)
    return op.MatMul(seen, values)


def _scale(query: Any) -> Any:
    size = query.shape[-1]
    if isinstance(size, int):
        return _number(size**-0.5, query)
    return op.Reciprocal(op.Sqrt(op.CastLike(op.Shape(query, start=-1), query)))


def _causal_mask(query: Any, key: Any) -> Any:
    """0 where a row is not before a column, −∞ elsewhere."""
    rows, columns = query.shape[-2], key.shape[-2]
    if isinstance(rows, int) and isinstance(columns, int):
        mask = numpy.where(numpy.tri(rows, columns), 0.0, -inf).astype(query.dtype.numpy())
        return op.Constant(value=ir.tensor(mask, dtype=query.dtype))
    sizes = op.Concat(op.Shape(query, start=-2, end=-1), op.Shape(key, start=-2, end=-1), axis=0)
    hidden = op.Expand(_number(-inf, query), sizes)
    return op.Trilu(hidden, op.Constant(value_int=1), upper=1)


def _repeated(item: Any, query: Any) -> Any:
    """Keys or values, each head as often as queries share it; the heads are the third last axis."""
    axis = len(item.shape) - 2
    heads, size = op.Shape(item, start=-3, end=-2), op.Shape(item, start=-2)
    times = op.Div(op.Shape(query, start=-3, end=-2), heads)
    ahead = op.Shape(item, start=0, end=-3)
    wide = op.Expand(op.Unsqueeze(item, [axis]), op.Concat(ahead, heads, times, size, axis=0))
    return op.Reshape(wide, op.Concat(ahead, op.Mul(heads, times), size, axis=0))


def _number(number: float, like: Any) -> Any:
    return op.Constant(value=ir.tensor(number, dtype=like.dtype))
