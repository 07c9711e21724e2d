"""Operators that compute nothing go, exactly; those that only nearly compute nothing stay."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule, Node
from torch.nn import functional

from passfx.graph.query import op_name, operators
from passfx.graph.text import to_text
from passfx.passes.remove_noops import RemoveNoops
from tests.helpers import apply, assert_same_structure, captured, draws, ops
from tests.passes.strategies import Forms, Model, results, run

Function = Callable[..., Any]
inf = float("inf")


class DropPath(nn.Module):
    """Stochastic depth as timm writes it: x itself in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(0.5)
        return x * mask / 0.5


# ------------------------------------------------------------------------------------------- fires


class Before(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.rest = nn.Sequential(nn.Identity(), nn.Dropout(), nn.Sequential(), DropPath())

    def forward(self, x: Tensor) -> Tensor:
        y = self.rest(self.conv(x.contiguous())) * 1
        return y.flatten(1).view(y.shape).permute(0, 2, 3, 1).permute(0, 3, 1, 2).relu() + 0


class Expected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


def test_a_model_keeps_what_it_computes() -> None:
    model, x = Before(), torch.randn(2, 3, 5, 6)
    graph, editor = apply(RemoveNoops(), model, x)
    assert_same_structure(graph, Expected(), x)
    done = [item.what for item in editor.rewrites if item.what != "clone changes nothing"]
    assert done == [  # torch 2.15 drops what dropout leaves by itself
        "mul changes nothing",
        "reshapes that cancel",
        "transposes that cancel",
        "add changes nothing",
    ]
    assert torch.equal(run(graph, x), run(model, x))


# m holds the constants, x is [2, 4, 6, 6], y is [2, 1, 6], i is int64 [2, 3], z is float16 [2, 3].
NOOPS: dict[str, Function] = {
    "Identity": lambda m, x, y, i, z: nn.Identity()(x),
    "Dropout": lambda m, x, y, i, z: m.dropout(x),
    "Dropout2d": lambda m, x, y, i, z: m.dropout2d(x),
    "Dropout3d": lambda m, x, y, i, z: functional.dropout3d(x[None], 0.5, False)[0],
    "AlphaDropout": lambda m, x, y, i, z: m.alpha_dropout(x),
    "FeatureAlphaDropout": lambda m, x, y, i, z: m.feature_alpha_dropout(x),
    "DropPath": lambda m, x, y, i, z: m.drop_path(x),
    "dropout of nothing in training": lambda m, x, y, i, z: functional.dropout(x, 0.0, True),
    "empty Sequential": lambda m, x, y, i, z: nn.Sequential()(x),
    "x · 1": lambda m, x, y, i, z: x * 1,
    "x · 1.0": lambda m, x, y, i, z: x * 1.0,
    "1 · x": lambda m, x, y, i, z: 1 * x,
    "x · 1 (0-d)": lambda m, x, y, i, z: x * m.one,
    "1 · x (0-d)": lambda m, x, y, i, z: m.one * x,
    "x · 1 (0-d, wider)": lambda m, x, y, i, z: x * m.one_wide,
    "x · 1 (per channel)": lambda m, x, y, i, z: x * m.one_channels,
    "x · 1 (full)": lambda m, x, y, i, z: x * m.one_full,
    "1 · x (full)": lambda m, x, y, i, z: m.one_full * x,
    "i · 1": lambda m, x, y, i, z: i * 1,
    "i · 1 (int)": lambda m, x, y, i, z: m.one_int * i,
    "z · 1": lambda m, x, y, i, z: z * 1.0,
    "x + 0": lambda m, x, y, i, z: x + 0,
    "0 + x": lambda m, x, y, i, z: 0 + x,
    "x + 0 (0-d)": lambda m, x, y, i, z: x + m.zero,
    "0 + x (0-d)": lambda m, x, y, i, z: m.zero + x,
    "x + 0 (full)": lambda m, x, y, i, z: x + m.zero_full,
    "x + 0 with alpha": lambda m, x, y, i, z: torch.add(x, m.zero_full, alpha=3),
    "x - 0": lambda m, x, y, i, z: x - 0,
    "x - 0 (0-d)": lambda m, x, y, i, z: x - m.zero,
    "x - 0 (full)": lambda m, x, y, i, z: x - m.zero_full,
    "i - 0": lambda m, x, y, i, z: i - 0,
    "x / 1": lambda m, x, y, i, z: x / 1,
    "x / 1 (0-d)": lambda m, x, y, i, z: x / m.one,
    "x / 1 (full)": lambda m, x, y, i, z: x / m.one_full,
    "x ** 1": lambda m, x, y, i, z: x**1,
    "x ** 1.0": lambda m, x, y, i, z: x**1.0,
    "x ** 1 (0-d)": lambda m, x, y, i, z: x**m.one,
    "to the dtype it has": lambda m, x, y, i, z: x.to(torch.float32),
    "float": lambda m, x, y, i, z: x.float(),
    "half of half": lambda m, x, y, i, z: z.half(),
    "type_as": lambda m, x, y, i, z: x.type_as(y),
    "to the device it is on": lambda m, x, y, i, z: x.to("cpu"),
    "a copy to the dtype it has": lambda m, x, y, i, z: x.to(torch.float32, copy=True),
    "contiguous": lambda m, x, y, i, z: x.contiguous(),
    "contiguous after a transpose": lambda m, x, y, i, z: (
        x.transpose(1, 2).contiguous().transpose(1, 2)
    ),
    "channels last": lambda m, x, y, i, z: x.contiguous(memory_format=torch.channels_last),
    "clone": lambda m, x, y, i, z: x.clone(),
    "detach": lambda m, x, y, i, z: x.detach(),
    "alias": lambda m, x, y, i, z: torch.ops.aten.alias(x),
    "positive": lambda m, x, y, i, z: +x,
    "view": lambda m, x, y, i, z: x.view(2, 4, 6, 6),
    "view_as": lambda m, x, y, i, z: x.view_as(m.one_full),
    "reshape": lambda m, x, y, i, z: x.reshape(2, -1, 6, 6),
    "flatten": lambda m, x, y, i, z: x.flatten(3),
    "unflatten": lambda m, x, y, i, z: x.unflatten(1, (4,)),
    "squeeze of a long axis": lambda m, x, y, i, z: x.squeeze(1),
    "expand": lambda m, x, y, i, z: x.expand(-1, 4, -1, 6),
    "expand_as": lambda m, x, y, i, z: x.expand_as(m.one_full),
    "broadcast_to": lambda m, x, y, i, z: x.broadcast_to(2, 4, 6, 6),
    "permute": lambda m, x, y, i, z: x.permute(0, 1, 2, -1),
    "movedim": lambda m, x, y, i, z: x.movedim(1, 1),
    "transpose of an axis with itself": lambda m, x, y, i, z: x.transpose(1, -3),
    "permute that fixes the long axes": lambda m, x, y, i, z: y[:, None].permute(0, 2, 1, 3),
    "transposes that cancel": lambda m, x, y, i, z: x.transpose(1, 2).transpose(2, 1),
    "permutes that cancel": lambda m, x, y, i, z: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
    "permute and movedim that cancel": lambda m, x, y, i, z: x.permute(0, 2, 3, 1).movedim(3, 1),
    "three transposes that cancel": lambda m, x, y, i, z: (
        x.permute(0, 2, 3, 1).transpose(1, 3).transpose(2, 3)
    ),
    "mT twice": lambda m, x, y, i, z: x.mT.mT,
    "reshapes that cancel": lambda m, x, y, i, z: x.flatten(2).view(2, 4, 6, 6),
    "three reshapes that cancel": lambda m, x, y, i, z: (
        x.reshape(8, 36).view(-1).reshape(2, 4, 6, 6)
    ),
    "flatten and unflatten": lambda m, x, y, i, z: x.flatten(1, 2).unflatten(1, (4, 6)),
    "unsqueeze and squeeze": lambda m, x, y, i, z: x.unsqueeze(1).squeeze(1),
    "squeeze and unsqueeze": lambda m, x, y, i, z: y.squeeze(1).unsqueeze(1),
    "full slice": lambda m, x, y, i, z: x[:, 0:4, :, :6],
    "ellipsis": lambda m, x, y, i, z: x[...],
    "slice beyond the end": lambda m, x, y, i, z: x[:, :99],
    "slice by 2 of one": lambda m, x, y, i, z: y[:, ::2],
    "narrow": lambda m, x, y, i, z: x.narrow(1, 0, 4),
    "pad by 0": lambda m, x, y, i, z: functional.pad(x, (0, 0, 0, 0)),
    "pad by 0 with another value": lambda m, x, y, i, z: functional.pad(x, (0, 0), value=7.0),
    "ZeroPad2d": lambda m, x, y, i, z: nn.ZeroPad2d(0)(x),
    "ReflectionPad2d": lambda m, x, y, i, z: nn.ReflectionPad2d(0)(x),
    "ReplicationPad2d": lambda m, x, y, i, z: nn.ReplicationPad2d(0)(x),
    "circular pad": lambda m, x, y, i, z: functional.pad(x, (0, 0, 0, 0), mode="circular"),
    "reflection_pad2d by 0": lambda m, x, y, i, z: torch.ops.aten.reflection_pad2d(x, [0] * 4),
    "roll by 0": lambda m, x, y, i, z: x.roll((0, 0), (2, 3)),
    "roll by 0 of all": lambda m, x, y, i, z: x.roll(0),
    "flip of a short axis": lambda m, x, y, i, z: y.flip(1),
    "repeat once": lambda m, x, y, i, z: x.repeat(1, 1, 1, 1),
    "tile once": lambda m, x, y, i, z: x.tile(1, 1),
    "max_pool1d of 1": lambda m, x, y, i, z: functional.max_pool1d(x[0], 1)[None].expand_as(x[:1]),
    "max_pool2d of 1": lambda m, x, y, i, z: functional.max_pool2d(x, 1, 1),
    "max_pool2d of 1, stride by default": lambda m, x, y, i, z: functional.max_pool2d(x, (1, 1)),
    "max_pool2d of 1, dilated": lambda m, x, y, i, z: functional.max_pool2d(x, 1, dilation=2),
    "max_pool3d of 1": lambda m, x, y, i, z: functional.max_pool3d(x, 1),
    "avg_pool1d of 1": lambda m, x, y, i, z: functional.avg_pool1d(y, 1),
    "avg_pool2d of 1": lambda m, x, y, i, z: functional.avg_pool2d(x, 1, 1, ceil_mode=True),
    "avg_pool2d of 1, divisor 1": lambda m, x, y, i, z: functional.avg_pool2d(
        x, 1, divisor_override=1
    ),
    "avg_pool3d of 1": lambda m, x, y, i, z: functional.avg_pool3d(x, 1),
    "adaptive_avg_pool1d": lambda m, x, y, i, z: functional.adaptive_avg_pool1d(y, 6),
    "adaptive_avg_pool2d": lambda m, x, y, i, z: functional.adaptive_avg_pool2d(x, 6),
    "adaptive_avg_pool2d of None": lambda m, x, y, i, z: functional.adaptive_avg_pool2d(
        x, (None, 6)
    ),
    "adaptive_avg_pool3d": lambda m, x, y, i, z: functional.adaptive_avg_pool3d(x, (4, 6, 6)),
    "adaptive_max_pool1d": lambda m, x, y, i, z: functional.adaptive_max_pool1d(y, 6),
    "adaptive_max_pool2d": lambda m, x, y, i, z: functional.adaptive_max_pool2d(x, 6),
    "adaptive_max_pool3d": lambda m, x, y, i, z: functional.adaptive_max_pool3d(x, (4, 6, 6)),
    "interpolate nearest": lambda m, x, y, i, z: functional.interpolate(x, scale_factor=1),
    "interpolate nearest-exact": lambda m, x, y, i, z: functional.interpolate(
        x, scale_factor=1.0, mode="nearest-exact"
    ),
    "interpolate bilinear": lambda m, x, y, i, z: functional.interpolate(
        x, scale_factor=(1, 1), mode="bilinear"
    ),
    "interpolate bicubic": lambda m, x, y, i, z: functional.interpolate(
        x, scale_factor=1, mode="bicubic"
    ),
    "interpolate linear": lambda m, x, y, i, z: functional.interpolate(
        y, scale_factor=1, mode="linear"
    ),
    "interpolate trilinear": lambda m, x, y, i, z: functional.interpolate(
        x[None], scale_factor=1, mode="trilinear"
    )[0],
    "interpolate bilinear, antialiased": lambda m, x, y, i, z: functional.interpolate(
        x, scale_factor=1, mode="bilinear", antialias=True
    ),
    "interpolate bicubic to size, antialiased": lambda m, x, y, i, z: functional.interpolate(
        x, size=(6, 6), mode="bicubic", antialias=True
    ),
    "interpolate to the size it has": lambda m, x, y, i, z: functional.interpolate(x, size=(6, 6)),
    "interpolate bilinear to size": lambda m, x, y, i, z: functional.interpolate(
        x, size=6, mode="bilinear"
    ),
    "interpolate bicubic to size": lambda m, x, y, i, z: functional.interpolate(
        x, size=6, mode="bicubic"
    ),
    "interpolate bilinear, corners": lambda m, x, y, i, z: functional.interpolate(
        x, size=6, mode="bilinear", align_corners=True
    ),
    "interpolate bicubic, corners": lambda m, x, y, i, z: functional.interpolate(
        x, scale_factor=1, mode="bicubic", align_corners=True
    ),
    "interpolate by a recomputed 1.05": lambda m, x, y, i, z: functional.interpolate(
        x, scale_factor=1.05, recompute_scale_factor=True, mode="bilinear"
    ),
    "pixel_shuffle by 1": lambda m, x, y, i, z: functional.pixel_shuffle(x, 1),
    "pixel_unshuffle by 1": lambda m, x, y, i, z: functional.pixel_unshuffle(x, 1),
    "cat of one": lambda m, x, y, i, z: torch.cat([x], 1),
    "hstack of one": lambda m, x, y, i, z: torch.hstack([x]),
    "vstack of one": lambda m, x, y, i, z: torch.vstack([x]),
    "split of one": lambda m, x, y, i, z: torch.split(x, 4, 1)[0],
    "split into sizes of one": lambda m, x, y, i, z: torch.split(x, [4], 1)[0],
    "chunk of one": lambda m, x, y, i, z: x.chunk(1, 1)[0],
    "tensor_split of one": lambda m, x, y, i, z: torch.tensor_split(x, 1)[0],
    "stack of one, then squeeze": lambda m, x, y, i, z: torch.stack([x]).squeeze(0),
    "stack of one, then reshape": lambda m, x, y, i, z: torch.stack([x], 2).view(2, 4, 6, 6),
    "clamp without bounds": lambda m, x, y, i, z: x.clamp(-inf, inf),
    "clamp_min without bound": lambda m, x, y, i, z: torch.clamp_min(x, -inf),
    "clamp_max without bound": lambda m, x, y, i, z: torch.clamp_max(x, inf),
    "hardtanh without bounds": lambda m, x, y, i, z: functional.hardtanh(x, -inf, inf),
    "leaky_relu of slope 1": lambda m, x, y, i, z: functional.leaky_relu(x, 1.0),
    "prelu of slope 1": lambda m, x, y, i, z: functional.prelu(x, m.one_slope),
    "prelu of slopes 1": lambda m, x, y, i, z: functional.prelu(x, m.one_slopes),
    "mean over one": lambda m, x, y, i, z: y.mean(1, keepdim=True),
    "mean over ones": lambda m, x, y, i, z: y[None].mean((0, 2), keepdim=True),
    "sum over one": lambda m, x, y, i, z: y.sum(-2, keepdim=True),
    "amax over one": lambda m, x, y, i, z: y.amax(1, keepdim=True),
    "amin over one": lambda m, x, y, i, z: y.amin(1, keepdim=True),
    "logsumexp over one": lambda m, x, y, i, z: y.logsumexp(1, keepdim=True),
}

# What each form may leave: views that are no part of what it shows.
LEFT = {
    "Dropout3d": ["unsqueeze", "select"],
    "permute that fixes the long axes": ["unsqueeze"],
    "max_pool1d of 1": ["slice"],
    "interpolate trilinear": ["unsqueeze", "select"],
    "mean over ones": ["unsqueeze"],
}

KEPT: dict[str, Function] = {
    "1. i · 1.0 promotes": lambda m, x, y, i, z: i * 1.0,
    "1. z · ones of float32 promotes": lambda m, x, y, i, z: z * m.one_rows,
    "1. i + 0.0 promotes": lambda m, x, y, i, z: i + 0.0,
    "1. i / 1 promotes": lambda m, x, y, i, z: i / 1,
    "1. i ** 1.0 promotes": lambda m, x, y, i, z: i**1.0,
    "1. y + 0 broadcasts": lambda m, x, y, i, z: y + m.zero_rows,
    "1. y · 1 broadcasts": lambda m, x, y, i, z: m.one_columns * y,
    "1. expand that grows": lambda m, x, y, i, z: y.expand(-1, 4, -1),
    "1. expand that adds an axis": lambda m, x, y, i, z: x.expand(1, -1, -1, -1, -1),
    "1. permute of equal sizes": lambda m, x, y, i, z: x.permute(0, 1, 3, 2),
    "1. transpose of a square": lambda m, x, y, i, z: x.mT,
    "1. transposes that do not cancel": lambda m, x, y, i, z: x[0, 0].mT.relu().mT,
    "1. slice by 2": lambda m, x, y, i, z: x[:, ::2],
    "1. slice without the last": lambda m, x, y, i, z: x[:, :-1],
    "1. slice of another start": lambda m, x, y, i, z: x[:, 1:],
    "1. to another dtype": lambda m, x, y, i, z: x.to(torch.float64),
    "1. to another dtype and back": lambda m, x, y, i, z: (x * 1000).half().float(),
    "1. repeat twice": lambda m, x, y, i, z: x.repeat(1, 2, 1, 1),
    "1. mean over one, not kept": lambda m, x, y, i, z: y.mean(1),
    "1. mean over many": lambda m, x, y, i, z: x.mean(1, keepdim=True),
    "1. stack of one": lambda m, x, y, i, z: torch.stack([x]),
    "1. stack of two": lambda m, x, y, i, z: torch.stack([x, x])[0],
    "1. the second of two parts": lambda m, x, y, i, z: x.chunk(2, 1)[1],
    "1. the first of two parts": lambda m, x, y, i, z: x.chunk(2, 1)[0],
    "1. pixel_shuffle by 2": lambda m, x, y, i, z: functional.pixel_shuffle(x, 2),
    "1. indices of an adaptive pool": lambda m, x, y, i, z: functional.adaptive_max_pool2d(
        x, 6, return_indices=True
    )[1],
    "3. interpolate by 1.05": lambda m, x, y, i, z: functional.interpolate(x, scale_factor=1.05),
    "3. interpolate bilinear by 1.05": lambda m, x, y, i, z: functional.interpolate(
        x, scale_factor=1.05, mode="bilinear"
    ),
    "3. interpolate by 1 and 1.1": lambda m, x, y, i, z: functional.interpolate(
        x, scale_factor=(1.0, 1.1), mode="bilinear"
    ),
    "interpolate to another size": lambda m, x, y, i, z: functional.interpolate(x, size=7),
    "interpolate to another size, corners": lambda m, x, y, i, z: functional.interpolate(
        x, size=(6, 7), mode="bilinear", align_corners=True
    ),
    "avg_pool2d of 1, divisor 2": lambda m, x, y, i, z: functional.avg_pool2d(
        x, 1, divisor_override=2
    ),
    "avg_pool2d of 1, stride 2": lambda m, x, y, i, z: functional.avg_pool2d(x, 1, 2),
    "avg_pool2d of 3, stride 1": lambda m, x, y, i, z: functional.avg_pool2d(x, 3, 1, 1),
    "max_pool2d of 3, stride 1": lambda m, x, y, i, z: functional.max_pool2d(x, 3, 1, 1),
    "max_pool2d of (1, 3)": lambda m, x, y, i, z: functional.max_pool2d(x, (1, 3), 1, (0, 1)),
    "adaptive pool to 3": lambda m, x, y, i, z: functional.adaptive_avg_pool2d(x, 3),
    "flip of a long axis": lambda m, x, y, i, z: x.flip(1),
    "flip of a short and a long axis": lambda m, x, y, i, z: y.flip(1, 2),
    "roll by 1": lambda m, x, y, i, z: x.roll((0, 1), (2, 3)),
    "pad by −1 and 1": lambda m, x, y, i, z: functional.pad(x, (-1, 1)),
    "clamp with a lower bound": lambda m, x, y, i, z: x.clamp(min=0.5),
    "clamp with an upper bound": lambda m, x, y, i, z: x.clamp(max=0.5),
    "clamp to infinity": lambda m, x, y, i, z: x.clamp(min=inf),
    "clamp to a tensor": lambda m, x, y, i, z: x.clamp(min=m.zero),
    "leaky_relu of slope 0.99": lambda m, x, y, i, z: functional.leaky_relu(x, 0.99),
    "prelu of slopes 1 and 2": lambda m, x, y, i, z: functional.prelu(x, m.two_slopes),
    "0 - x": lambda m, x, y, i, z: 0 - x,
    "0 - x (0-d)": lambda m, x, y, i, z: m.zero - x,
    "1 / x (full)": lambda m, x, y, i, z: m.one_full / x,
    "x / 1, floored": lambda m, x, y, i, z: torch.div(x, 1, rounding_mode="floor"),
    "x / 1, truncated": lambda m, x, y, i, z: torch.div(x, 1, rounding_mode="trunc"),
    "x // 1": lambda m, x, y, i, z: x // 1,
    "1 ** x": lambda m, x, y, i, z: 1**x,
    "1 ** x (full)": lambda m, x, y, i, z: m.one_full**x,
    "x ** 2": lambda m, x, y, i, z: x**2,
    "x · nearly 1": lambda m, x, y, i, z: x * m.nearly_one,
    "x · 0": lambda m, x, y, i, z: x * 0,
    "x + 1": lambda m, x, y, i, z: x + 1,
    "0 + 2 · x": lambda m, x, y, i, z: torch.add(m.zero_full, x, alpha=2),
    "sum of a pair": lambda m, x, y, i, z: torch.cat([x[:, :2], x[:, :2]], 1),
}


def parts() -> Model:
    """The constants that the forms read."""
    nearly_one = torch.ones(2, 4, 6, 6)
    nearly_one[1, 2, 3, 4] = 1.0001
    return Model(
        lambda m, x: x,
        dropout=nn.Dropout(),
        dropout2d=nn.Dropout2d(),
        alpha_dropout=nn.AlphaDropout(),
        feature_alpha_dropout=nn.FeatureAlphaDropout(),
        drop_path=DropPath(),
        one=torch.tensor(1.0),
        one_wide=torch.tensor(1.0, dtype=torch.float64),
        one_int=torch.tensor(1),
        one_rows=torch.ones(2, 3),
        one_channels=torch.ones(4, 1, 1),
        one_full=torch.ones(2, 4, 6, 6),
        one_slope=torch.ones(1),
        one_slopes=torch.ones(4),
        two_slopes=torch.tensor([1.0, 2.0, 1.0, 1.0]),
        zero=torch.tensor(0.0),
        one_columns=torch.ones(2, 4, 6),
        zero_rows=torch.zeros(2, 4, 6),
        zero_full=torch.zeros(2, 4, 6, 6),
        nearly_one=nearly_one,
    )


def inputs() -> tuple[Tensor, ...]:
    """x, y, i and z of the forms."""
    integers = torch.arange(6).reshape(2, 3)
    return torch.randn(2, 4, 6, 6), torch.randn(2, 1, 6), integers, torch.randn(2, 3).half()


@dataclass(frozen=True)
class Cleaned:
    """All forms of one table, captured once and cleaned."""

    before: GraphModule
    graph: GraphModule
    values: dict[str, Tensor]
    wanted: dict[str, Tensor]
    names: list[str]

    def branch(self, form: str, *, before: bool = False) -> list[str]:
        """The operators that one form's result is computed by, first to last."""
        graph_module = self.before if before else self.graph
        needed: set[Node] = set()
        pending = [results(graph_module)[self.names.index(form)]]
        while pending:
            node = pending.pop()
            needed.add(node)
            pending += node.all_input_nodes
        return [op_name(node) for node in operators(graph_module) if node in needed]


def clean(forms: dict[str, Function]) -> Cleaned:
    torch.manual_seed(0)
    model, example = Forms(forms, parts()), inputs()
    before = captured(model, *example).graph_module
    graph, _ = apply(RemoveNoops(), model, *example)
    return Cleaned(before, graph, run(graph, *example), run(model, *example), list(forms))


@pytest.fixture(scope="module")
def noops() -> Cleaned:
    return clean(NOOPS)


@pytest.fixture(scope="module")
def near_misses() -> Cleaned:
    return clean(KEPT)


@pytest.mark.parametrize("form", NOOPS)
def test_removes(noops: Cleaned, form: str) -> None:
    assert noops.branch(form) == LEFT.get(form, [])
    assert torch.equal(noops.values[form], noops.wanted[form])


@pytest.mark.parametrize("form", KEPT)
def test_keeps(near_misses: Cleaned, form: str) -> None:
    assert near_misses.branch(form) == near_misses.branch(form, before=True)
    assert torch.equal(near_misses.values[form], near_misses.wanted[form])


CHAINS: dict[str, tuple[Function, Function]] = {
    "two reshapes": (
        lambda m, x: x.reshape(8, 36).reshape(4, 72),
        lambda m, x: x.reshape(4, 72),
    ),
    "flatten, unsqueeze and a reshape": (
        lambda m, x: x.flatten(1).unsqueeze(1).reshape(8, 36),
        lambda m, x: x.reshape(8, 36),
    ),
    "permutes of equal sizes that do not cancel": (
        lambda m, x: x.permute(1, 2, 3, 0).permute(1, 2, 0, 3),
        lambda m, x: x.permute(2, 3, 1, 0),
    ),
    "a permute and a transpose": (
        lambda m, x: x.permute(0, 2, 3, 1).transpose(1, -1),
        lambda m, x: x.permute(0, 1, 3, 2),
    ),
    "two halves that cancel within a chain": (
        lambda m, x: x.mT.mT.permute(1, 0, 2, 3),
        lambda m, x: x.permute(1, 0, 2, 3),
    ),
    "a reshape between transposes stays": (
        lambda m, x: x.mT.reshape(8, 36).mT,
        lambda m, x: x.mT.reshape(8, 36).mT,
    ),
}


def test_a_chain_that_does_not_cancel_becomes_one_operator() -> None:
    x = torch.randn(2, 4, 6, 6)
    model = Forms({name: before for name, (before, _) in CHAINS.items()}, nn.Module())
    expected = Forms({name: after for name, (_, after) in CHAINS.items()}, nn.Module())
    graph, editor = apply(RemoveNoops(), model, x)
    assert to_text(graph) == to_text(apply(RemoveNoops(), expected, x)[0])
    assert len(editor.rewrites) == 7
    for name, result in run(graph, x).items():
        assert torch.equal(result, CHAINS[name][0](None, x)), name


def test_a_chain_that_others_read_in_the_middle_stays() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.reshape(8, 36)
        return y, y.reshape(4, 72)

    graph, editor = apply(RemoveNoops(), Model(forward), x := torch.randn(2, 4, 6, 6))
    assert not editor.modified
    assert ops(graph) == {"reshape": 2}
    assert run(graph, x)[1].shape == (4, 72)


# --------------------------------------------------------------------- dynamic sizes, and strides


def test_dynamic_sizes_that_always_agree_are_removed() -> None:
    forms: dict[str, Function] = {
        "reshape": lambda m, x: x.reshape(x.shape[0], 4, x.shape[2]),
        "reshape with -1": lambda m, x: x.reshape(-1, 4, x.shape[2]),
        "flatten and unflatten": lambda m, x: x.flatten(1).reshape(x.shape),
        "expand": lambda m, x: x.expand(x.shape[0], -1, -1),
        "full slice": lambda m, x: x[:, :, : x.shape[2]],
        "pool": lambda m, x: functional.adaptive_avg_pool2d(x, (4, x.shape[2])),
        "interpolate": lambda m, x: functional.interpolate(x, size=x.shape[2:]),
        "contiguous": lambda m, x: x.mT.contiguous().mT,
    }
    model, x = Forms(forms, nn.Module()), torch.randn(3, 4, 6)
    shapes = {"inputs": ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC},)}
    graph, _ = apply(RemoveNoops(), model, x, dynamic_shapes=shapes)
    (placeholder,) = graph.graph.find_nodes(op="placeholder")
    left = [name for name, node in zip(forms, results(graph), strict=True) if node != placeholder]
    assert left == []
    x = torch.randn(1, 4, 9)
    assert all(torch.equal(result, x) for result in run(graph, x).values())


