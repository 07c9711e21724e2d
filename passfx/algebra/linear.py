"""Linear layers as float64 tensors: weight [out, in], bias [out], acting on the last axis."""

from torch import Tensor

from passfx.algebra.channel import ChannelAffine


def then_channel(
    weight: Tensor, bias: Tensor | None, after: ChannelAffine
) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer followed by an affine map of each output feature.

    weight'[o] = scale[o] · weight[o], bias'[o] = scale[o] · bias[o] + shift[o].
    """
    scaled = weight.double() * after.scale.reshape(-1, 1)
    shifted = after.shift if bias is None else after.shift + after.scale * bias.double()
    return scaled, shifted
