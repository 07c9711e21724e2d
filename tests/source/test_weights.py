"""A state dict from a file into a model."""

import argparse
import datetime
import decimal
import enum
import fractions
import functools
import os
import pathlib
import re
import sys
import types
import uuid
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from passfx.errors import SourceError
from passfx.source.weights import load_weights


def weights_of(model: nn.Module) -> list[torch.Tensor]:
    return [item.clone() for item in model.state_dict().values()]


@pytest.fixture
def trained() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


@pytest.fixture
def fresh() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_weights_from_a_file(
    tmp_path: Path, name: str, trained: nn.Module, fresh: nn.Module
) -> None:
    path = tmp_path / name
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(trained.state_dict(), path)
    else:
        torch.save(trained.state_dict(), path)
    load_weights(fresh, path)
    assert all(map(torch.equal, weights_of(fresh), weights_of(trained)))


@pytest.mark.parametrize(
    ("wrapper", "prefix"),
    [
        ("state_dict", ""),
        ("model_state_dict", ""),
        ("model", "module."),
        ("", "module."),
        ("", "_orig_mod."),
        ("", "module._orig_mod."),
    ],
)
def test_weights_of_a_checkpoint(
    tmp_path: Path, wrapper: str, prefix: str, trained: nn.Module, fresh: nn.Module
) -> None:
    state: dict[str, Any] = {prefix + key: item for key, item in trained.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pt")
    load_weights(fresh, tmp_path / "w.pt")
    assert all(map(torch.equal, weights_of(fresh), weights_of(trained)))


def test_prefix_that_belongs_to_the_model_is_kept(
    tmp_path: Path, trained: nn.Module, fresh: nn.Module
) -> None:
    torch.save(nn.ModuleDict({"module": trained}).state_dict(), tmp_path / "w.pt")
    load_weights(nn.ModuleDict({"module": fresh}), tmp_path / "w.pt")
    assert all(map(torch.equal, weights_of(fresh), weights_of(trained)))


def test_weights_that_do_not_fit_are_named(tmp_path: Path, fresh: nn.Module) -> None:
    before = weights_of(fresh)
    state = {"0.weight": torch.zeros(4, 2), "extra": torch.zeros(1), **fresh.state_dict()}
    state["0.weight"] = torch.zeros(4, 2)
    del state["0.bias"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(SourceError) as caught:
        load_weights(fresh, tmp_path / "w.pt")
    assert str(caught.value) == (
        f"{tmp_path / 'w.pt'} does not fit Sequential: missing: 0.bias (nearest: extra); "
        "unexpected: extra (nearest: 0.bias); "
        "of another shape or dtype: 0.weight (4, 2) instead of (3, 2); "
        "build the model with the arguments that it was trained with (--arg)"
    )
    assert all(map(torch.equal, weights_of(fresh), before))


def test_many_keys_are_not_all_named(tmp_path: Path, fresh: nn.Module) -> None:
    torch.save({f"k{number}": torch.zeros(1) for number in range(9)}, tmp_path / "w.pt")
    with pytest.raises(SourceError, match=r"unexpected: k0 \(.*k2 \(.*\) and 6 more$"):
        load_weights(fresh, tmp_path / "w.pt")


def test_pickled_module_is_refused(tmp_path: Path, trained: nn.Module, fresh: nn.Module) -> None:
    torch.save(trained, tmp_path / "w.pt")
    with pytest.raises(SourceError, match=r"could run any code; .*torch\.save\(model\.state_dict"):
        load_weights(fresh, tmp_path / "w.pt")


def test_pickle_does_not_run(tmp_path: Path, fresh: nn.Module) -> None:
    (tmp_path / "w.pt").write_bytes(f"cos\nmkdir\n(V{tmp_path / 'ran'}\ntR.".encode())
    with pytest.raises(SourceError):
        load_weights(fresh, tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"plain text", b"\x80\x04\x95"])
def test_unreadable_weights(tmp_path: Path, name: str, content: bytes, fresh: nn.Module) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=r"w\.(pt|safetensors) (cannot be read|is not a safet)"):
        load_weights(fresh, tmp_path / name)


