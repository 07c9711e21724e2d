"""Dead code."""

from collections.abc import Iterator

from torch.fx import Graph, Node

from passfx.graph.editor import Editor, Match
from passfx.graph.query import is_constant, is_pure
from passfx.passes.base import Found, Pass


class RemoveUnused(Pass):
    """Remove every operator whose result reaches no output.

    A whole dead branch is one rewrite. Inputs of the model stay, used or not. Operators with an
    effect (assertions) are kept.
    """

    name = "remove-unused"

    def matches(self, graph: Graph) -> Iterator[Found]:
        for node in reversed(graph.nodes):
            yield self.match(node)

    def match(self, node: Node) -> Found:
        if not _is_unused(node, frozenset()):
            return None
        branch = {node}
        pending = list(node.all_input_nodes)
        while pending:
            candidate = pending.pop()
            if candidate not in branch and _is_unused(candidate, branch):
                branch.add(candidate)
                pending.extend(candidate.all_input_nodes)
        nodes = tuple(sorted(branch))
        calls = sum(not is_constant(item) for item in nodes)
        return Match(node, nodes, f"{calls} operators reach no output")

    def rewrite(self, editor: Editor, match: Match) -> None:
        return None


def _is_unused(node: Node, removed: set[Node] | frozenset[Node]) -> bool:
    return is_pure(node) and all(user in removed for user in node.users)
