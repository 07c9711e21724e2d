"""Sources: the five forms, their arguments, weights and inputs, and what goes wrong with them."""

import random
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from passfx.errors import SourceError
from passfx.source.inputs import InputShape, parse_argument, parse_input_shape
from passfx.source.load import load_source
from passfx.source.spec import SourceSpec
from passfx.source.weights import load_weights

FILE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4, kernel=(3, 3), norm=True, name="net"):
        super().__init__()
        self.conv = nn.Conv2d(3, width, kernel, padding="same")
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.name = name

    def forward(self, x):
        return self.norm(self.conv(x))

def build(width=4):
    return Net(width)

def build_half():
    return Net().half()

def needs(width, depth):
    return Net(width)

def invents(width=4):
    return nn.Conv2d(3, 5, 3, groups=2)

def leaves():
    raise SystemExit("goodbye")

def number():
    return 3

ready = Net(5)
"""


@pytest.fixture(autouse=True)
def _clean_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """What a source imports stays out of the tests that follow."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(FILE + "\ndef example_inputs():\n    return torch.randn(1, 3, 6, 7)\n")
    return path


def write(path: Path, inputs: str) -> Path:
    path.write_text(f"{FILE}\ndef example_inputs():\n    return {inputs}\n")
    return path


# the five forms


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


def test_program_saved_by_torch_export(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    model, x = nn.Linear(3, 2).eval(), torch.randn(4, 3)
    torch.export.save(torch.export.export(model, (x,)), path)
    program = load_source(SourceSpec(str(path))).model
    torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=0)
    with pytest.raises(SourceError, match="finished program: it takes no --arg and no --weights"):
        load_source(SourceSpec(str(path), arguments={"width": 3}))
    shaped = load_source(SourceSpec(str(path), input_shapes=["4x3"]))
    assert shaped.args[0].shape == (4, 3)


def test_timm_model_has_its_declared_size() -> None:
    source = load_source(SourceSpec("timm:resnet10t"))
    assert source.args[0].shape == (1, 3, 176, 176)


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [
        ("resnet10t", {"in_chans": 1, "num_classes": 3}, (1, 1, 176, 176)),
        ("test_vit", {"img_size": 96}, (1, 3, 96, 96)),
        ("test_vit", {"img_size": (96, 64)}, (1, 3, 96, 64)),
    ],
)
def test_timm_inputs_follow_the_arguments(
    name: str, arguments: dict[str, Any], shape: tuple[int, ...]
) -> None:
    source = load_source(SourceSpec(f"timm:{name}", arguments=arguments))
    assert source.args[0].shape == shape
    with torch.no_grad():
        source.model.eval()(*source.args)


@pytest.mark.parametrize(("name", "size"), [("squeezenet1_1", 224), ("inception_v3", 299)])
def test_torchvision_model_has_its_declared_size(name: str, size: int) -> None:
    assert load_source(SourceSpec(f"torchvision:{name}")).args[0].shape == (1, 3, size, size)


def test_torchvision_model_without_a_declared_size() -> None:
    name = "torchvision:lraspp_mobilenet_v3_large"
    with pytest.raises(SourceError, match="give --input-shape 1x3x224x224$"):
        load_source(SourceSpec(name))
    source = load_source(SourceSpec(name, input_shapes=["1x3x64x64"]))
    assert source.args[0].shape == (1, 3, 64, 64)


@pytest.mark.parametrize("name", ["timm:resnt18", "torchvision:resnt18"])
def test_unknown_zoo_model_suggests_another(name: str) -> None:
    with pytest.raises(SourceError, match=r"has no model 'resnt18'; did you mean resnet18,"):
        load_source(SourceSpec(name))


def test_absent_zoo_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SourceError, match=r"timm is not installed: pip install 'passfx\[zoo\]'"):
        load_source(SourceSpec("timm:resnet18"))


# inputs


@pytest.mark.parametrize(
    ("inputs", "args", "kwargs"),
    [
        ("torch.ones(1, 3, 4, 4)", [(1, 3, 4, 4)], {}),
        ("(torch.ones(1, 3), torch.ones(2))", [(1, 3), (2,)], {}),
        ("[torch.ones(1, 3)]", [(1, 3)], {}),
        ("{'x': torch.ones(5)}", [], {"x": (5,)}),
    ],
)
def test_example_inputs_forms(
    tmp_path: Path, inputs: str, args: list[Any], kwargs: dict[str, Any]
) -> None:
    source = load_source(SourceSpec(f"{write(tmp_path / 'net.py', inputs)}:build"))
    assert [item.shape for item in source.args] == args
    assert {name: item.shape for name, item in source.kwargs.items()} == kwargs


