"""The smallest network that still fails: steps, results and settings are left out one by one."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.fuzz.check import Outcome
from tests.fuzz.network import Network, Part, Step


def minimise(network: Network, judge: Callable[[Network], Outcome]) -> Network:
    """A network that fails as this one does, and of which nothing more can be left out."""
    wanted = _kind(judge(network))
    while smaller := next((s for s in _smaller(network) if _kind(judge(s)) == wanted), None):
        network = smaller
    return network


def _kind(outcome: Outcome) -> tuple[str, str]:
    """What makes two failures one: the kind, and how the message of an error begins."""
    return outcome.kind, outcome.why[:22] if outcome.kind == "error" else ""


def _smaller(network: Network) -> Iterator[Network]:
    """Networks with one thing less, those with much less first."""
    first, size, steps = len(network.inputs), _size(network), network.steps
    results, fixed = network.results, (replace(item, dynamic=()) for item in network.inputs)
    ends = ((first + number,) for number in range(len(steps)))
    fewer = (results[:n] + results[n + 1 :] for n in range(len(results)))
    reads = ((number, read) for number, step in enumerate(steps) for read in step.reads)
    candidates = (
        *(replace(network, results=end, form="single") for end in ends),
        *(replace(network, results=kept) for kept in fewer),
        *(without(network, number, read) for number, read in reads),
        *(replace(network, steps=_changed(steps, n, item)) for n, item in _simpler(steps)),
        *(
            replace(network, parts=_changed(network.parts, *pair))
            for pair in _simpler(network.parts)
        ),
        replace(network, inputs=tuple(fixed)),
    )
    for candidate in candidates:
        if candidate.results and _size(pruned := candidate.pruned()) < size:
            yield pruned


def _size(network: Network) -> tuple[int, ...]:
    settings = sum(len(item.settings) for item in (*network.steps, *network.parts))
    dynamic = sum(len(item.dynamic) for item in network.inputs)
    return len(network.steps), len(network.results), len(network.inputs), settings, dynamic


def without(network: Network, position: int, read: int) -> Network:
    """The network without one step, whose place is taken by a value that it reads."""
    number = len(network.inputs) + position

    def place(value: int) -> int:
        value = read if value == number else value
        return value - (value > number)

    steps = network.steps[:position] + network.steps[position + 1 :]
    return replace(
        network,
        steps=tuple(replace(step, reads=tuple(map(place, step.reads))) for step in steps),
        results=tuple(map(place, network.results)),
    )


def _simpler(items: tuple[Step, ...] | tuple[Part, ...]) -> Iterator[tuple[int, Step | Part]]:
    for position, item in enumerate(items):
        for number in range(len(item.settings)):
            kept = item.settings[:number] + item.settings[number + 1 :]
            yield position, replace(item, settings=kept)


def _changed(items: tuple, position: int, item: Step | Part) -> tuple:  # type: ignore[type-arg]
    return (*items[:position], item, *items[position + 1 :])
