"""What else networks are made of, and how often each family draws what."""

from collections.abc import Callable
from typing import Any

import torch

from tests.fuzz import layers
from tests.fuzz.drawing import Drawer, Rejected
from tests.fuzz.layers import divisor, some

Operator = Callable[[Drawer], Any]

FAMILIES = (
    *("image2",) * 5, *("image1",) * 2, *("image3",) * 2,
    "sequence", "sequence", "tokens", "vector",
)  # fmt: skip

_ACTIVATIONS = (
    "F.relu({0})", "F.relu6({0})", "F.silu({0})", "F.gelu({0})", "F.gelu({0}, approximate='tanh')",
    "F.elu({0})", "F.selu({0})", "F.celu({0})", "F.mish({0})", "F.softplus({0})",
    "F.hardswish({0})",
    "F.hardsigmoid({0})", "F.leaky_relu({0}, 0.1)", "F.leaky_relu({0}, 1.0)", "F.softsign({0})",
    "F.tanhshrink({0})", "F.hardshrink({0})", "F.softshrink({0})", "F.threshold({0}, 0.1, 20.0)",
    "F.logsigmoid({0})", "{0}.sigmoid()", "{0}.tanh()", "{0}.erf()", "{0}.sin()", "{0}.abs()",
    "{0}.square()", "{0}.abs().sqrt()", "(-{0}.abs()).exp()", "{0}.abs().log1p()", "{0}.atan()",
    "F.glu({0}, 1)", "F.softmax({0}, 1)", "F.softmax({0}, -1)", "F.log_softmax({0}, 1)",
    "{0}.sign()", "{0}.neg()", "-{0}", "F.normalize({0}, dim=1, eps=1e-3)", "{0} * {0}.sigmoid()",
    "({0} * 2).clamp(0, 1)", "1 / ({0}.square() + 1)",
)  # fmt: skip
_CLIPS = (
    "F.relu({0})", "F.relu6({0})", "F.hardtanh({0}, -0.5, 0.7)", "{0}.clamp(-1, 1)",
    "{0}.clamp(min=0)",
    "{0}.clamp(max=0.5)", "{0}.clamp_min(0.2)", "{0}.clamp_max(0)", "{0}.clamp(0.5, -0.5)",
    "F.relu(F.relu6({0}))", "F.relu({0}).clamp(max=6)", "{0}.clamp(-1, 1).clamp(0, 3)",
)  # fmt: skip
_NOTHING = (
    "{0} * 1", "{0} * 1.0", "{0} + 0", "{0} - 0.0", "{0} / 1", "0 + {0}", "1 * {0}", "{0} ** 1",
    "{0}.clone()", "{0}.contiguous()", "{0}.detach()", "{0}.double()", "{0}.to(torch.float64)",
    "F.dropout({0}, 0.3, False)", "F.dropout({0}, 0.0, True)", "F.alpha_dropout({0}, 0.5, False)",
    "{0}.view_as({0})", "{0}.reshape({0}.shape)", "{0}.expand_as({0})", "torch.cat([{0}], 1)",
    "torch.stack([{0}], 0).squeeze(0)", "{0}[:]", "{0}[...]", "{0}.roll(0, 1)",
    "{0}.unsqueeze(0)[0]",
    "{0}.transpose(0, 1).transpose(0, 1)", "{0}.mT.mT", "{0}.repeat(*[1] * {0}.ndim)",
    "{0}.clamp()",
    "torch.add({0}, 0.0, alpha=3)", "{0} * torch.ones_like({0})", "{0}.flip(1).flip(1)",
    "{0}.unflatten(1, (1, -1)).flatten(1, 2)", "{0}.sum(0, keepdim=True)", "nn.Identity()({0})",
    "{0}.split({0}.shape[1], 1)[0]", "{0}.chunk(1, 1)[0]", "{0} - 0 * {0}", "{0}.float().double()",
)  # fmt: skip
_CONSTANTS = (
    "{0} * 2", "{0} + 1", "{0} - 0.5", "{0} / -4", "1 - {0}", "0 * {0}", "-1 * {0}", "{0} * 0",
    "2 + {0} * 3",
    "torch.rsub({0}, 0.5)", "torch.rsub({0}, 2, alpha=0.25)", "torch.sub({0}, 3, alpha=2)",
    "torch.add({0}, 1.5, alpha=-2)", "3 / ({0}.abs() + 1)",
    "torch.div({0}, 2, rounding_mode='floor')",
    "torch.addcmul({0}, {0}, {0}, value=0.1)", "torch.lerp({0}, -{0}, 0.25)", "{0} * -0.0",
    "{0} % 3",
)  # fmt: skip
_MERGES = (
    "{0} + {1}", "{0} + {1}", "{0} - {1}", "{0} * {1}", "{0} / ({1}.abs() + 1)",
    "torch.maximum({0}, {1})",
    "torch.minimum({0}, {1})", "torch.add({0}, {1}, alpha=-2)", "torch.sub({0}, {1}, alpha=0.5)",
    "torch.rsub({0}, {1})", "torch.rsub({0}, {1}, alpha=3)", "torch.lerp({0}, {1}, 0.3)",
    "torch.where({0} > {1}, {0}, {1} * 0.5)", "torch.where({0} > 0, {1}, {0})",
    "{0} * {1}.sigmoid()",
    "torch.addcmul({0}, {1}, {0}, value=-0.5)", "{0} * ({0} > {1})", "torch.hypot({0}, {1})",
    "({0} + {1}) + ({0} - {1})", "sum([{0}, {1}, {0}])", "torch.stack([{0}, {1}]).sum(0)",
    "torch.stack([{0}, {1}], 1).flatten(1, 2)", "{0}.masked_fill({1} > 0, -1.0)",
    "torch.atan2({0}, {1}.abs() + 1)",
)  # fmt: skip
_VIEWS = (
    "{0}.flatten(1)", "{0}.flatten(2)", "{0}.reshape({0}.shape[0], -1)", "{0}.transpose(1, -1)",
    "{0}.unsqueeze(1)",
    "{0}.unsqueeze(-1)", "{0}.squeeze(1)", "{0}.squeeze()", "{0}.flip(1)", "{0}.flip(-1)",
    "{0}.roll(1, -1)",
    "{0}[:, 1:]", "{0}[:, :1]", "{0}[..., 1:]", "{0}[..., :-1]", "{0}[..., ::2]", "{0}[:, ::2]",
    "{0}[:, -1:]",
    "{0}[:, 0]", "{0}[..., -1]", "{0}.narrow(1, 0, 1)", "{0}.movedim(1, -1)", "{0}.movedim(-1, 1)",
    "{0}.flatten(1).unflatten(1, (-1, 1))", "{0}.repeat_interleave(2, 1)", "{0}.tile(2)",
    "{0}[:, None]",
    "{0}.transpose(1, -1).flatten(1)", "{0}.permute(0, *range({0}.ndim - 1, 0, -1))",
    "{0}.swapaxes(-1, -2)",
    "{0}.flatten(2).transpose(1, 2)", "{0}.expand(2, *{0}.shape)", "{0}.tril()",
    "{0}.diagonal(0, -2, -1)",
    "{0}.index_select(1, torch.tensor([0, 0]))", "{0}[:, [0, -1]]", "{0}.unfold(-1, 2, 1)",
    "{0}.swapaxes(0, 1)",
)  # fmt: skip
_REDUCTIONS = (
    "{0}.sum(1, keepdim=True)", "{0}.mean(1, keepdim=True)", "{0}.mean(-1)", "{0}.amax(1)",
    "{0}.amin(-1, keepdim=True)",
    "{0}.max(1)[0]", "{0}.std(-1)", "{0}.logsumexp(1)", "{0}.cumsum(1)", "{0}.norm(dim=1)",
    "{0}.prod(-1)",
    "{0}.mean()", "{0}.topk(1, 1)[0]", "{0}.sort(-1)[0]", "{0}.var(1, unbiased=False)",
    "{0}.cummax(-1)[0]",
    "{0}.argmax(1)", "{0}.median(-1)[0]", "({0} > 0).sum(1)", "{0}.flatten(1).mean(1)",
)  # fmt: skip
_CASTS = (
    "{0}.float()", "{0}.half().double()", "{0}.float().double()", "({0} > 0).double()",
    "({0} * 4).long()",
    "({0} > 0)", "{0}.to(torch.bfloat16).double()", "{0}.int()", "{0}.type_as({0})",
    "({0} > 0) & ({0} < 1)",
)  # fmt: skip
_IN_PLACE = (
    "{0}.relu_()", "{0}.add_(1)", "{0}.mul_(0.5)", "F.relu({0}, inplace=True)",
    "F.silu({0}, inplace=True)",
    "{0}[:, 0].add_(1)", "({0}[:, :1].mul_(2), {0})[1]", "({0}[..., 0].zero_(), {0})[1]",
    "{0}.clamp_(-1, 1)",
    "({0}.flatten(1).neg_(), {0})[1]", "({0}.transpose(0, 1).sub_(0.5), {0})[1]",
    "{0}.copy_({0} * 2)",
    "{0}[..., 1:].fill_(0.3)", "{0}.unsqueeze(0).sigmoid_()", "F.hardtanh({0}, inplace=True)",
    "F.elu_({0})",
)  # fmt: skip


