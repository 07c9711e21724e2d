"""Sizes that vary: what holds for them is enforced, told, proven at its ends, and never wrong."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import passfx
from passfx.errors import ExportError
from passfx.jobs.optimize import Optimized
from tests.models import randomize

ANY = Dim.DYNAMIC
HERE = Path(__file__).name


class Of(nn.Module):
    """A function of one tensor as a module."""

    def __init__(self, body: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.body, self.layers = body, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x, *self.layers)


class OfTwo(Of):
    """A function of two tensors as a module."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.body(x, y)


def trim(x: Tensor) -> Tensor:
    return x[:, :, :100] * 2


def pad_odd(x: Tensor) -> Tensor:
    return F.pad(x, (0, 1)) if x.shape[-1] % 2 else x


def long_only(x: Tensor) -> Tensor:
    return torch.relu(x) if x.shape[2] > 4 else x * 100


def add_equal(x: Tensor, y: Tensor) -> Tensor:
    return x + y if x.shape[0] == y.shape[0] else x * 0


def lone(x: Tensor) -> Tensor:
    return x * 0 if x.shape[2] == 1 else x + 1


def patches(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], 2, -1, 16) * 2


X = torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(0))
LAST = ({2: ANY},)
# body → a size that is refused, and the rule
TRACED: dict[str, tuple[Callable[[Tensor], Tensor], int, str]] = {
    "slice": (trim, 200, "at most 99"),
    "parity": (pad_odd, 9, "even"),
    "branch": (long_only, 3, "at least 5"),
    "one": (lone, 1, "at least 2"),
}


@pytest.mark.parametrize("name", TRACED)
def test_what_only_the_example_made_true_is_enforced(name: str, tmp_path: Path) -> None:
    body, wrong, text = TRACED[name]
    model = Of(body)
    optimized = passfx.optimize(model, (X,), dynamic_shapes=LAST)
    said = rf"input x has on axis 2 the size {wrong}; it must be {text}, because the graph"
    with pytest.raises(ValueError, match=said):
        optimized.module(torch.randn(1, 2, wrong))
    for size in (6, 8, 12, 30, 98):
        x = torch.randn(1, 2, size)
        assert torch.equal(optimized.module(x), model(x))
    (rule,) = optimized.report.to_dict()["rules"]
    assert (rule["input"], rule["axis"], rule["rule"], rule["origin"]) == ("x", 2, text, "traced")
    if name != "one":  # the tracer takes it for granted and notes no line
        assert HERE in rule["line"]
    if name in ("parity", "branch"):
        assert rule["line"].endswith(f"{HERE}:{body.__code__.co_firstlineno + 1}")

    path = tmp_path / "model.onnx"
    with pytest.raises(ExportError, match=f"axis 2 of x must be {text}, .* --allow-guards"):
        optimized.export(path)
    assert not path.exists()
    report = optimized.export(path, allow_guards=True)
    assert report.parity is not None and report.parity.passed and report.rules


def test_a_range_that_is_declared_is_enforced_and_written(tmp_path: Path) -> None:
    body, _, _ = TRACED["slice"]
    shapes = ({2: Dim("h", max=99)},)
    report = passfx.convert(Of(body), tmp_path / "a.onnx", (X,), dynamic_shapes=shapes)
    assert [(rule.text, rule.origin) for rule in report.rules] == [("at most 99", "declared")]


def test_the_maximum_of_a_dim_is_enforced() -> None:
    optimized = passfx.optimize(Of(lambda x: x * 2), (X,), dynamic_shapes=({2: Dim("h", max=16)},))
    assert optimized.module(torch.ones(1, 2, 16)).shape == (1, 2, 16)
    with pytest.raises(ValueError, match="axis 2 the size 99; it must be at most 16, as declared"):
        optimized.module(torch.ones(1, 2, 99))


def test_equal_sizes_are_enforced(tmp_path: Path) -> None:
    x, y = torch.randn(4, 2), torch.randn(4, 2)
    both = ({0: ANY}, {0: ANY})
    optimized = passfx.optimize(OfTwo(add_equal), (x, y), dynamic_shapes=both)
    assert torch.equal(optimized.module(x[:3], y[:3]), x[:3] + y[:3])
    with pytest.raises(ValueError, match="y has on axis 0 the size 3; .* equal to axis 0 of x"):
        optimized.module(x, y[:3])
    with pytest.raises(ExportError, match="axis 0 of y must be equal to axis 0 of x.*--allow-guar"):
        optimized.export(tmp_path / "a.onnx")
    # where the model itself takes no others, it is only said
    report = passfx.convert(
        OfTwo(lambda x, y: x + y), tmp_path / "b.onnx", (x, y), dynamic_shapes=both
    )
    assert [(rule.text, rule.origin) for rule in report.rules] == [
        ("equal to axis 0 of x", "model")
    ]


@pytest.mark.parametrize(
    ("model", "example", "wrong", "text"),
    [
        (Of(patches), torch.randn(1, 2, 32), 40, "a multiple of 16"),
        (Of(lambda x, conv: conv(x), nn.Conv1d(2, 2, 7)), X, 6, "at least 7"),
        (Of(lambda x: x + torch.ones(12)[: x.shape[2]]), X, 13, "at most 12"),
    ],
    ids=["patches", "kernel", "positions"],
)
def test_what_the_model_itself_needs_is_told_and_written(
    tmp_path: Path, model: nn.Module, example: Tensor, wrong: int, text: str
) -> None:
    optimized = passfx.optimize(model, (example,), dynamic_shapes=LAST)
    assert [
        (rule.text, rule.origin) for rule in optimized.report.rules if rule.origin != "empty"
    ] == [(text, "model")]
    with pytest.raises(ValueError, match=f"axis 2 the size {wrong}; it must be {text}, because"):
        optimized.module(torch.randn(1, 2, wrong))
    report = optimized.export(tmp_path / "model.onnx")
    assert report.parity is not None and report.parity.samples >= 3


