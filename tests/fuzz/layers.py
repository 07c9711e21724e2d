"""Layers, norms, pools, paddings and interpolations of images, each drawn with all its options."""

from typing import Any

from tests.fuzz.drawing import Drawer, Rejected

BORDERS = ("zeros", "reflect", "replicate", "circular")


def some(d: Drawer, share: float, **options: Any) -> dict[str, Any]:
    """Each of the options, or not."""
    return {name: given for name, given in options.items() if d.chance(share)}


def each(d: Drawer, rank: int, low: int, high: int) -> Any:
    """A number for each dimension, or one for all."""
    numbers = tuple(d.rng.randint(low, high) for _ in range(rank))
    return numbers[0] if d.chance(0.5) else numbers


def divisor(d: Drawer, count: int) -> int:
    """A number of groups."""
    return d.rng.choice([number for number in range(1, count + 1) if not count % number])


def conv(d: Drawer, read: int | None = None, cout: int | None = None, keeps: bool = False) -> int:
    """A convolution; one that `keeps` has the output size of its input."""
    r, x = d.rng, d.image() if read is None else read
    rank, cin = d.values[x].ndim - 2, d.values[x].shape[1]
    groups = 1 if d.chance(0.6) else divisor(d, cin)
    cout = cout or groups * r.randint(1, max(1, 9 // groups))
    groups = groups if not cout % groups else 1
    kernel = each(d, rank, 1, 3) if not keeps else r.choice((1, 1, 3, 3, 5))
    options = some(d, 0.4, bias=d.chance(0.3)) | ({"groups": groups} if groups > 1 else {})
    if keeps:
        options |= {"padding": r.choice((kernel // 2, "same"))} if kernel > 1 else {}
    else:
        options |= some(d, 0.35, stride=each(d, rank, 1, 3), dilation=each(d, rank, 1, 2))
        padding: Any = each(d, rank, 0, 2)
        if "stride" not in options and d.chance(0.2):
            padding = r.choice(("same", "valid"))
        options |= some(d, 0.6, padding=padding)
    options |= some(d, 0.15, padding_mode=r.choice(BORDERS))
    text = f"nn.Conv{rank}d({cin}, {cout}, {kernel}{{settings}})"
    return d.layer(f"holed({text})" if d.chance(0.1) else text, x, **options)


def transposed(d: Drawer) -> int:
    """A transposed convolution."""
    x = d.image()
    rank, cin = d.values[x].ndim - 2, d.values[x].shape[1]
    groups = 1 if d.chance(0.7) else divisor(d, cin)
    cout = groups * d.rng.randint(1, 4)
    options = some(
        d, 0.4, stride=each(d, rank, 1, 3), padding=each(d, rank, 0, 2),
        dilation=each(d, rank, 1, 2),
        output_padding=each(d, rank, 0, 1), groups=groups, bias=False,
    )  # fmt: skip
    kernel = each(d, rank, 1, 3)
    return d.layer(f"nn.ConvTranspose{rank}d({cin}, {cout}, {kernel}{{settings}})", x, **options)


def computed_weight(d: Drawer) -> int:
    """A convolution whose weight is computed: normalised, scaled, or from another value."""
    x = d.image()
    rank, cin = d.values[x].ndim - 2, d.values[x].shape[1]
    kernel = tuple(d.rng.randint(1, 2) for _ in range(rank))
    part = d.own(f"nn.Parameter(torch.randn({(d.rng.randint(1, 6), cin, *kernel)}))")
    weight = d.rng.choice(
        ("{part} * 0.5", "{part} - {part}.mean((1, 2), keepdim=True)", "{part}.tanh()",
         "F.normalize({part}, dim=1)", "{part} * {0}.mean()", "{part}.flip(0)")
    )  # fmt: skip
    return d.step(
        f"F.conv{rank}d({{0}}, {weight}{{settings}})", x, part=part, **some(d, 0.4, padding=1)
    )


def linear(d: Drawer) -> int:
    """A linear layer of the last axis."""
    x = d.floating(2, 3, 4)
    if d.is_dynamic and d.values[x].ndim == 4:
        raise Rejected("the last axis may vary")
    count = d.values[x].shape[-1]
    options = some(d, 0.4, bias=False)
    return d.layer(f"nn.Linear({count}, {d.rng.randint(1, 8)}{{settings}})", x, **options)


def norm(d: Drawer, read: int | None = None) -> int:
    """A norm in eval mode, on running statistics or on those of the batch."""
    x = d.floating(2, 3, 4, 5) if read is None else read
    shape = d.values[x].shape
    rank, count = max(1, len(shape) - 2), shape[1]
    kind = d.rng.choice(("batch",) * 6 + ("instance", "group", "layer", "layer", "frozen", "rms"))
    if kind == "batch":
        options = some(d, 0.2, eps=0.1, affine=False, track_running_stats=False, momentum=None)
        return d.layer(f"nn.BatchNorm{rank}d({count}{{settings}})", x, **options)
    if kind == "instance" and len(shape) > 2:
        options = some(d, 0.5, affine=True, track_running_stats=True)
        return d.layer(f"nn.InstanceNorm{rank}d({count}{{settings}})", x, **options)
    if kind == "group":
        options = some(d, 0.3, affine=False)
        return d.layer(f"nn.GroupNorm({divisor(d, count)}, {count}{{settings}})", x, **options)
    if kind == "frozen":
        form = count, *(1,) * (len(shape) - 2)
        scale = d.own(f"nn.Buffer(torch.rand({form}) + 0.5)")
        x = d.step("{0} * ({part} + 1e-3).rsqrt()", x, part=scale)
        return d.step("{0} + {part}", x, part=d.own(f"nn.Buffer(torch.randn({form}))"))
    last = shape[-1:] if d.chance(0.7) or len(shape) < 3 else shape[-2:]
    if kind == "rms":
        return d.layer(f"nn.RMSNorm({list(last)}{{settings}})", x, **some(d, 0.3, eps=1e-3))
    options = some(d, 0.3, elementwise_affine=False, bias=False)
    return d.layer(f"nn.LayerNorm({list(last)}{{settings}})", x, **options)


def pool(d: Drawer) -> int:
    """Average, maximum and power pools with every option, and adaptive ones."""
    r, x = d.rng, d.image()
    rank = d.values[x].ndim - 2
    kind = r.choice(("avg",) * 4 + ("max", "max", "lp", "adaptive_avg", "adaptive_max", "mean"))
    if kind == "mean":
        dims = tuple(range(2, rank + 2)) if d.chance(0.6) else (-1,)
        return d.step(f"{{0}}.mean({dims}{{settings}})", x, **some(d, 0.5, keepdim=True))
    if kind.startswith("adaptive"):
        given = d.values[x].shape[2:]
        size = r.choice((1, 1, 2, given if not d.is_dynamic else 1, each(d, rank, 1, 4)))
        size = tuple(size) if not isinstance(size, int) else size
        return d.step(f"F.{kind}_pool{rank}d({{0}}, {size})", x)
    kernel = each(d, rank, 1, 3)
    options = some(d, 0.5, stride=each(d, rank, 1, 3)) | some(d, 0.25, ceil_mode=True)
    if kind == "lp":
        return d.step(
            f"F.lp_pool{rank}d({{0}}.abs() + 0.1, 2.0, {kernel}{{settings}})", x, **options
        )
    options |= some(d, 0.4, padding=each(d, rank, 0, 1))
    if kind == "avg":
        options |= some(d, 0.4, count_include_pad=False)
        options |= some(d, 0.2, divisor_override=r.randint(1, 7)) if rank > 1 else {}
    else:
        options |= some(d, 0.3, dilation=each(d, rank, 1, 2))
    return d.step(f"F.{kind}_pool{rank}d({{0}}, {kernel}{{settings}})", x, **options)


def pad(d: Drawer) -> int:
    """A padding of every kind, also negative."""
    r, x = d.rng, d.image()
    rank = d.values[x].ndim - 2
    mode = r.choice(("constant",) * 4 + ("reflect", "replicate", "circular"))
    if mode != "constant":
        return d.step(
            "F.pad({0}, %s{settings})" % [r.randint(0, 2) for _ in range(2 * rank)], x, mode=mode
        )
    amounts = [r.randint(-1, 2) for _ in range(2 * r.randint(1, rank + 1))]
    value = r.choice((0.0, 0.0, 1.0, -1.0, 0.37, -0.0))
    return d.step(f"F.pad({{0}}, {amounts}{{settings}})", x, **some(d, 0.6, value=value))


def padded_bias(d: Drawer) -> int:
    """A pad with what a layer gives for zeros, and the pad of a pad before a convolution."""
    x = d.image()
    x = d.step(f"F.pad({{0}}, {[1, 1] * (d.values[x].ndim - 2)})", x)
    return conv(d, x)


def resample(d: Drawer) -> int:
    """Interpolation of every kind, by sizes or factors."""
    r, x = d.rng, d.image()
    rank = d.values[x].ndim - 2
    smooth = ("linear", "bilinear", "trilinear")[rank - 1]
    modes = ["nearest", "nearest-exact", "area", smooth, *(["bicubic"] if rank == 2 else [])]
    mode = r.choice(modes)
    options: dict[str, Any] = {}
    if mode in (smooth, "bicubic"):
        options |= some(d, 0.4, align_corners=True)
        options |= some(d, 0.5, antialias=True) if rank == 2 else {}
    if d.chance(0.4):
        return d.step(
            f"F.interpolate({{0}}, size={each(d, rank, 2, 9)}, mode={mode!r}{{settings}})",
            x,
            **options,
        )
    factor = r.choice((1, 2.0, 0.5, 1.5, 3.0, 1.0, 0.7))
    options |= some(d, 0.2, recompute_scale_factor=True)
    return d.step(
        f"F.interpolate({{0}}, scale_factor={factor}, mode={mode!r}{{settings}})", x, **options
    )


def shuffle(d: Drawer) -> int:
    """Depth to space and back, channel shuffles."""
    x, r = d.floating(4), d.rng
    shape = d.values[x].shape
    text = r.choice(
        ("F.pixel_shuffle({0}, 2)", "F.pixel_unshuffle({0}, 2)", "F.channel_shuffle({0}, 2)")
    )
    if "unshuffle" in text and shape[2] % 2 + shape[3] % 2:
        x = d.step(f"F.pad({{0}}, [0, {shape[3] % 2}, 0, {shape[2] % 2}])", x)
    return d.step(text, x)


def shared(d: Drawer) -> int:
    """A module used once more."""
    owned = [n for n, part in enumerate(d.parts) if "nn.Buffer" not in part.text]
    if not owned:
        raise Rejected("no module yet")
    part = d.rng.choice(owned)
    if "nn.Parameter" in d.parts[part].text:
        raise Rejected("a tensor")
    return d.step("{part}({0})", d.floating(), part=part)


def residual(d: Drawer) -> int:
    """A block: a body beside an identity or a projection, joined."""
    x = d.image()
    shape, y = d.values[x].shape, x
    for _ in range(d.rng.randint(1, 2)):
        y = conv(d, y, cout=d.rng.choice((shape[1], shape[1], d.rng.randint(1, 6))), keeps=True)
        y = norm(d, y) if d.chance(0.6) else y
        y = d.step(d.rng.choice(("F.relu({0})", "F.silu({0})", "{0} * 0.5", "{0}.clone()")), y)
    if d.values[y].shape != shape or d.chance(0.3):
        x = d.layer(f"nn.Conv{len(shape) - 2}d({shape[1]}, {d.values[y].shape[1]}, 1)", x)
    join = d.rng.choice(
        ("{0} + {1}", "{1} - {0}", "{0} * {1}", "torch.add({0}, {1}, alpha=-0.5)", "{0}.add_({1})")
    )
    return d.step(join, y, x)


def branches(d: Drawer) -> int:
    """Siblings of one input: added as RepVGG does, or stacked as Inception does."""
    x, r = d.image(), d.rng
    adds = d.chance(0.6)
    count = d.values[x].shape[1] if d.chance(0.5) else r.randint(1, 6)
    found = []
    for _ in range(r.randint(2, 3)):
        y = conv(d, x, cout=count if adds else r.randint(1, 4), keeps=True)
        y = norm(d, y) if d.chance(0.5) else y
        found.append(d.step("F.relu({0})", y) if d.chance(0.2) else y)
    if d.values[x].shape[1] == count and d.chance(0.5):
        found.append(norm(d, x) if d.chance(0.5) else x)
    if not adds:
        places = ", ".join(f"{{{n}}}" for n in range(len(found)))
        return d.step(f"torch.cat([{places}], 1)", *found)
    y = found[0]
    for other in found[1:]:
        y = d.step(r.choice(("{0} + {1}", "{0} + {1}", "{0} - {1}", "{0}.add_({1})")), y, other)
    return y