def among(*texts: str) -> Operator:
    """One of these expressions of one value."""

    def draw(d: Drawer) -> int:
        return d.step(d.rng.choice(texts), d.floating())

    return draw


def merge(d: Drawer) -> int:
    """Two values joined, of one shape or broadcast."""
    x = d.floating()
    shape = d.values[x].shape
    text = d.rng.choice(_MERGES)
    if d.chance(0.25):
        y = d.pick(lambda v: v.dtype.is_floating_point, new=False)
    else:
        y = d.pick(lambda v: v.dtype == torch.float64 and v.shape == shape, new=False)
    return d.step(text, *((x, y) if d.chance(0.5) else (y, x)))


def scale(d: Drawer) -> int:
    """A constant tensor, of any shape that broadcasts, and of plain values too."""
    x, r = d.floating(), d.rng
    shape = d.values[x].shape
    if len(shape) == 0 or (d.is_dynamic and len(shape) < 3):
        raise Rejected("nothing to broadcast over")
    kept = range(1, len(shape)) if not d.is_dynamic else (1,)
    form = [size if axis in kept and d.chance(0.6) else 1 for axis, size in enumerate(shape)]
    form = form[r.randint(0, len(form) - 1) :] if d.chance(0.4) else form
    values = r.choice(
        (
            "torch.randn({})",
            "torch.rand({}) + 0.5",
            "torch.ones({})",
            "torch.zeros({})",
            "-torch.ones({})",
        )
    )
    kind = r.choice(("nn.Parameter", "nn.Buffer"))
    part = d.own(f"{kind}({values.format(form)})")
    text = r.choice(("{0} * {part}", "{part} * {0}", "{0} + {part}", "{part} - {0}", "{0} - {part}",
                     "{0} / ({part} + 3)", "torch.rsub({0}, {part}, alpha=2)",
                     "torch.add({part}, {0}, alpha=-1)",
                     "{0} * {part} + {part}", "torch.addcmul({part}, {0}, {part})"))  # fmt: skip
    return d.step(text, x, part=part)


