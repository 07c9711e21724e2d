"""A state dict from a file into a model."""

from pathlib import Path
from typing import Any

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
        f"{tmp_path / 'w.pt'} does not fit Sequential: missing: 0.bias; unexpected: extra; "
        "of another shape: 0.weight (4, 2) instead of (3, 2)"
    )
    assert all(map(torch.equal, weights_of(fresh), before))


def test_many_keys_are_not_all_named(tmp_path: Path, fresh: nn.Module) -> None:
    torch.save({f"k{number}": torch.zeros(1) for number in range(9)}, tmp_path / "w.pt")
    with pytest.raises(SourceError, match="unexpected: k0, k1, k2, k3, k4 and 4 more$"):
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
