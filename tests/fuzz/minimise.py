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
    """What makes two failures one: the kind, and the class of an error."""
    return outcome.kind, outcome.why.split(":")[0] if outcome.kind == "error" else ""


def _smaller(network: Network) -> Iterator[Network]:
    """Networks with one thing less, those with much less first."""
    first, size = len(network.inputs), _size(network)
    candidates = (
        *(replace(network, results=(number,), form="single") for number in range(first, first + len(network.steps))),
        *(replace(network, results=network.results[:n] + network.results[n + 1 :]) for n in range(len(network.results))),
        *(without(network, number, read) for number, step in enumerate(network.steps) for read in step.reads),
        *(replace(network, steps=_changed(network.steps, n, item)) for n, item in _simpler(network.steps)),
        *(replace(network, parts=_changed(network.parts, n, item)) for n, item in _simpler(network.parts)),
        *(replace(network, inputs=tuple(replace(i, dynamic=()) for i in network.inputs)),),
    )  # fmt: skip
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
    return items[:position] + (item,) + items[position + 1 :]