def cat(d: Drawer) -> int:
    """Two to four values after one another, the same one twice perhaps."""
    x = d.floating(2, 3, 4, 5)
    shape = d.values[x].shape
    dim = d.rng.choice((1, 1, 1, -1, 0, len(shape) - 1))
    rest = [size for axis, size in enumerate(shape) if axis != dim % len(shape)]

    def fits(v: torch.Tensor) -> bool:
        own = [size for axis, size in enumerate(v.shape) if axis != dim % len(shape)]
        return v.ndim == len(shape) and own == rest and v.dtype == torch.float64

    found = [x, *(d.pick(fits, new=False) for _ in range(d.rng.randint(1, 3)))]
    d.rng.shuffle(found)
    places = ", ".join(f"{{{number}}}" for number in range(len(found)))
    return d.step(f"torch.cat([{places}], {dim})", *found)


def split(d: Drawer) -> int:
    """Parts of one value, some of them joined again in another order."""
    x = d.floating(2, 3, 4, 5)
    count = d.values[x].shape[1]
    if count < 2:
        raise Rejected("nothing to split")
    first = d.rng.randint(1, count - 1)
    forms = [
        f".split([{first}, {count - first}], 1)",
        ".chunk(2, 1)",
        ".tensor_split(2, 1)",
        ".split(1, 1)",
    ]
    parts = d.step("{0}" + d.rng.choice(forms), x)
    a = d.step("{0}[0]", parts)
    b = d.step("{0}[1]", parts)
    if d.chance(0.5):
        return d.step(d.rng.choice(("torch.cat([{1}, {0}], 1)", "torch.cat([{0}, {1}], 1)")), a, b)
    return d.step("F.relu({0})", d.rng.choice((a, b)))


