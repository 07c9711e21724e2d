"""A node as one affine form of an earlier node, and whether that takes fewer operators."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import getitem

from torch.fx import Node

from passfx.analysis.cost import form_bytes, form_seconds, node_seconds
from passfx.analysis.forms import Form, fitted
from passfx.analysis.growth import Addition
from passfx.graph.ops import ARITHMETIC, PADS, RESHAPES, SPLITS, aten
from passfx.graph.query import is_call, is_constant
from passfx.graph.shapes import fixed, known_tensor, nbytes, same_sizes
from passfx.target import Profile

_MOVES = (*PADS, aten.slice, *RESHAPES, *SPLITS)
_SCALES = (aten.neg, aten.batch_norm, aten.pixel_unshuffle, aten.cat)
_NAMED = (aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)


@dataclass(frozen=True)
class Candidate:
    """A node as one form of a source.

    Attributes:
        node: the node.
        form: its value as a form of `form.source`, or of that and a shift.
        span: the nodes that the form replaces, the node itself included.
        any_size: whether the form is exact for every spatial size, not only for the captured one.
        first: a map of each channel of the source whose shift, by its scale, is added to it first:
            scale·x + shift = scale·(x + shift/scale), and a zero border lets the scale through.
    """

    node: Node
    form: Form
    span: frozenset[Node]
    any_size: bool
    first: Form | None = None

    @property
    def key(self) -> tuple[Node, int, Form | None]:
        """Candidates of one key can be added."""
        return self.form.source, self.form.rank, self.first

    @cached_property
    def written(self) -> Form:
        """The form as it is written for the captured size."""
        return fitted(self.form)

    @cached_property
    def holds_at_any_size(self) -> bool:
        """Whether what is written is exact for every size."""
        same = self.written.geometry == self.form.geometry
        return self.any_size and same and not self.is_reshaped

    @cached_property
    def is_reshaped(self) -> bool:
        """Whether the leading axes, which a linear form does not see, differ from the source's."""
        before, after = (known_tensor(item).shape[:-1] for item in (self.form.source, self.node))
        return not self.form.rank and not same_sizes(before, after)

    @cached_property
    def is_shorter(self) -> bool:
        """Whether the form takes fewer operators than its span.

        What only moves stays as it is, and what only moves and scales becomes no layer. The parts
        of a split are put together again or stay, as those of merged siblings do. A slice, pad,
        reshape or shift besides counts, and so does padding by name inside its operator; a scale
        and shift of the last axis of more than two take a product and a sum.
        """
        operators = [node for node in self.span if node.target is not getitem]
        geometry, shape = self.written.geometry, known_tensor(self.node).shape
        splits = len(operators) < len(self.span)
        if all(is_call(node, *_MOVES) for node in operators) or (splits and not self.form.picks):
            return False
        is_map = geometry.uncut.is_pointwise
        if not is_map and all(map(_only_moves_and_scales, operators)):
            return False
        if self.is_reshaped and list(map(fixed, shape)).count(None) > 1:
            return False
        both = geometry.biased and is_map and not geometry.axes and len(shape) > 2
        named = sum(is_call(node) and node.target in _NAMED for node in operators)
        besides = geometry.is_padded_apart + self.is_reshaped + both + (self.first is not None)
        return len(operators) + named > 1 + geometry.crops + besides

    def seconds(self, profile: Profile) -> float:
        """The predicted time of the form."""
        source = self.form.source
        shift = profile.seconds(0, 2 * nbytes(source)) if self.first is not None else 0.0
        return form_seconds(self.written.geometry, source, self.node, profile) + shift

    def addition(self, profile: Profile) -> Addition:
        """What the form would add to the file."""
        nodes = sorted(self.span)
        saved = sum(node_seconds(item, profile) for item in nodes) - self.seconds(profile)
        return Addition(self.node, nodes, form_bytes(self.written.geometry, self.node), saved)

    def readers(self) -> Mapping[Node, list[Node]]:
        """The inner nodes that are read outside the span, and what reads them."""
        return {
            inner: users
            for inner in self.span - {self.node}
            if (users := [user for user in inner.users if user not in self.span])
        }


def _only_moves_and_scales(node: Node) -> bool:
    """Whether an operator makes each element of one element."""
    if is_call(node, *ARITHMETIC):
        return sum(not is_constant(read) for read in node.all_input_nodes) == 1
    return is_call(node, *_MOVES, *_SCALES)