def test_keeps_2_dynamic_sizes_that_agree_only_sometimes() -> None:
    forms: dict[str, Function] = {
        "interpolate": lambda m, x, y: functional.interpolate(x, size=6),
        "interpolate to another's size": lambda m, x, y: functional.interpolate(
            x, size=y.shape[2:]
        ),
        "pool": lambda m, x, y: functional.adaptive_avg_pool1d(x, 6),
        "slice": lambda m, x, y: x[:2],
        "slice by 2": lambda m, x, y: x[:2, :, ::2],
        "flip": lambda m, x, y: x.flip(2),
        "transpose": lambda m, x, y: x.mT,
        "mean": lambda m, x, y: x.mean(2, keepdim=True),
        "roll": lambda m, x, y: x.roll(1, 2),
    }
    model, x, y = Forms(forms, nn.Module()), torch.randn(3, 4, 6), torch.randn(3, 4, 6)
    shapes = {"inputs": ({2: Dim.DYNAMIC}, {2: Dim.DYNAMIC})}
    before = captured(model, x, y, dynamic_shapes=shapes).graph_module
    graph, editor = apply(RemoveNoops(), model, x, y, dynamic_shapes=shapes)
    assert not editor.modified
    assert to_text(graph) == to_text(before)
    for sizes in [(6, 6), (8, 5)]:
        tensors = [torch.randn(3, 4, size) for size in sizes]
        wanted = run(model, *tensors)
        for name, result in run(graph, *tensors).items():
            assert torch.equal(result, wanted[name]), name