def in_place(d: Drawer) -> int:
    """A write to a value that others may read, or to a view of it; rarely to an input."""
    writes_inputs = d.chance(0.02)
    x = d.pick(lambda v: v.dtype == torch.float64 and (writes_inputs or not d.is_foreign(v)))
    if d.chance(0.5):  # somebody reads it before
        d.step(d.rng.choice(("{0} * 2", "{0}.clone()", "{0}.sin()")), x)
    return d.step(d.rng.choice(_IN_PLACE), x)


def product(d: Drawer) -> int:
    """Matrix products and einsum."""
    x = d.floating(2, 3, 4)
    count = d.values[x].shape[-1]
    if d.chance(0.4):
        part = d.own(f"nn.Parameter(torch.randn({(count, d.rng.randint(1, 6))}))")
        text = d.rng.choice(
            (
                "{0} @ {part}",
                "torch.matmul({0}, {part})",
                "torch.einsum('...i,ij->...j', {0}, {part})",
            )
        )
        return d.step(text, x, part=part)
    texts = ["{0} @ {0}.mT", "{0}.mT @ {0}", "torch.matmul({0}, {0}.transpose(-1, -2)) * 0.1"]
    if d.values[x].ndim == 3:
        texts += ["torch.bmm({0}, {0}.transpose(1, 2))", "torch.einsum('bij,bkj->bik', {0}, {0})",
                  "torch.baddbmm({0} @ {0}.mT, {0}, {0}.mT, alpha=0.5)"]  # fmt: skip
    if d.values[x].ndim == 2:
        texts += ["torch.einsum('bi,bj->bij', {0}, {0})", "torch.addmm({0} @ {0}.T, {0}, {0}.T)"]
    return d.step(d.rng.choice(texts), x)


def attention(d: Drawer) -> int:
    """Attention by function or module, over [batch, positions, channels]."""
    x = d.floating(3)
    count = d.values[x].shape[-1]
    if d.is_dynamic and d.inputs[0].kind == "float" and len(d.inputs[0].dynamic) > 1:
        raise Rejected("the last axis may vary")
    heads = divisor(d, count)
    if d.chance(0.4):
        options = some(d, 0.3, bias=False, add_zero_attn=True)
        part = d.own(
            f"nn.MultiheadAttention({count}, {heads}, batch_first=True{{settings}})", **options
        )
        return d.step("{part}({0}, {0}, {0})[0]", x, part=part)
    q = d.step(f"{{0}}.unflatten(-1, ({heads}, -1)).transpose(1, 2)", x)
    k = q
    if d.chance(0.6):
        y = d.layer(f"nn.Linear({count}, {count})", x)
        k = d.step(f"{{0}}.unflatten(-1, ({heads}, -1)).transpose(1, 2)", y)
    options = some(d, 0.3, is_causal=True, scale=0.3)
    y = d.step("F.scaled_dot_product_attention({0}, {1}, {1}{settings})", q, k, **options)
    return d.step("{0}.transpose(1, 2).flatten(2)", y)


def qkv(d: Drawer) -> int:
    """Three layers of one input, which are siblings, or one that is split."""
    x = d.floating(3)
    count = d.values[x].shape[-1]
    if d.chance(0.5):
        q, k, v = (
            d.layer(f"nn.Linear({count}, {count}{{settings}})", x, **some(d, 0.3, bias=False))
            for _ in "qkv"
        )
    else:
        parts = d.step("{0}.chunk(3, -1)", d.layer(f"nn.Linear({count}, {3 * count})", x))
        q, k, v = (d.step(f"{{0}}[{number}]", parts) for number in range(3))
    y = d.step("({0} @ {1}.mT * 0.5).softmax(-1) @ {2}", q, k, v)
    return d.step("{0} + {1}", x, y)


