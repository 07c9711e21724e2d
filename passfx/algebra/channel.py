"""The per-channel affine map y[c] = scale[c] · x[c] + shift[c]: norms, scales, biases."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ChannelAffine:
    """`scale` and `shift` are float64, shape [channels]."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def batch_norm(
        cls, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
    ) -> "ChannelAffine":
        """Batch normalisation with running statistics (Ioffe and Szegedy, 2015, algorithm 2).

        Args:
            weight, bias: affine parameters, shape [channels], or None.
            mean, var: running statistics, shape [channels].
            eps: added to the variance.
        """
        scale = torch.rsqrt(var.double() + eps)
        if weight is not None:
            scale = scale * weight.double()
        shift = -mean.double() * scale
        if bias is not None:
            shift = shift + bias.double()
        return cls(scale, shift)

    @classmethod
    def scaling(cls, scale: Tensor, channels: int) -> "ChannelAffine":
        """y = scale · x, with `scale` of one element or one per channel."""
        scale = scale.double().reshape(-1).expand(channels)
        return cls(scale, torch.zeros_like(scale))

    @classmethod
    def shifting(cls, shift: Tensor, channels: int) -> "ChannelAffine":
        """y = x + shift, with `shift` of one element or one per channel."""
        shift = shift.double().reshape(-1).expand(channels)
        return cls(torch.ones_like(shift), shift)

    def then(self, after: "ChannelAffine") -> "ChannelAffine":
        """The map that applies `self` first and `after` second."""
        return ChannelAffine(self.scale * after.scale, self.shift * after.scale + after.shift)