def test_damaged_names_in_an_archive(tmp_path: Path, trained: nn.Module, fresh: nn.Module) -> None:
    path = tmp_path / "weights.pth"
    torch.save(trained.state_dict(), path)
    path.write_bytes(path.read_bytes().replace(b"weights/byteorder", b"weights/byte\xff\xa1der"))
    with pytest.raises(SourceError, match="weights.pth cannot be read by torch.load"):
        load_weights(fresh, path)


def test_damaged_weights(tmp_path: Path, trained: nn.Module, fresh: nn.Module) -> None:
    path = tmp_path / "w.pt"
    torch.save(trained.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SourceError, match=r"w\.pt cannot be read by torch\.load \(RuntimeError\)"):
        load_weights(fresh, path)


def test_absent_weights_and_no_state_dict(tmp_path: Path, fresh: nn.Module) -> None:
    with pytest.raises(SourceError, match=r"the weights file .*gone\.pt does not exist"):
        load_weights(fresh, tmp_path / "gone.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(SourceError, match="holds no state dict"):
        load_weights(fresh, tmp_path / "list.pt")


# What trainers write.


class Settings:
    def __init__(self) -> None:
        self.width = 4


class Attributes(dict[str, Any]):
    pass


class Names(list[str]):
    pass


class Stage(enum.Enum):
    TRAINED = 1


HARMLESS = {
    "args": argparse.Namespace(lr=0.1, data=pathlib.PurePosixPath("/data")),
    "numpy": [np.float64(0.5), np.int64(3), np.dtype("float32"), np.arange(3)],
    "place": [pathlib.Path("a/b"), pathlib.PureWindowsPath("a")],
    "when": [datetime.datetime(2026, 1, 2), datetime.timedelta(3), datetime.date(2026, 1, 2)],
    "plain": [torch.Size([3]), torch.float16, torch.device("cpu"), OrderedDict(a=1), {1}, 2j, b"x"],
    "lists": [defaultdict(list, a=[1]), Attributes(a=1), Names("a"), Counter("ab"), deque([1, 2])],
    "own": [Settings(), Settings, Stage.TRAINED, functools.partial(print, "x"), print, range(3)],
    "slots": [slice(1), fractions.Fraction(1, 2), decimal.Decimal("0.1"), uuid.UUID(int=3)],
}


@pytest.mark.parametrize("name", [*HARMLESS, "all"])
@pytest.mark.parametrize("archive", [True, False])
def test_other_values_do_not_stop_it(
    tmp_path: Path, name: str, archive: bool, trained: nn.Module, fresh: nn.Module
) -> None:
    other = HARMLESS if name == "all" else {name: HARMLESS[name]}
    checkpoint = {"epoch": 3, **other, "model": trained.state_dict()}
    torch.save(checkpoint, tmp_path / "w.ckpt", _use_new_zipfile_serialization=archive)
    before = set(torch.serialization.get_safe_globals())
    (note,) = load_weights(fresh, tmp_path / "w.ckpt")
    assert set(torch.serialization.get_safe_globals()) == before
    assert note == f"weights from {tmp_path / 'w.ckpt'}: 'model'"
    assert all(map(torch.equal, weights_of(fresh), weights_of(trained)))


class Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.mark.parametrize("archive", [True, False])
def test_nothing_that_a_file_names_is_run(
    tmp_path: Path, archive: bool, trained: nn.Module, fresh: nn.Module
) -> None:
    path, ran = tmp_path / "w.pt", tmp_path / "ran"
    checkpoint = {"model": trained.state_dict(), "other": Runs(ran)}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=archive)
    load_weights(fresh, path)
    assert not ran.exists()
    torch.save({"model": trained.state_dict(), "other": os.system}, path)
    with pytest.raises(SourceError, match="could run any code"):
        load_weights(fresh, path)