STRIDED: dict[str, Function] = {
    "contiguous, as_strided": lambda m, x: x.mT.contiguous().as_strided((2, 3), (1, 5)),
    "clone, as_strided": lambda m, x: x.mT.clone(memory_format=torch.contiguous_format).as_strided(
        (2, 3), (1, 5)
    ),
    "contiguous, relu, as_strided": lambda m, x: (
        x.mT.contiguous().relu().as_strided((2, 3), (1, 5))
    ),
    "contiguous, reshape, view_as_complex": lambda m, x: torch.view_as_complex(
        x.mT.contiguous().reshape(2, 6, 2, 2)
    ),
    "contiguous, ×2, reshape, view_as_complex": lambda m, x: torch.view_as_complex(
        (x.mT.contiguous() * 2).unflatten(-1, (2, 2))
    ),
    "contiguous, view as another dtype": lambda m, x: x.mT.contiguous().view(torch.int16),
}


def test_keeps_4_what_decides_strides() -> None:
    x = torch.randn(2, 4, 6)
    model = Forms(STRIDED, nn.Module())
    graph, _ = apply(RemoveNoops(), model, x)
    wanted = run(model, x)
    for name, result in run(graph, x).items():
        assert torch.equal(result, wanted[name]), name


def test_keeps_4_what_makes_an_input_contiguous() -> None:
    """The example input is contiguous, so only the operator itself says that others need not be."""
    model = Model(
        lambda m, x: torch.view_as_complex(x.clone().contiguous() * m.two), two=torch.tensor(2.0)
    )
    graph, editor = apply(RemoveNoops(), model, torch.randn(3, 2))
    assert not editor.modified
    x = torch.randn(3, 2)
    assert torch.equal(run(graph, x), torch.view_as_complex(x * 2))