def test_example_inputs_may_be_a_value(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(FILE + "\nexample_inputs = torch.ones(1, 3, 4, 4)\n")
    assert load_source(SourceSpec(f"{path}:build")).args[0].shape == (1, 3, 4, 4)


def test_input_shapes_go_before_example_inputs(net: Path) -> None:
    source = load_source(SourceSpec(f"{net}:build", input_shapes=["2x3x4x4"]))
    assert [item.shape for item in source.args] == [(2, 3, 4, 4)]


def test_named_input_shapes_are_keywords(net: Path) -> None:
    shapes = ["1x3x4x4", "mask:1,1,4,4"]
    source = load_source(SourceSpec(f"{net}:build", input_shapes=shapes))
    assert [item.shape for item in source.args] == [(1, 3, 4, 4)]
    assert {name: item.shape for name, item in source.kwargs.items()} == {"mask": (1, 1, 4, 4)}


def test_random_inputs_have_the_dtype_of_the_model(net: Path) -> None:
    shapes = ["1x3x4x4"]
    assert (
        load_source(SourceSpec(f"{net}:build_half", input_shapes=shapes)).args[0].dtype
        == torch.float16
    )
    assert (
        load_source(SourceSpec(f"{net}:build", input_shapes=shapes)).args[0].dtype == torch.float32
    )


def test_no_example_inputs(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(FILE)
    with pytest.raises(SourceError, match="--input-shape 1x3x224x224, or define example_inputs"):
        load_source(SourceSpec(f"{path}:build"))


def test_failing_example_inputs_are_placed(tmp_path: Path) -> None:
    path = write(tmp_path / "net.py", "torch.ones(1) / nothing")
    line = len(path.read_text().splitlines())
    with pytest.raises(SourceError, match=rf"example_inputs\(\) of .* NameError.*net.py:{line}\)"):
        load_source(SourceSpec(f"{path}:build"))


@pytest.mark.parametrize(
    ("text", "name", "sizes"),
    [
        ("1x3x224x224", None, (1, 3, 224, 224)),
        ("1,3,8,8", None, (1, 3, 8, 8)),
        ("x:2x5", "x", (2, 5)),
        ("mask:7", "mask", (7,)),
    ],
)
def test_input_shape(text: str, name: str | None, sizes: tuple[int, ...]) -> None:
    assert parse_input_shape(text) == InputShape(name, sizes)


@pytest.mark.parametrize("text", ["", "x:", "1x3x", "1x-3", "0x3", "1*3", "axb", "1x3:x", "1.5x2"])
def test_wrong_input_shape(text: str) -> None:
    with pytest.raises(SourceError, match=r"not of the form \[NAME:\]1x3x224x224"):
        parse_input_shape(text)


# factory arguments


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=8", 8),
        ("a=-0.5", -0.5),
        ("a=(3, 3)", (3, 3)),
        ("a=true", True),
        ("a=False", False),
        ("a=none", None),
        ("a='8'", "8"),
        ("a=relu", "relu"),
        ("a=x=y", "x=y"),
        ("a=", ""),
        ("a={'k': [1]}", {"k": [1]}),
    ],
)
def test_argument(text: str, value: Any) -> None:
    key, parsed = parse_argument(text)
    assert key == "a"
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["width", "=3", "a b=3", "3=a"])
def test_wrong_argument(text: str) -> None:
    with pytest.raises(SourceError, match="not of the form key=value"):
        parse_argument(text)


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


# what else goes wrong


@pytest.mark.parametrize("text", ["resnet18", "net.py", ":build", "net.py:", "a:b/c", ""])
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


def test_no_program(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_text("not a program")
    with pytest.raises(SourceError, match=r"net\.pt2 is not a program saved with torch\.export"):
        load_source(SourceSpec(str(path)))


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


# weights


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


# randomness


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


def test_zoo_that_does_not_import_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> types.ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(SourceError, match="nms does not exist; torch and torchvision must be"):
        load_source(SourceSpec("torchvision:resnet18"))