@pytest.mark.parametrize(
    ("wrappers", "taken"),
    [
        (["optimizer", "model", "ema"], "'model'; 'ema' would fit too"),
        (["params_ema", "params"], "'params'; 'params_ema' would fit too"),
        (["ema.module", "model.module"], "'model.module'; 'ema.module' would fit too"),
        (["teacher", "student"], "'teacher'; 'student' would fit too"),
        (["model_ema", "discriminator"], "'discriminator'; 'model_ema' would fit too"),
        (["state_dict"], "'state_dict'"), (["net"], "'net'"), (["module"], "'module'"),
        (["pytorch.weights.best"], "'pytorch.weights.best'"),
    ],
)  # fmt: skip
def test_wrappers(
    tmp_path: Path, wrappers: list[str], taken: str, trained: nn.Module, fresh: nn.Module
) -> None:
    checkpoint: dict[str, Any] = {"epoch": 3, "loss": torch.tensor(0.5)}
    for number, wrapper in enumerate(wrappers):
        *outer, last = wrapper.split(".")
        place = checkpoint
        for name in outer:
            place = place.setdefault(name, {"updates": 3})
        place[last] = {key: item + number for key, item in trained.state_dict().items()}
        if wrapper == "optimizer":
            place[last] = torch.optim.AdamW(trained.parameters()).state_dict()
    torch.save(checkpoint, tmp_path / "w.pt")
    (note,) = load_weights(fresh, tmp_path / "w.pt")
    assert f": {taken}" in note
    name = taken.split("'")[1]
    for wrapper in (name, wrappers[-1], None):
        load_weights(fresh, tmp_path / "w.pt", wrapper)
        number = wrappers.index(wrapper or name)
        expected = [item + number for item in trained.state_dict().values()]
        assert all(map(torch.equal, weights_of(fresh), expected))


def test_part_that_fits_goes_before_the_usual_names(
    tmp_path: Path, trained: nn.Module, fresh: nn.Module
) -> None:
    checkpoint = {"model": nn.Linear(5, 5).state_dict(), "ema": trained.state_dict()}
    torch.save(checkpoint, tmp_path / "w.pt")
    assert load_weights(fresh, tmp_path / "w.pt")[0].endswith(": 'ema'")
    assert all(map(torch.equal, weights_of(fresh), weights_of(trained)))


