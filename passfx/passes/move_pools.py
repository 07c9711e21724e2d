"""Average pools and 1×1 convolutions, in the cheaper order."""

from torch import ops
from torch.fx import Node

from passfx.analysis.commute import Exchange, exchange, pool, rebound
from passfx.graph.editor import Editor, Match
from passfx.graph.query import arguments, constant, module_path, tensor
from passfx.passes.base import Found, Pass

aten = ops.aten


class MovePools(Pass):
    """Pool before a 1×1 convolution, or after it, whichever is predicted to take less time.

        pool(W·x + b) = W·pool(x) + b

    W mixes the channels of one position, a pool mixes positions of one channel with weights that
    add up to 1. Before the convolution a pool leaves it fewer positions (the transitions of
    DenseNet); after one that narrows it has fewer channels to read (the pool branch of Inception).
    A norm right after the convolution moves with it. A pool that counts zeros, or has a divisor of
    its own, weighs with another sum than 1: then pool(W·x) = W·pool(x) still holds, and the bias is
    added after the pool. A mean that drops the spatial dimensions leaves a linear layer.

    Kept, or refused:
    1. an order that is predicted to be slower, with the figures where it would take fewer MACs;
    2. a value between the two that others read too;
    3. a bias before a pool whose weights do not add up to 1, which the pool would have weighed;
    4. convolutions with a stride, padding, a larger kernel or computed weights; maximum pools;
    5. a grouped convolution before a mean that drops the spatial dimensions.
    """

    name = "move-pools"

    def match(self, node: Node) -> Found:
        return exchange(node, pool, self.target.profile)

    def rewrite(self, editor: Editor, match: Match) -> Node:
        found: Exchange = match.data
        average = found.resampling.node
        if found.resamples_first:
            pooled = _again(editor, average, found.layer.source)
            result = (_linear if found.is_flat else _conv)(editor, found, pooled)
            return _norm(editor, found, result)
        result = _conv(editor, found, found.resampling.source)
        if found.resampling.is_average:
            return _again(editor, average, _norm(editor, found, result))
        result = _again(editor, average, result)
        if found.shift is not None:
            exact = constant(found.shift).double()
            shape = (1, -1, *(1,) * (found.layer.weight.ndim - 2))
            path = module_path(found.layer.conv)
            name = f"{path}.shift" if path else "shift"
            shift = editor.constant(exact.reshape(shape), constant(found.shift).dtype, name)
            result = editor.call(aten.add.Tensor, result, shift)
        return _norm(editor, found, result)


def _again(editor: Editor, node: Node, source: Node) -> Node:
    """The same operator on another input."""
    target, args, kwargs = rebound(node, {})
    return editor.call(target, source, *args[1:], **kwargs)


def _conv(editor: Editor, found: Exchange, source: Node) -> Node:
    target, args, _ = rebound(found.layer.conv, {})
    bias = None if found.shift else found.layer.bias
    return editor.call(target, source, args[1], bias, *args[3:])


def _linear(editor: Editor, found: Exchange, source: Node) -> Node:
    weight = arguments(found.layer.conv)["weight"]
    exact = constant(weight).double().flatten(1)
    fake = tensor(weight)
    assert fake is not None
    flat = editor.constant(exact, fake.dtype, str(weight.target))
    return editor.call(aten.linear.default, source, flat, found.layer.bias)


def _norm(editor: Editor, found: Exchange, source: Node) -> Node:
    norm = found.layer.norm
    return source if norm is None else _again(editor, norm, source)
