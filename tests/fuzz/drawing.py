"""Draws networks: every step is run as it is drawn, so that what does not fit is drawn again."""

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests.fuzz.network import Input, Network, Part, Step, filled, prelude, tensors_of

_ELEMENTS, _LARGEST = 6000, 300.0


class Rejected(Exception):
    """What was drawn does not fit; something else is drawn instead."""


class Drawer:
    """A network in the making, with the values that it has on its example inputs."""

    def __init__(self, rng: random.Random, inputs: tuple[Input, ...], seed: int) -> None:
        self.rng, self.inputs, self.seed = rng, inputs, seed
        self.parts: list[Part] = []
        self.steps: list[Step] = []
        self.names = prelude()
        self.owner = SimpleNamespace()
        torch.manual_seed(seed)
        self.given = [eval(item.text, self.names) for item in inputs]
        self.values: list[Any] = [item.clone() for item in self.given]
        self.is_dynamic = any(item.dynamic for item in inputs)

    def chance(self, share: float) -> bool:
        """True for a share of the draws."""
        return self.rng.random() < share

    def pick(self, fits: Callable[[Tensor], bool], *, new: bool = True) -> int:
        """A value that fits, rather a new one than an old one."""
        found = [n for n, v in enumerate(self.values) if isinstance(v, Tensor) and fits(v)]
        if not found:
            raise Rejected("no value fits")
        weights = [(position + 1) ** (2 if new else 0) for position in range(len(found))]
        return self.rng.choices(found, weights)[0]

    def floating(self, *ndims: int) -> int:
        """A float64 value, of one of these numbers of dimensions."""
        return self.pick(lambda v: v.dtype == torch.float64 and (not ndims or v.ndim in ndims))

    def image(self) -> int:
        """A batch of channels over one to three spatial dimensions."""
        return self.floating(3, 4, 5)

    def own(self, text: str, **settings: Any) -> int:
        """A new part."""
        made = self._eval(filled(Part(text, tuple(settings.items()))))
        if isinstance(made, nn.Module):
            made = made.double().eval()
            self.names["randomized"](made)
        setattr(self.owner, f"part{len(self.parts)}", made)
        self.parts.append(Part(text, tuple(settings.items())))
        return len(self.parts) - 1

    def step(self, text: str, *reads: int, part: int | None = None, **settings: Any) -> int:
        """A new value."""
        made = Step(text, reads, tuple(settings.items()), part)
        try:
            value = self._run(made)
            written = self.values if made.writes else [value]
            if not all(map(_is_sound, tensors_of(written))):
                raise Rejected("too large, empty or not finite")
        except Rejected:
            if made.writes:
                self._replay()
            raise
        self.values.append(value)
        self.steps.append(made)
        return len(self.values) - 1

    def layer(self, text: str, read: int, **settings: Any) -> int:
        """A new module and its result."""
        return self.step("{part}({0})", read, part=self.own(text, **settings))

    def is_foreign(self, value: Tensor) -> bool:
        """Whether a tensor shares memory with an input or a part."""
        owned: list[Tensor] = []
        for item in vars(self.owner).values():
            owned += [item] if isinstance(item, Tensor) else [*item.parameters(), *item.buffers()]
        stored = {
            item.untyped_storage().data_ptr() for item in (*owned, *self.values[: self.first])
        }
        return value.untyped_storage().data_ptr() in stored

    @property
    def first(self) -> int:
        """The number of inputs, which is the number of the first step's value."""
        return len(self.inputs)

    def _run(self, step: Step) -> Any:
        reads = [f"values[{read}]" for read in step.reads]
        return self._eval(filled(step, *reads, part=f"self.part{step.part}"))

    def _eval(self, text: str) -> Any:
        names = self.names | {"values": self.values, "self": self.owner}
        try:
            with torch.no_grad():
                return eval(text, names)
        except Exception as error:
            raise Rejected(f"{text}: {error}") from error

    def _replay(self) -> None:
        """The values as they were before a step that wrote in place."""
        self.values = [item.clone() for item in self.given]
        for step in self.steps:
            self.values.append(self._run(step))


def _is_sound(value: Tensor) -> bool:
    if not 0 < value.numel() <= _ELEMENTS:
        return False
    if not value.is_floating_point():
        return True
    return bool(value.isfinite().all()) and float(value.abs().max()) <= _LARGEST


def draw_network(seed: int, *, dynamic: bool | None = None, onnx: bool = False) -> Network:
    """The network of a seed; a third have dynamic sizes unless `dynamic` says otherwise."""
    from tests.fuzz.operators import FAMILIES, operators_of

    rng = random.Random(seed)
    is_dynamic = rng.random() < 0.33 if dynamic is None else dynamic
    family = rng.choice(FAMILIES)
    drawer = Drawer(rng, _inputs(rng, family, is_dynamic), seed)
    operators = operators_of(family)
    wanted = rng.randint(4, 12)
    for _ in range(20 * wanted):
        if len(drawer.steps) >= wanted:
            break
        count, parts = len(drawer.steps), len(drawer.parts)
        try:
            rng.choices([item for item, _ in operators], [share for _, share in operators])[0](
                drawer
            )
        except Rejected:
            if count == len(drawer.steps):
                del drawer.parts[parts:]
    return _finished(drawer)


def _inputs(rng: random.Random, family: str, is_dynamic: bool) -> tuple[Input, ...]:
    batch = rng.randint(2 if is_dynamic else 1, 3)
    if family == "vector":
        shape: tuple[int, ...] = batch, rng.randint(2, 8)
    elif family == "tokens":
        shape = batch, rng.randint(3, 7)
    elif family == "sequence":
        shape = batch, rng.randint(3, 7), rng.choice((4, 6, 8))
    else:
        rank = int(family[-1])
        sizes = (rng.randint(5, 13) if rank < 3 else rng.randint(3, 6) for _ in range(rank))
        shape = batch, rng.randint(1, 6), *sizes
    axes = [0, *(range(2, len(shape)) if family.startswith("image") else range(1, 2))]
    chosen = {axis for axis in axes if is_dynamic and rng.random() < 0.6 and shape[axis] > 1}
    if family == "vector":
        chosen &= {0}
    dynamic = tuple(sorted(chosen))
    inputs = [Input("tokens" if family == "tokens" else "float", shape, dynamic)]
    if rng.random() < 0.25:
        inputs.append(Input("float" if family != "tokens" else "mask", shape, dynamic))
    if rng.random() < 0.15:
        inputs.append(Input(rng.choice(("mask", "single")), shape, dynamic))
    return tuple(inputs)


def _finished(drawer: Drawer) -> Network:
    """What is returned: the last value, values that nothing reads, some twice, some inputs."""
    rng, values = drawer.rng, drawer.values
    read = {number for step in drawer.steps for number in step.reads}
    tensors = [n for n, value in enumerate(values) if isinstance(value, Tensor)]
    made = [n for n in tensors if n >= drawer.first]
    results = [n for n in made if n not in read and rng.random() < 0.8] or made[-1:] or tensors[:1]
    form = "single"
    if rng.random() < 0.3 and made:
        results.append(rng.choice(made))
    if rng.random() < 0.1:
        results.append(results[0])
    if rng.random() < 0.05:
        results.append(rng.choice(tensors[: drawer.first]))
    if len(results) > 1:
        form = rng.choice(("tuple", "tuple", "dict"))
    return Network(
        drawer.inputs, tuple(drawer.parts), tuple(drawer.steps), tuple(results), form, drawer.seed
    ).pruned()
