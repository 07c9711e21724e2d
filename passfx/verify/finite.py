"""NaN and infinity in a model, which agree with anything that comes after them."""

from collections.abc import Mapping

from torch import Tensor
from torch.fx import Node

from passfx.capture.program import Captured
from passfx.errors import VerificationError
from passfx.graph.query import constant, is_call, is_constant, parameters

_SHOWN = 5
_WAY_OUT = "mend the model, or accept them with --allow-nonfinite (allow_nonfinite=True)"


def check_weights(captured: Captured) -> None:
    """Refuse a model whose weights are not finite: no proof on numbers says anything about it.

    NaN is refused in every constant. Infinity is refused in a parameter, and in what a layer
    multiplies or normalises with; in other constants it is ordinary: a mask holds −inf.

    Raises:
        VerificationError: with the tensors, and how many elements of them.
    """
    nodes = list(filter(is_constant, captured.graph_module.graph.nodes))
    names = set(captured.program.graph_signature.parameters)
    found = {}
    for node in nodes:
        weights = constant(node)
        is_weight = str(node.target) in names or any(_is_parameter(node, to) for to in node.users)
        counts = _count(weights, infinite=is_weight)
        if counts:
            found[str(node.target)] = f"{node.target} holds {counts}"
    if found:
        told = [*list(found.values())[:_SHOWN]]
        if len(found) > _SHOWN:
            told.append(f"{len(found) - _SHOWN} more tensors are like it")
        raise VerificationError(f"the weights are not finite: {', '.join(told)}; {_WAY_OUT}")


def check_results(results: Mapping[str, Tensor]) -> None:
    """Refuse results of a model, by name, of which nothing can be proven.

    That is NaN, and a result without any finite element. Infinity elsewhere is a value like others,
    which must be found at the same places.

    Raises:
        VerificationError: with the results, and how many elements of them.
    """
    told = [
        f"{name} holds {_count(result, infinite=True)}"
        for name, result in results.items()
        if _is_floating(result)
        and (result.isnan().any() or (result.numel() and not result.isfinite().any()))
    ]
    if told:
        raise VerificationError(
            "the model's own results on the example inputs are not finite, so that nothing can be "
            f"proven: {', '.join(told)}; give other inputs, {_WAY_OUT}"
        )


def count_nonfinite(result: Tensor) -> int:
    """How many elements are NaN or infinite."""
    return int((~result.isfinite()).sum()) if _is_floating(result) else 0


def _is_parameter(node: Node, user: Node) -> bool:
    return is_call(user) and any(node is item for item in parameters(user))


def _is_floating(item: Tensor) -> bool:
    return item.is_floating_point() or item.is_complex()


def _count(item: Tensor, infinite: bool) -> str:
    """ "3 NaN and 1 infinity"; empty where there are none."""
    if not _is_floating(item) or item.isfinite().all():
        return ""
    nans, infinities = int(item.isnan().sum()), int(item.isinf().sum()) if infinite else 0
    counts = [f"{nans} NaN"] if nans else []
    if infinities:
        counts.append(f"{infinities} infinit{'y' if infinities == 1 else 'ies'}")
    return " and ".join(counts)
