"""Dead code."""

from collections import Counter
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
        if node.users or not is_pure(node):
            return None
        branch, pending, readers = [node], [node], Counter[Node]()
        while pending:
            reads = pending.pop().all_input_nodes
            readers.update(reads)
            dead = [item for item in reads if readers[item] == len(item.users) and is_pure(item)]
            branch += dead
            pending += dead
        nodes = tuple(sorted(branch))
        calls = sum(not is_constant(item) for item in nodes)
        return Match(node, nodes, f"{calls} operators reach no output")

    def rewrite(self, editor: Editor, match: Match) -> None:
        return None
