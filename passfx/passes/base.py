"""What a pass is: a read-only `match` on one node, and a `rewrite` of what matched.

`match` returns None (not my shape), a `Refusal` (my shape, but unsafe) or a `Match`; `rewrite`
builds the replacement of `match.at` beside it. The editor certifies the edit and commits or undoes
it. A pass is callable on a captured graph module and returns torch.fx's `PassResult`, so it also
works inside `torch.fx.passes.infra.pass_manager.PassManager`.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.infra.pass_base import PassResult

from passfx.analysis.cost import node_seconds
from passfx.analysis.growth import Addition, too_large
from passfx.graph.aliases import FreshResults, graph_aliases
from passfx.graph.editor import Certify, Edit, Editor, Match, Undone
from passfx.graph.query import is_call, is_constant, tensor
from passfx.graph.shapes import nbytes
from passfx.record import Refusal
from passfx.target import CPU, Target
from passfx.verify.certificate import certify as default_certify

Found = Match | Refusal | None


@dataclass(frozen=True)
class Pass:
    """One kind of rewrite. The docstring of a subclass is what `passfx passes NAME` prints.

    Attributes:
        target: what the graph is rewritten for; decisions by cost use its profile.
    """

    name: ClassVar[str]

    target: Target = CPU

    def match(self, node: Node) -> Found:
        """What there is to rewrite at `node`; reads only."""
        raise NotImplementedError

    def rewrite(self, editor: Editor, match: Match) -> Node | dict[Node, Node] | None:
        """Build what replaces `match.at` and return it; None if `match.at` has no users.

        Where several values are replaced: old → new.
        """
        raise NotImplementedError

    def matches(self, graph: Graph) -> Iterator[Found]:
        """The matches of a whole graph, each looked for after the one before was rewritten."""
        for node in graph.nodes:
            yield self.match(node)

    def run(
        self,
        graph_module: GraphModule,
        certify: Certify = default_certify,
        undone: Undone | None = None,
    ) -> Editor:
        """Rewrite the graph in place; the editor holds the rewrites and the refusals.

        The caller ends with `editor.finish()`, once it keeps the result.
        """
        editor = Editor(graph_module, self.name, certify, undone)
        for found in self.matches(graph_module.graph):
            if isinstance(found, Refusal):
                editor.refuse(found)
            elif found is not None:
                with editor.edit(found) as edit:
                    replacement = self.rewrite(editor, found)
                    if isinstance(replacement, Node):
                        replacement = {found.at: replacement}
                    edit.replacements.update(replacement or {})
                    if not found.weighed:
                        edit.refused = self._growth(edit)
        return editor

    def _growth(self, edit: Edit) -> str | None:
        """Why an edit makes the file larger by more than its gain, if it does."""
        added = sum(nbytes(node) for node in edit.added if is_constant(node))
        if not added:
            return None
        gone: set[Node] = set()
        for node in reversed(edit.match.nodes):
            if node in edit.replacements or gone.issuperset(node.users):
                gone.add(node)
        old, new = filter(is_call, gone), filter(is_call, edit.added)
        saved, spent = (sum(map(self._seconds, nodes)) for nodes in (old, new))
        addition = Addition(edit.match.at, sorted(gone), added, saved - spent)
        return too_large([addition]).get(addition)

    def _seconds(self, node: Node) -> float:
        return node_seconds(node, self.target.profile) if tensor(node) is not None else 0.0

    def __call__(self, graph_module: GraphModule) -> PassResult:
        """Run on a captured graph, in place; a graph without fake values is left as it is.

        What the graph returns stays fresh where it was, here as in `passfx.optimize`.
        """
        if all(tensor(node) is None for node in graph_module.graph.nodes):
            return PassResult(graph_module, False)
        before = graph_aliases(graph_module.graph)
        editor = self.run(graph_module)
        editor.finish()
        FreshResults.attach_to(graph_module, before)
        return PassResult(graph_module, editor.modified)


def explanation(kind: type) -> str:
    """What a pass does, in full."""
    return inspect.getdoc(kind) or ""


def summary(kind: type) -> str:
    """What a pass does, in one line."""
    return explanation(kind).partition("\n")[0]
