"""Convolutions as float64 tensors.

A convolution of any number of spatial dimensions has weight [out, in / groups, *kernel]; a
transposed one has weight [in, out / groups, *kernel]. The bias has shape [out].
"""

from torch import Tensor

from passfx.algebra.channel import ChannelAffine


def then_channel(
    weight: Tensor, bias: Tensor | None, after: ChannelAffine, *, groups: int, transposed: bool
) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution followed by a per-channel affine map of its outputs.

    Exact for every stride, padding and dilation, because the map acts on each output value alone:
    weight'[o] = scale[o] · weight[o], bias'[o] = scale[o] · bias[o] + shift[o].

    Args:
        weight: [out, in / groups, *kernel], or [in, out / groups, *kernel] if `transposed`.
        bias: [out] or None.
        after: the map, over `out` channels.

    Returns:
        Weight of the same shape and bias of shape [out], both float64.
    """
    weight = weight.double()
    taps = (1,) * (weight.ndim - 2)
    if transposed:
        grouped = weight.reshape(groups, -1, *weight.shape[1:])
        scale = after.scale.reshape(groups, 1, weight.shape[1], *taps)
        scaled = (grouped * scale).reshape(weight.shape)
    else:
        scaled = weight * after.scale.reshape(-1, 1, *taps)
    shifted = after.shift if bias is None else after.shift + after.scale * bias.double()
    return scaled, shifted
