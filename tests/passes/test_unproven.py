"""All passes without certificates: matching and algebra are right by themselves.

The tests of each pass check that too (`tests.helpers.apply`). Here all of them run over operators
with every option that a pass could mistake, side by side in one model.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from passfx.graph.evaluate import run_flat
from passfx.pipeline import Plan, optimize_graph
from passfx.verify.error import relative_error
from tests.helpers import captured, randomize
from tests.passes.strategies import Forms

Form = Callable[..., Tensor]


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.wide = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.bare = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.up = nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=1)
        self.norm, self.linear = nn.BatchNorm2d(4), nn.Linear(8, 8)
        for name, shape in SHAPES.items():
            self.register_buffer(name, torch.randn(shape))
        self.register_buffer("ones", torch.ones(4, 1, 1))
        self.register_buffer("zeros", torch.zeros(4, 1, 1))
        self.register_buffer("whole", torch.arange(1, 5).reshape(4, 1, 1))
        randomize(self)


SHAPES = {
    "c": (4, 1, 1),
    "one": (1,),
    "scalar": (),
    "row": (8,),
    "full": (4, 8, 8),
    "column": (8, 1),
}

ARITHMETIC: dict[str, Form] = {
    **{
        f"{name} {operand} {alpha}": (
            lambda m, x, y, f=f, operand=operand, alpha=alpha: f(
                m.conv(x), getattr(m, operand), alpha=alpha
            )
        )
        for name, f in (("add", torch.add), ("sub", torch.sub), ("rsub", torch.rsub))
        for operand in ("c", "one", "scalar", "row", "full", "column", "zeros")
        for alpha in (1, 2, -3)
    },
    **{
        f"{operand} {name} {alpha}": (
            lambda m, x, y, f=f, operand=operand, alpha=alpha: f(
                getattr(m, operand), m.conv(x), alpha=alpha
            )
        )
        for name, f in (("add", torch.add), ("sub", torch.sub), ("rsub", torch.rsub))
        for operand in ("c", "one", "row", "zeros")
        for alpha in (1, 2)
    },
    "1 - conv": lambda m, x, y: 1 - m.conv(x),
    "rsub number": lambda m, x, y: torch.rsub(m.conv(x), 5.0, alpha=2),
    "two forms, alpha": lambda m, x, y: torch.sub(m.conv(x), m.wide(x), alpha=2),
    "two forms, rsub": lambda m, x, y: torch.rsub(m.conv(x), m.wide(x), alpha=3),
    "two forms, add": lambda m, x, y: torch.add(m.conv(x), m.wide(x), alpha=-1),
    "a form and itself": lambda m, x, y: torch.sub(m.conv(x), m.conv(x) * 2, alpha=2),
    "a form and the input": lambda m, x, y: torch.rsub(x, m.wide(x), alpha=2),
    "minus zero": lambda m, x, y: torch.rsub(m.zeros, x),
    "zero minus": lambda m, x, y: torch.sub(m.zeros, x, alpha=2),
    "zero plus": lambda m, x, y: torch.add(m.zeros, x, alpha=2),
    "constant over": lambda m, x, y: m.c / m.conv(x),
    "one over": lambda m, x, y: 1 / m.conv(x),
    "over constant": lambda m, x, y: m.conv(x) / m.c,
    "over ones": lambda m, x, y: m.ones / x,
    "floor": lambda m, x, y: torch.div(m.conv(x), 0.5, rounding_mode="floor"),
    "trunc": lambda m, x, y: torch.div(x, 1.0, rounding_mode="trunc"),
    "floor of ones": lambda m, x, y: torch.div(x, m.ones, rounding_mode="floor"),
    "floor division": lambda m, x, y: m.conv(x) // 2,
    "remainder": lambda m, x, y: m.conv(x) % 2,
    "negated": lambda m, x, y: -m.conv(x) * 3,
    "whole constants": lambda m, x, y: m.conv(x) * m.whole + m.whole,
    "whole numbers alone": lambda m, x, y: ((m.whole * 2 - 1) / 2) * m.conv(x),
    "power": lambda m, x, y: m.conv(x) ** 1 + m.conv(x) ** 2,
    "times true": lambda m, x, y: m.conv(x) * True,
    "row after a linear layer": lambda m, x, y: m.linear(x) * m.row - m.row,
    "column after a linear layer": lambda m, x, y: m.linear(x) * m.column,
    "channels after a linear layer": lambda m, x, y: m.linear(x) * m.c,
    "linear after channels": lambda m, x, y: m.linear(x * m.c),
    "linear after rows": lambda m, x, y: m.linear(x * m.row + 1),
    "shift then padding": lambda m, x, y: m.wide(x + m.c),
    "scale then padding": lambda m, x, y: m.wide(x * m.c),
    "norm then padding": lambda m, x, y: m.wide(m.norm(x)),
    "full, broadcast": lambda m, x, y: x[:, :, :1] * m.ones + m.full,
    "widened by a constant": lambda m, x, y: m.conv(x[:, :1].repeat(1, 4, 1, 1)[:1]) * m.full,
    "addcmul": lambda m, x, y: torch.addcmul(m.conv(x), m.c, m.c, value=2),
    "lerp": lambda m, x, y: torch.lerp(m.conv(x), x, 0.3),
}

POOLS: dict[str, Form] = {
    **{
        f"avg {k} {s} {p} {ceil} {count} {divisor}": (
            lambda m, x, y, k=k, s=s, p=p, ceil=ceil, count=count, divisor=divisor: m.conv(
                functional.avg_pool2d(m.conv(x), k, s, p, ceil, count, divisor)
            )
        )
        for k, s, p in (
            (2, 2, 0),
            (3, 2, 1),
            (3, 1, 1),
            (1, 1, 0),
            (1, 2, 0),
            ((2, 3), (3, 2), (1, 0)),
        )
        for ceil in (False, True)
        for count in (False, True)
        for divisor in (None, 1, 5)
    },
    **{
        f"max {k} {ceil}": (
            lambda m, x, y, k=k, ceil=ceil: functional.max_pool2d(m.conv(x), k, 1, 0, 1, ceil)
        )
        for k in (1, 2)
        for ceil in (False, True)
    },
    **{
        f"mean {dim} {keep}": (
            lambda m, x, y, dim=dim, keep=keep: m.norm(x).mean(dim, keepdim=keep)
        )
        for dim in ((2, 3), (-1, -2), (-1,), (1,), (0,), (1, 2, 3), (0, 2))
        for keep in (False, True)
    },
    "mean of all": lambda m, x, y: m.conv(x).mean(),
    "sum over one": lambda m, x, y: x[:, :1].sum(1, keepdim=True) + x[:, :1].sum(1),
    "adaptive": lambda m, x, y: functional.adaptive_avg_pool2d(m.conv(x), (1, 3)),
    "adaptive to itself": lambda m, x, y: functional.adaptive_avg_pool2d(m.conv(x), (8, 8)),
    "adaptive, none": lambda m, x, y: functional.adaptive_avg_pool2d(m.norm(x), (None, 2)),
    "pool and flatten": lambda m, x, y: m.norm(x).mean((2, 3)).flatten(1),
    "whole pool and flatten": lambda m, x, y: functional.avg_pool2d(m.norm(x), 8).flatten(1),
}

SIZES: dict[str, Form] = {
    **{
        f"{mode} {size} {scale} {corners}": (
            lambda m, x, y, mode=mode, size=size, scale=scale, corners=corners: m.conv(
                functional.interpolate(m.conv(x), size, scale, mode, corners)
            )
        )
        for mode in ("nearest", "nearest-exact", "bilinear", "bicubic")
        for size, scale in (
            (None, 2.0),
            (None, 0.5),
            (None, 1.0),
            ((8, 8), None),
            ((5, 11), None),
            (None, 1.1),
        )
        for corners in ((None, True, False) if mode[0] == "b" else (None,))
    },
    **{
        f"pad {mode} {pad}": (
            lambda m, x, y, mode=mode, pad=pad: m.bare(functional.pad(m.conv(x), pad, mode))
        )
        for mode in ("constant", "reflect", "replicate", "circular")
        for pad in ((1, 1, 1, 1), (2, 0, 0, 1), (0, 0, 0, 0))
    },
    "cropping pad": lambda m, x, y: m.wide(functional.pad(m.conv(x), (-1, 2, 1, -2))),
    "padding of the channels": lambda m, x, y: functional.pad(m.conv(x), (0, 0, 0, 0, 1, 1)),
    "padding by a bias": lambda m, x, y: m.bare(
        functional.pad(m.conv(x), (1, 1, 1, 1), value=0.25)
    ),
    **{
        f"slice {start} {end} {step} {dim}": (
            lambda m, x, y, cut=(start, end, step), dim=dim: (
                torch.ops.aten.slice(m.conv(x), dim, *cut) * 2 + 1
            )
        )
        for start, end, step in (
            (0, 100, 1),
            (1, -1, 1),
            (-3, None, 1),
            (0, None, 2),
            (1, 6, 3),
            (-99, 99, 1),
        )
        for dim in (1, 2, -1, 0)
    },
    "crop then conv": lambda m, x, y: m.wide(m.wide(x)[:, :, 1:-1, 2:]),
    "strided crop": lambda m, x, y: m.conv(m.wide(x)[:, :, ::2, 1::2]),
    "transposed": lambda m, x, y: m.norm(m.up(x)) * m.c,
    "before a transposed": lambda m, x, y: m.up(x * m.c),
    "after a shift, transposed": lambda m, x, y: m.up(x + m.c),
    **{
        f"cat {dim}": (lambda m, x, y, dim=dim: torch.cat([m.conv(x), m.wide(x), y], dim) * 2)
        for dim in (0, 1, -1, -3)
    },
    "norm of a cat": lambda m, x, y: m.norm(torch.cat([m.conv(x)[:, :2], m.wide(y)[:, :2]], 1)),
    "norm of a cat of one twice": lambda m, x, y: m.norm(torch.cat([m.conv(x)[:, :2]] * 2, 1)),
    "unshuffle": lambda m, x, y: functional.pixel_unshuffle(m.conv(x), 2),
    "shuffle": lambda m, x, y: functional.pixel_shuffle(m.conv(x), 2),
    "flip": lambda m, x, y: m.conv(x.flip(-1)).flip(3),
    "roll": lambda m, x, y: m.conv(x.roll(8, 2)),
    "transposes": lambda m, x, y: m.conv(x).transpose(1, -1).transpose(-3, 3).permute(0, 2, 1, 3),
    "reshapes": lambda m, x, y: m.linear(x.reshape(-1, 8)).view(2, 4, 8, 8).flatten(0, 1) * 2,
    "expand": lambda m, x, y: m.conv(x[:1].expand(2, -1, -1, -1)),
    "chunks": lambda m, x, y: torch.cat(m.conv(x).chunk(3, -1)[::-1], -1),
}

ACTIVATIONS: dict[str, Form] = {
    **{
        f"clamp {low} {high}": (
            lambda m, x, y, low=low, high=high: x.clamp(low, high).relu().clamp(max=0.7)
        )
        for low, high in (
            (None, 1.0),
            (-1.0, None),
            (0.5, -0.5),
            (0, 6),
            (-float("inf"), float("inf")),
        )
    },
    "clamp by tensors": lambda m, x, y: x.clamp(m.c, m.c + 1).relu(),
    "clamp by the other": lambda m, x, y: torch.clamp(x.relu(), max=y),
    "hardtanh": lambda m, x, y: functional.hardtanh(x.relu(), -0.5, 0.5).relu(),
    "hardtanh twice": lambda m, x, y: functional.hardtanh(
        functional.hardtanh(x, 0.2, 0.5), -1, 0.3
    ),
    "relu6 after relu": lambda m, x, y: functional.relu6((8 * x).relu()),
    "relu after relu6": lambda m, x, y: functional.relu6(8 * x).relu(),
    "leaky": lambda m, x, y: functional.leaky_relu(functional.leaky_relu(x, 0.1), 0.1),
    "leaky, slope 1": lambda m, x, y: functional.leaky_relu(x, 1.0),
    "leaky, slope 0": lambda m, x, y: functional.leaky_relu(x, 0.0).relu(),
    "threshold": lambda m, x, y: functional.threshold(x, 0.1, 20.0).relu(),
    "siblings": lambda m, x, y: (
        m.wide(y).relu() + functional.relu6(m.bare(y)) + m.wide(y * 2).relu()
    ),
}

TYPES: dict[str, Form] = {
    "doubled and back": lambda m, x, y: (m.conv(x).float() * 3).double(),
    "halved": lambda m, x, y: x.half() * 1.0,
    "whole": lambda m, x, y: ((8 * x).int().clamp(0, 6).relu() * 1) // 2 * 2,
    "whole by a float": lambda m, x, y: (8 * x).int() * 1.0,
    "whole, divided": lambda m, x, y: (8 * x).int() / 1,
    "true": lambda m, x, y: (x > 0) * 1 + (x > 0) * True,
    "bytes": lambda m, x, y: -((8 * x).abs().to(torch.uint8) + 0),
    "whole sums": lambda m, x, y: torch.add((8 * x).long(), (8 * y).long(), alpha=2),
    "complex": lambda m, x, y: torch.fft.fft(x) * 1,
    "whole mean": lambda m, x, y: (8 * x).int()[:, :1].sum(1, keepdim=True),
}

FORMS = {
    "arithmetic": ARITHMETIC,
    "pools": POOLS,
    "sizes": SIZES,
    "activations": ACTIVATIONS,
    "types": TYPES,
}


@pytest.mark.parametrize("group", FORMS)
def test_every_option_is_read_rightly(group: str) -> None:
    model = Forms(FORMS[group], Parts()).double().eval()
    inputs = tuple(torch.randn(2, 4, 8, 8, dtype=torch.float64) for _ in range(2))
    program = captured(model, *inputs)
    wanted = run_flat(program.graph_module, inputs)
    for verify in (False, True):
        graph_module, reports = optimize_graph(program, Plan().passes, verify)
        undone = [refusal for report in reports for refusal in report.refusals if refusal.undone]
        assert undone == []
        errors = map(relative_error, run_flat(graph_module, inputs), wanted)
        named = zip(FORMS[group], errors, strict=True)
        assert {name: error for name, error in named if not error <= 1e-10} == {}
