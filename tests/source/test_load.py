"""Sources as a whole: what is none, what is absent, and what random numbers are drawn from."""

import random
from pathlib import Path

import pytest
import torch
from torch import nn

from passfx.errors import SourceError
from passfx.source.load import load_source
from passfx.source.spec import SourceSpec


@pytest.mark.parametrize("text", [":build", "a:b/c", "", ":", "a b", "n" * 300])
def test_no_source(text: str) -> None:
    with pytest.raises(SourceError, match=r"is not a source: give file\.py:factory, .* file\.pt2"):
        load_source(SourceSpec(text))


def test_absent_things_are_named(net: Path) -> None:
    with pytest.raises(SourceError, match=r"the file .*gone\.py does not exist"):
        load_source(SourceSpec(f"{net.with_name('gone.py')}:build"))
    with pytest.raises(SourceError, match=r"gone\.pt2 does not exist"):
        load_source(SourceSpec(str(net.with_name("gone.pt2"))))
    with pytest.raises(SourceError, match="there is no module 'no_such_package.nets' to import"):
        load_source(SourceSpec("no_such_package.nets:build"))
    with pytest.raises(SourceError, match=r"net\.py has no factory 'biuld'; it has build"):
        load_source(SourceSpec(f"{net}:biuld"))
    with pytest.raises(SourceError, match=r"net\.py has no factory 'torch'"):
        load_source(SourceSpec(f"{net}:torch"))


def test_seed_decides_weights_and_inputs(net: Path) -> None:
    def drawn(seed: int, shapes: tuple[str, ...]) -> list[torch.Tensor]:
        source = load_source(SourceSpec(f"{net}:build", seed=seed, input_shapes=shapes))
        assert isinstance(source.model, nn.Module)
        return [source.model.conv.weight, *source.args]

    for shapes in ((), ("1x3x5x5",)):
        torch.manual_seed(11)
        first = drawn(3, shapes)
        torch.manual_seed(12)
        assert all(map(torch.equal, drawn(3, shapes), first))
        assert not any(map(torch.equal, drawn(4, shapes), first))


def test_callers_random_state_is_left_alone(net: Path) -> None:
    before = torch.random.get_rng_state(), random.getstate()
    load_source(SourceSpec(f"{net}:build", input_shapes=["1x3x5x5"]))
    load_source(SourceSpec(f"{net}:build"))
    with pytest.raises(SourceError):
        load_source(SourceSpec(f"{net}:invents"))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]