def embedding(d: Drawer) -> int:
    """An embedding of integers, and a head that shares its weight perhaps."""
    x = d.pick(
        lambda v: v.dtype == torch.int64 and v.ndim == 2 and int(v.min()) >= 0 and int(v.max()) < 7
    )
    count = d.rng.choice((4, 6, 8))
    options = some(d, 0.3, padding_idx=0)
    part = d.own(f"nn.Embedding(7, {count}{{settings}})", **options)
    y = d.step("{part}({0})", x, part=part)
    if d.chance(0.3):
        y = d.step("{0} * 8.0", y)
        return d.step("F.linear({0}, {part}.weight)", y, part=part)
    if d.chance(0.4) and not d.is_dynamic:
        position = d.own(f"nn.Parameter(torch.randn(1, {d.values[y].shape[1]}, {count}))")
        return d.step("{0} + {part}", y, part=position)
    return y


def integers(d: Drawer) -> int:
    """Arithmetic of integers and masks, and their use."""
    x = d.pick(lambda v: not v.dtype.is_floating_point)
    if d.values[x].dtype == torch.bool:
        texts = [
            "~{0}",
            "{0}.double()",
            "{0}.long()",
            "{0} & {0}",
            "{0} | ~{0}",
            "{0}.double() * 2 - 1",
        ]
        y = d.pick(lambda v: v.dtype == torch.float64)
        texts += [
            "{1} * {0}",
            "torch.where({0}, {1}, 0.0)",
            "{1}.masked_fill({0}, 0.5)",
            "{1} + {0}",
        ]
        return d.step(d.rng.choice(texts), x, y)
    return d.step(
        d.rng.choice(("{0} + 1", "{0} * 1", "{0} * 0", "{0} // 2", "{0}.clamp(0, 5)", "{0} + 0",
                      "{0}.double()",
                      "{0} - {0}", "{0} * 2 - 1", "{0} / 2", "{0} % 3", "({0} > 2).double()",
                      "F.relu({0})",
                      "F.one_hot({0}.clamp(0, 6), 7).double()", "{0}.float()", "{0} * 1.0",
                      "{0}.clamp(0)")),
        x,
    )  # fmt: skip


def single(d: Drawer) -> int:
    """Float32 among float64."""
    x = d.pick(lambda v: v.dtype == torch.float32)
    return d.step(
        d.rng.choice(
            ("{0}.double()", "{0} * 2", "{0} + 1.0", "F.relu({0})", "{0} * 1", "{0}.neg()")
        ),
        x,
    )


def gather(d: Drawer) -> int:
    """Reading by index."""
    x = d.floating(2, 3, 4)
    texts = ("{0}.gather(1, {0}.argsort(1))", "{0}.take_along_dim({0}.argmax(1, keepdim=True), 1)",
             "{0}[torch.arange({0}.shape[0]), 0]",
             "{0}.scatter(1, {0}.argmax(1, keepdim=True), 0.0)",
             "{0}.index_add(1, torch.tensor([0]), {0}[:, :1])")  # fmt: skip
    return d.step(d.rng.choice(texts), x)


_COMMON: tuple[tuple[Operator, float], ...] = (
    (merge, 6), (scale, 4), (cat, 3), (split, 1.5), (layers.norm, 4), (layers.shared, 1.5),
    (in_place, 2),
    (among(*_ACTIVATIONS), 4), (among(*_CLIPS), 2), (among(*_NOTHING), 4), (among(*_CONSTANTS), 3),
    (among(*_VIEWS), 2), (among(*_REDUCTIONS), 0.8), (among(*_CASTS), 0.7), (integers, 1),
    (gather, 0.4),
    (single, 0.5),
)  # fmt: skip
_IMAGES: tuple[tuple[Operator, float], ...] = (
    (layers.conv, 9), (layers.transposed, 1.2), (layers.pool, 4), (layers.pad, 2),
    (layers.resample, 3),
    (layers.residual, 2), (layers.branches, 2.5), (layers.computed_weight, 0.7),
    (layers.shuffle, 0.7),
    (layers.padded_bias, 1), (layers.linear, 1), (product, 0.3),
)  # fmt: skip
_ROWS: tuple[tuple[Operator, float], ...] = (
    (layers.linear, 7),
    (product, 2),
    (attention, 2.5),
    (qkv, 1.5),
    (embedding, 2),
    (layers.conv, 1),
)


def operators_of(family: str) -> list[tuple[Operator, float]]:
    """What a family draws, and how often."""
    return [*_COMMON, *(_IMAGES if family.startswith("image") else _ROWS)]