@pytest.mark.parametrize("prefix", ["model.", "net.", "student.module.", "_orig_mod.", "0.0."])
def test_prefixes_of_all_keys(
    tmp_path: Path, prefix: str, trained: nn.Module, fresh: nn.Module
) -> None:
    state = {prefix + key: item for key, item in trained.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    (note,) = load_weights(fresh, tmp_path / "w.safetensors")
    assert note.endswith(f": all keys without the prefix {prefix!r}")
    assert all(map(torch.equal, weights_of(fresh), weights_of(trained)))


def test_average_of_torch(tmp_path: Path, trained: nn.Module, fresh: nn.Module) -> None:
    average = torch.optim.swa_utils.AveragedModel(trained)
    torch.save({"model_ema": average.state_dict()}, tmp_path / "w.pt")
    (note,) = load_weights(fresh, tmp_path / "w.pt")
    assert note.endswith(": 'model_ema' without the prefix 'module.'")
    assert all(map(torch.equal, weights_of(fresh), weights_of(trained)))


def test_prefix_of_some_keys_is_chosen_by_its_name(
    tmp_path: Path, trained: nn.Module, fresh: nn.Module
) -> None:
    """Lightning keeps the loss beside the model."""
    state = {f"model.{key}": item for key, item in trained.state_dict().items()}
    torch.save({"state_dict": {**state, "loss.weight": torch.ones(2)}}, tmp_path / "w.ckpt")
    with pytest.raises(SourceError, match=r"; --weights-key state_dict\.model takes a part that"):
        load_weights(fresh, tmp_path / "w.ckpt")
    load_weights(fresh, tmp_path / "w.ckpt", "state_dict.model")
    assert all(map(torch.equal, weights_of(fresh), weights_of(trained)))


def test_counters_and_second_names_may_be_missing(tmp_path: Path, trained: nn.Module) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight
            self.norm = nn.BatchNorm1d(3)

    saved, model = Tied(), Tied()
    safetensors.torch.save_model(saved, tmp_path / "w.safetensors")
    assert len(safetensors.torch.load_file(tmp_path / "w.safetensors")) == 6
    assert load_weights(model, tmp_path / "w.safetensors") == ()
    assert torch.equal(model.b.weight, saved.a.weight)
    state = {k: v for k, v in saved.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pt")
    assert load_weights(model, tmp_path / "w.pt") == ()
    frozen = nn.Sequential(nn.Linear(2, 3))
    torch.save({**frozen.state_dict(), "0.num_batches_tracked": torch.tensor(3)}, tmp_path / "w.pt")
    assert load_weights(frozen, tmp_path / "w.pt") == ()


def test_not_strict(tmp_path: Path, trained: nn.Module, fresh: nn.Module) -> None:
    state, kept = trained.state_dict(), fresh.state_dict()["0.bias"].clone()
    state["0.biases"] = state.pop("0.bias")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(SourceError) as caught:
        load_weights(fresh, tmp_path / "w.pt")
    assert str(caught.value) == (
        f"{tmp_path / 'w.pt'} does not fit Sequential: missing: 0.bias (nearest: 0.biases); "
        "unexpected: 0.biases (nearest: 0.bias); --no-strict (strict=False) loads the 6 of 7 that "
        "both have"
    )
    notes = load_weights(fresh, tmp_path / "w.pt", strict=False)
    assert notes == (
        f"{tmp_path / 'w.pt'} lacks 0.bias: as the model was built",
        f"{tmp_path / 'w.pt'} has 0.biases besides: left out",
    )
    assert torch.equal(fresh[0].weight, trained[0].weight)
    assert torch.equal(fresh[0].bias, kept)
    torch.save({"a.b": torch.zeros(3)}, tmp_path / "w.pt")
    with pytest.raises(SourceError, match="does not fit Sequential: missing"):
        load_weights(fresh, tmp_path / "w.pt", strict=False)  # nothing is loaded
    torch.save({**trained.state_dict(), "0.bias": torch.zeros(4)}, tmp_path / "w.pt")
    with pytest.raises(SourceError, match=r"another shape or dtype: 0\.bias \(4,\) instead of"):
        load_weights(fresh, tmp_path / "w.pt", strict=False)


def test_three_nearest_keys(tmp_path: Path, fresh: nn.Module) -> None:
    state = {f"0.{name}": torch.zeros(3) for name in ("bia", "bias_", "b", "weight", "running")}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(SourceError, match=r"missing: 0\.bias \(nearest: 0\.bias_, 0\.bia, 0\.b\)"):
        load_weights(fresh, tmp_path / "w.pt")


def test_integers_are_no_weights(tmp_path: Path, trained: nn.Module, fresh: nn.Module) -> None:
    """Those of 8 bits need scales that the model does not have."""
    state = {key: item.to(torch.int8) for key, item in trained.state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(SourceError, match=r"0\.weight int8 instead of float32"):
        load_weights(fresh, tmp_path / "w.pt")
    torch.save({key: item.half() for key, item in state.items()}, tmp_path / "w.pt")
    with pytest.raises(SourceError, match="num_batches_tracked float16 instead of int64"):
        load_weights(fresh, tmp_path / "w.pt")
    halves = {key: item.half() if item.is_floating_point() else item
              for key, item in trained.state_dict().items()}  # fmt: skip
    torch.save(halves, tmp_path / "w.pt")
    load_weights(fresh, tmp_path / "w.pt")
    assert torch.equal(fresh[0].weight, trained[0].weight.half().float())


@pytest.mark.parametrize("inside", [True, False])
def test_pickled_modules_under_trust(
    tmp_path: Path, inside: bool, trained: nn.Module, fresh: nn.Module
) -> None:
    path = tmp_path / "w.pt"
    torch.save({"model": trained, "epoch": 3} if inside else trained, path)
    with pytest.raises(SourceError) as caught:
        load_weights(fresh, path)
    assert str(caught.value) == (
        f"{path} holds a whole pickled module (torch.nn.modules.container.Sequential), and loading "
        "that could run any code; load it with --trust-pickle (trust_pickle=True) if you trust "
        "where it comes from, or save the weights with torch.save(model.state_dict(), ...)"
    )
    notes = load_weights(fresh, path, trust_pickle=True)
    assert notes == ((f"weights from {path}: 'model'",) if inside else ())
    assert all(map(torch.equal, weights_of(fresh), weights_of(trained)))


def test_module_of_a_package_that_is_not_there(
    tmp_path: Path, trained: nn.Module, fresh: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = types.ModuleType("gone_package")
    package.Net = type("Net", (nn.Sequential,), {"__module__": "gone_package"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gone_package", package)
    torch.save(package.Net(*trained), tmp_path / "w.pt")
    monkeypatch.delitem(sys.modules, "gone_package")
    with pytest.raises(SourceError, match=r"pickled module \(gone_package\.Net\)"):
        load_weights(fresh, tmp_path / "w.pt")
    with pytest.raises(SourceError, match="objects of gone_package, which is not installed"):
        load_weights(fresh, tmp_path / "w.pt", trust_pickle=True)


def test_trust_is_not_used_where_it_is_not_needed(
    tmp_path: Path, trained: nn.Module, fresh: nn.Module
) -> None:
    ran = tmp_path / "ran"
    torch.save({"model": trained.state_dict(), "other": Runs(ran)}, tmp_path / "w.pt")
    load_weights(fresh, tmp_path / "w.pt", trust_pickle=True)
    assert not ran.exists()


def test_keys_that_are_not_there(tmp_path: Path, trained: nn.Module, fresh: nn.Module) -> None:
    path = tmp_path / "w.pt"
    torch.save({"model": trained.state_dict(), "epoch": 3, "x": {}}, path)
    for key, problem in {
        "modl": "has no 'modl' (--weights-key); did you mean model?",
        "optimizer": "has no 'optimizer' (--weights-key); it has model, epoch, x",
        "model.0.conv": "has no 'model.0.conv' (--weights-key); it has",
        "epoch": "holds no state dict (a mapping of names to tensors), but an int",
        "x": "holds no state dict (a mapping of names to tensors), but an empty mapping",
        "": "has no ''",
    }.items():
        with pytest.raises(SourceError, match=re.escape(problem)):
            load_weights(fresh, path, key)


def test_safetensors_under_another_name(
    tmp_path: Path, trained: nn.Module, fresh: nn.Module
) -> None:
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "w.ckpt")
    load_weights(fresh, tmp_path / "w.ckpt")
    assert all(map(torch.equal, weights_of(fresh), weights_of(trained)))


def test_files_that_hold_no_weights(tmp_path: Path, trained: nn.Module, fresh: nn.Module) -> None:
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(trained).save(tmp_path / "script.pt")
    with pytest.raises(SourceError, match=r"script\.pt is TorchScript, not a state dict; save its"):
        load_weights(fresh, tmp_path / "script.pt")
    torch.export.save(torch.export.export(trained, (torch.ones(2, 2),)), tmp_path / "program.pt2")
    with pytest.raises(SourceError, match=r"holds a program of torch\.export, not a state dict"):
        load_weights(fresh, tmp_path / "program.pt2")
    with pytest.raises(SourceError, match="is a folder; name the file in it"):
        load_weights(fresh, tmp_path)