def test_a_layout_before_a_linear_layer_does_not_matter() -> None:
    model = Model(
        lambda m, x: torch.view_as_complex(m.layer(x.mT.contiguous())), layer=nn.Linear(3, 2)
    )
    graph, editor = apply(RemoveNoops(), model, x := torch.randn(4, 3, 5))
    assert len(editor.rewrites) == 1
    assert ops(graph) == {"transpose": 1, "linear": 1, "view_as_complex": 1}
    assert torch.equal(run(graph, x), run(model, x))


# --------------------------------------------------------------------------------------- preserves


@st.composite
def layout_chains(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[str, Any]]]:
    """A shape, some sizes of which are 1, and operators that move its elements or leave them."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3]), min_size=2, max_size=4)))
    steps: list[tuple[str, Any]] = []
    current = torch.empty(shape)
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["permute", "reshape", "transpose", "unsqueeze", "squeeze"]))
        rank = current.ndim
        given: Any = draw(st.integers(-rank, rank - 1)) if rank else 0
        if kind == "permute":
            given = draw(st.permutations(range(rank)))
        elif kind == "reshape":
            given = draw(st.permutations(current.shape)) if draw(st.booleans()) else shape
        elif kind == "transpose":
            given = (given, draw(st.integers(0, rank - 1))) if rank else (0, 0)
        steps.append((kind, given))
        current = step(current, *steps[-1])
    return shape, steps


def step(x: Tensor, kind: str, given: Any) -> Tensor:
    if kind == "transpose":
        return x.transpose(*given)
    return getattr(x, kind)(given)  # type: ignore[no-any-return]


@settings(deadline=None, max_examples=draws(12))
@given(case=layout_chains())
def test_chains_of_layouts_preserve(case: Any) -> None:
    shape, steps = case

    def forward(m: Any, x: Tensor) -> Tensor:
        for kind, argument in steps:
            x = step(x, kind, argument)
        return x

    x = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    graph, _ = apply(RemoveNoops(), Model(forward), x)
    assert torch.equal(run(graph, x), forward(None, x))
    assert not RemoveNoops().run(graph).modified


@settings(deadline=None, max_examples=draws(6))
@given(
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    names=st.lists(st.sampled_from(["one", "zero", "full", "row"]), min_size=1, max_size=3),
    wide=st.booleans(),
)
def test_neutral_constants_preserve(shape: list[int], names: list[str], wide: bool) -> None:
    """Whatever constants broadcast or promote, the result has the same values, shape and dtype."""
    dtype = torch.float64 if wide else torch.float32
    constants = {
        "one": torch.ones((), dtype=dtype),
        "zero": torch.zeros((1, *shape), dtype=dtype)[0],
        "full": torch.ones(shape, dtype=dtype),
        "row": torch.ones((2, *(1 for _ in shape)), dtype=torch.float32),
    }

    def forward(m: Any, x: Tensor) -> Tensor:
        for name in names:
            x = m.zero + x - m.zero if name == "zero" else getattr(m, name) * x / getattr(m, name)
        return x

    model, x = Model(forward, **constants), torch.randn(shape)
    graph, _ = apply(RemoveNoops(), model, x)
    result, wanted = run(graph, x), run(model, x)
    assert result.dtype == wanted.dtype
    assert torch.equal(result, wanted)


# -------------------------------------------------------------------------------------- idempotent


def test_a_second_run_rewrites_nothing(noops: Cleaned, near_misses: Cleaned) -> None:
    assert not RemoveNoops().run(noops.graph).modified
    assert not RemoveNoops().run(near_misses.graph).modified
