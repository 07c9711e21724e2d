"""What rewrites would add to the weights of a file, against the time that they save.

A constant goes only where nothing reads it any more, so a new one beside a shared one is stored in
full, and one that is computed from a packed one is stored as large as it is.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch.fx import Node
from torch.fx.node import map_arg

from passfx.graph.query import is_constant
from passfx.graph.shapes import nbytes

# A rewrite may add so much for nothing, and so much for each second of predicted time that it
# saves. Networks weigh about as much for the time they take on a processor (ResNet-50 3e9 bytes a
# second, BERT 9e9), so that a file gets larger by about the share by which it gets faster.
_FREE_BYTES = 4096
_BYTES_PER_SECOND = 4e9


@dataclass(frozen=True, eq=False)
class Addition:
    """What one rewrite would add to a file.

    Attributes:
        at: its place.
        nodes: the operators that go, in topological order.
        added: the bytes of the new constants.
        seconds: the predicted time that it saves.
        made: values among what the operators read that other rewrites make constants.
    """

    at: Node
    nodes: Sequence[Node]
    added: int
    seconds: float
    made: frozenset[Node] = frozenset()

    @cached_property
    def constants(self) -> set[Node]:
        """The constants that the operators read."""
        return {read for node in self.nodes for read in node.all_input_nodes if is_constant(read)}

    @cached_property
    def key(self) -> tuple[int, str]:
        """Rewrites of one key make equal constants, as of a layer that is called twice."""
        names = {node: node.name for node in self.made}
        names |= {node: f"%{place}" for place, node in enumerate(self.nodes)}
        names |= {node: str(node.target) for node in self.constants}
        calls = [(str(node.target), node.args, dict(node.kwargs)) for node in self.nodes]
        return self.added, str(map_arg(calls, lambda node: names.get(node, "x")))


def too_large(additions: Iterable[Addition]) -> dict[Addition, str]:
    """The rewrites that would make the file larger by more than their gain, with the figures.

    They are weighed together: equal constants count once, and a constant that several rewrites
    read is freed by all of them or by none.
    """
    kept, refused = list(additions), dict[Addition, str]()
    while found := dict(_too_large(kept, refused)):
        refused |= found
        kept = [item for item in kept if item not in found]
    return refused


def _too_large(kept: list[Addition], refused: Iterable[Addition]) -> Iterator[tuple[Addition, str]]:
    gone = {node for item in kept for node in item.nodes}
    gone -= {node for item in refused for node in item.nodes}
    equals = Counter(item.key for item in kept)
    readers = Counter(read for item in kept for read in item.constants)
    shares = {
        read: nbytes(read) / count for read, count in readers.items() if gone.issuperset(read.users)
    }
    for item in kept:
        freed = sum(shares.get(read, 0.0) for read in item.constants)
        growth = item.added / equals[item.key] - freed
        if growth > _FREE_BYTES + max(item.seconds, 0.0) * _BYTES_PER_SECOND:
            saved = f"{item.seconds * 1e6:.1f} µs"
            yield item, f"would make the file {_readable(growth)} larger to save {saved}"


def _readable(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
