"""The formulas of the papers, and random norms and inputs to compare the models on."""

import torch
from torch import Tensor, nn
from torch.nn import functional


def randomise(model: nn.Module) -> None:
    """Give every batch norm statistics and weights of its own: the fresh 0 and 1 hide errors."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, generator=generator)


def randn(*shape: int, scale: float = 1.0) -> Tensor:
    """Return float64 normal noise, the same at every call."""
    generator = torch.Generator().manual_seed(2)
    return scale * torch.randn(*shape, dtype=torch.float64, generator=generator)


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.0)


def convolve(x: Tensor, conv: nn.Module) -> Tensor:
    """Apply the weights of `conv` with the geometry the tests expect, not with the module's."""
    assert isinstance(conv, nn.Conv2d)
    return functional.conv2d(x, conv.weight, conv.bias, padding=conv.weight.shape[-1] // 2)


def normalise(x: Tensor, norm: nn.Module) -> Tensor:
    """Write eval-mode batch norm out, arXiv:1502.03167."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance, weight, bias = (
        values[:, None, None]
        for values in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / torch.sqrt(variance + norm.eps) * weight + bias
