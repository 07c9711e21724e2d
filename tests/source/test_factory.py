"""file.py:factory and package.module:factory: arguments, and what goes wrong."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from passfx.errors import SourceError
from passfx.source.load import load_source
from passfx.source.spec import SourceSpec
from tests.source.nets import FILE


def test_file_and_factory(net: Path) -> None:
    source = load_source(SourceSpec(f"{net}:build", arguments={"width": 6}))
    assert source.name == f"{net}:build"
    assert isinstance(source.model, nn.Module)
    assert source.model.conv.out_channels == 6
    assert [item.shape for item in source.args] == [(1, 3, 6, 7)]
    assert source.kwargs == {}


def test_class_is_a_factory(net: Path) -> None:
    source = load_source(SourceSpec(f"{net}:Net", arguments={"kernel": (1, 3), "norm": False}))
    assert source.model.conv.kernel_size == (1, 3)
    assert isinstance(source.model.norm, nn.Identity)


def test_module_instance_is_taken_as_it_is(net: Path) -> None:
    assert load_source(SourceSpec(f"{net}:ready")).model.conv.out_channels == 5
    with pytest.raises(SourceError, match="is a module, not a factory: it takes no --arg"):
        load_source(SourceSpec(f"{net}:ready", arguments={"width": 3}))


def test_file_may_import_its_neighbours(net: Path) -> None:
    other = net.with_name("other.py")
    other.write_text("from net import Net, example_inputs\ndef build(): return Net(7)\n")
    assert load_source(SourceSpec(f"{other}:build")).model.conv.out_channels == 7


def test_package_and_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zoo_of_tests").mkdir()
    (tmp_path / "zoo_of_tests" / "__init__.py").write_text("")
    (tmp_path / "zoo_of_tests" / "parts.py").write_text(FILE)
    (tmp_path / "zoo_of_tests" / "nets.py").write_text(
        "import torch\nfrom .parts import Net\n"
        "def build(width): return Net(width)\n"
        "def example_inputs(): return torch.zeros(2, 3, 4, 4)\n"
    )
    monkeypatch.chdir(tmp_path)
    source = load_source(SourceSpec("zoo_of_tests.nets:build", arguments={"width": 9}))
    assert source.model.conv.out_channels == 9
    assert source.args[0].shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "missing a required argument: 'width'"),
        ({"width": 3}, "missing a required argument: 'depth'"),
        ({"width": 3, "depth": 1, "dpth": 1}, "unexpected keyword argument 'dpth'"),
    ],
)
def test_arguments_that_the_factory_does_not_take(
    net: Path, arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SourceError, match=f"{reason}; it takes width, depth, each given as --arg"):
        load_source(SourceSpec(f"{net}:needs", arguments=arguments))


def test_failing_factory_is_placed_in_the_users_own_code(net: Path) -> None:
    line = FILE[: FILE.index("groups=2")].count("\n") + 1
    with pytest.raises(SourceError, match=rf"invents raised ValueError.*net\.py:{line}\)$"):
        load_source(SourceSpec(f"{net}:invents"))
    with pytest.raises(SourceError, match="leaves raised SystemExit: goodbye"):
        load_source(SourceSpec(f"{net}:leaves"))
    with pytest.raises(SourceError, match=r"number returned int, not a torch\.nn\.Module"):
        load_source(SourceSpec(f"{net}:number"))


def test_file_that_does_not_import(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import torch\n\ndef build(:\n    pass\n")
    with pytest.raises(SourceError) as caught:
        load_source(SourceSpec(f"{path}:build"))
    assert str(caught.value).endswith(f"raised SyntaxError: invalid syntax ({path}:3)")
    path.write_text("\nimport not_installed_anywhere\n")
    with pytest.raises(SourceError, match=rf"No module named 'not_installed_anywhere' \({path}:2"):
        load_source(SourceSpec(f"{path}:build"))
