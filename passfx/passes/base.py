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

from passfx.graph.editor import Certify, Editor, Match, Undone
from passfx.graph.query import tensor
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
        return editor

    def __call__(self, graph_module: GraphModule) -> PassResult:
        """Run on a captured graph, in place; a graph without fake values is left as it is."""
        if all(tensor(node) is None for node in graph_module.graph.nodes):
            return PassResult(graph_module, False)
        editor = self.run(graph_module)
        editor.finish()
        return PassResult(graph_module, editor.modified)


def explanation(kind: type) -> str:
    """What a pass does, in full."""
    return inspect.getdoc(kind) or ""


def summary(kind: type) -> str:
    """What a pass does, in one line."""
    return explanation(kind).partition("\n")[0]