def test_an_exported_program_keeps_its_rules(tmp_path: Path) -> None:
    saved = tmp_path / "model.pt2"
    for name in ("slice", "parity", "branch"):
        body, wrong, text = TRACED[name]
        program = torch.export.export(Of(body), (X,), dynamic_shapes=LAST)
        torch.export.save(program, saved)
        for given in (program, torch.export.load(saved)):
            optimized = passfx.optimize(given)
            with pytest.raises(ValueError, match=f"must be {text}, because the exported program"):
                optimized.module(torch.randn(1, 2, wrong))
            assert optimized.module(X).shape == X.shape
    report = passfx.convert(str(saved), tmp_path / "model.onnx")
    assert [rule.origin for rule in report.rules] == ["program"]


def test_optimisation_adds_no_guard_that_is_not_enforced() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
            self.second = nn.Sequential(nn.Conv2d(4, 4, 1), nn.AvgPool2d(2), nn.Conv2d(4, 6, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return F.interpolate(self.second(torch.cat([x, x], 0)), scale_factor=2.0)

    model, x = randomize(Net()), torch.randn(2, 3, 8, 10)
    optimized = passfx.optimize(model, (x,), dynamic_shapes=({0: ANY, 2: ANY, 3: ANY},))
    assert optimized.report.rules == optimized.captured.rules
    for size in (2, 3, 5, 8, 13):
        x = torch.randn(3, 3, size, size + 1)
        with torch.no_grad():
            torch.testing.assert_close(optimized.module(x), model.eval()(x), rtol=1e-4, atol=1e-4)


def run_file(path: Path, *inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = zip(session.get_inputs(), inputs, strict=True)
    (found, *_) = session.run(None, {item.name: given.numpy() for item, given in feeds})
    return torch.from_numpy(np.asarray(found))


def agree(optimized: Optimized, path: Path, model: nn.Module, x: Tensor) -> None:
    """The module and the file give what the model does."""
    with torch.no_grad():
        wanted = model.eval()(x)
        for found in (optimized.module(x), run_file(path, x)):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "depthwise then wide": lambda: nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.Conv2d(8, 64, 1)
    ),
    "separable": lambda: nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        nn.Conv2d(16, 16, 5, stride=2, padding=2, groups=16), nn.Conv2d(16, 4, 1),
    ),
    "inverted residual": lambda: Of(
        lambda x, block: x + block(x),
        nn.Sequential(
            nn.Conv2d(8, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6(),
            nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), nn.BatchNorm2d(32), nn.ReLU6(),
            nn.Conv2d(32, 8, 1, bias=False), nn.BatchNorm2d(8),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_images_of_any_size(name: str, tmp_path: Path) -> None:
    model, path = randomize(BLOCKS[name]()), tmp_path / "model.onnx"
    shapes = ({0: ANY, 2: ANY, 3: ANY},)
    optimized = passfx.optimize(model, (torch.randn(1, 8, 12, 11),), dynamic_shapes=shapes)
    optimized.export(path)
    for size in ((12, 11), (3, 3), (4, 9), (17, 6), (24, 24)):
        agree(optimized, path, model, torch.randn(2, 8, *size))


@pytest.mark.slow
def test_torchvision_mobilenet_takes_images_of_any_size(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    model, path = randomize(torchvision.models.mobilenet_v2(num_classes=5)), tmp_path / "model.onnx"
    optimized = passfx.optimize(
        model, (torch.randn(1, 3, 64, 64),), dynamic_shapes=({2: ANY, 3: ANY},)
    )
    optimized.export(path)
    for size in ((64, 64), (32, 32), (33, 40), (47, 64), (65, 31)):
        agree(optimized, path, model, torch.randn(1, 3, *size))


DATA: dict[str, Callable[[Tensor, nn.Module], Tensor]] = {
    "mask": lambda x, head: head(x[x[:, 0] > 0]),
    "repeat_interleave": lambda x, head: head(
        torch.repeat_interleave(x, x[:, 0].abs().long().clamp(max=3), dim=0)
    ),
    "nonzero": lambda x, head: head(torch.nonzero(x > 0).float()[:, [0, 1, 1]]),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", DATA)
def test_sizes_that_depend_on_data(name: str, dynamic: bool, tmp_path: Path) -> None:
    head = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    model, path = randomize(Of(DATA[name], head)), tmp_path / "model.onnx"
    shapes = ({0: ANY},) if dynamic else None
    optimized = passfx.optimize(model, (torch.randn(9, 3) * 2,), dynamic_shapes=shapes)
    optimized.export(path)
    for shift in (-1.0, -0.2, 0.0, 0.5, 2.0):
        agree(optimized, path, model, torch.randn(12 if dynamic else 9, 3) + shift)


def test_a_choice_between_kernels_is_no_rule() -> None:
    # ATen may have another kernel for sixteen images and more, and looks at their number.
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3)
    )
    model = randomize(model.append(nn.BatchNorm2d(8))).eval()
    found = passfx.optimize(model, (torch.randn(2, 3, 600, 600),), dynamic_shapes=({0: ANY},))
    assert found.report.rules == ()
    many = torch.randn(17, 3, 120, 110)
    found = passfx.optimize(model, (many[:2],), dynamic_shapes=({0: ANY},))
    assert found.report.rules == ()
    torch.testing.assert_close(found.module(many), model(many), rtol=1e-4, atol=1e-4)
