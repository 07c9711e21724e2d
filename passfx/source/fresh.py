"""Weights for a model that nothing was trained for: near what training leaves.

Libraries start the last norm of a residual block, layer scales, biases and heads at zero, or all
elements of them alike. Such a branch computes nothing, so sizes, speeds and errors say nothing of
it.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils import _pytree as pytree

_STATISTICS = ("running_mean", "running_var")
_SMALL = 0.5  # what is smaller is a start near nothing: a layer scale of 1e-5, a norm's zero
_LEAST = 0.1  # of the mean square of a norm's input: the variance of a channel that is constant


@torch.no_grad()
def randomize(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], seed: int = 0
) -> None:
    """Random values for whatever has the same one everywhere, and statistics that fit.

    Of tensors whose elements are all alike, value v:
    1. biases become v + N(0, 0.1²), and so does what is added, of two or more axes and zero;
    2. weights of layers that are zero become N(0, 1 / inputs);
    3. what scales (norms, layer scales) becomes v · U(0.5, 1.5), or, where |v| < 0.5, U(0.1, 0.3);
    4. a single number that is not zero stays: a temperature, an exponent.

    The statistics of a norm are those of what it gets in a run, in float64, on the inputs and on
    others like them; the mean is off by up to a tenth of the deviation, the variance by a factor of
    U(0.5, 2), as those of a trained net are on other images. So no depth lets activations overflow
    or vanish.

    Args:
        args, kwargs: inputs of the model; one that the model does not take leaves statistics near
            0 and 1.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if _has_statistics(module)]
    for module in model.modules():
        for name, tensor in _weights(module):
            if (
                tensor.is_floating_point()
                and tensor.numel()
                and bool((tensor == _of(tensor)).all())
            ):
                _draw(name, tensor, generator)
    for norm in norms:
        mean, variance = (getattr(norm, name) for name in _STATISTICS)
        mean.normal_(0, 0.1, generator=generator)
        variance.uniform_(0.5, 2, generator=generator)
    if norms:
        inputs = pytree.tree_map_only(
            Tensor, lambda x: _doubled(x, generator), (args, dict(kwargs))
        )
        _fit_statistics(model, norms, *inputs)


def _has_statistics(module: nn.Module) -> bool:
    return all(isinstance(getattr(module, name, None), Tensor) for name in _STATISTICS)


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own parameters; a frozen norm has them as buffers."""
    yield from module.named_parameters(recurse=False)
    if _has_statistics(module):
        buffers = dict(module.named_buffers(recurse=False))
        yield from ((name, buffers[name]) for name in ("weight", "bias") if name in buffers)


def _of(tensor: Tensor) -> float:
    return float(tensor.flatten()[0])


def _draw(name: str, tensor: Tensor, generator: Generator) -> None:
    value, axes = _of(tensor), sum(size > 1 for size in tensor.shape)
    if value and tensor.numel() == 1:
        return
    if not value and name == "weight" and tensor.ndim > 1:
        tensor.normal_(0, 1 / math.sqrt(tensor[0].numel()), generator=generator)
    elif "bias" in name or (not value and axes > 1):
        tensor.normal_(value, 0.1, generator=generator)
    elif abs(value) < _SMALL:
        tensor.uniform_(0.1, 0.3, generator=generator)
    else:
        tensor.uniform_(0.5, 1.5, generator=generator).mul_(value)


def _doubled(x: Tensor, generator: Generator) -> Tensor:
    """An input with another one like it in the same batch, in float64."""
    if not x.ndim:
        return x
    if not x.is_floating_point():
        return torch.cat([x, x])
    return torch.cat([x.double(), torch.randn(x.shape, generator=generator).double()])


def _fit_statistics(
    model: nn.Module, norms: Sequence[nn.Module], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Multiply the statistics of norms by those of what they get, in a run of a copy."""
    twin = copy.deepcopy(model).double().eval()
    twins = [module for module in twin.modules() if _has_statistics(module)]
    for module in twins:
        module.register_forward_pre_hook(_FitOnce())
    try:
        twin(*args, **kwargs)
    except Exception:  # capture says better what a model does not take
        return
    for norm, fitted in zip(norms, twins, strict=True):
        for name in _STATISTICS:
            getattr(norm, name).copy_(getattr(fitted, name))


class _FitOnce:
    """Before the first call of a norm, its statistics become those of its input."""

    def __init__(self) -> None:
        self.done = False

    def __call__(self, norm: Any, args: tuple[Any, ...]) -> None:
        if self.done:
            return
        self.done = True
        x = args[0]
        variance, mean = torch.var_mean(
            x, [axis for axis in range(x.ndim) if axis != 1], correction=0
        )
        power = (variance + mean.square()).mean()
        variance = variance.maximum(_LEAST * power) if power > 0 else torch.ones_like(variance)
        norm.running_mean.mul_(variance.sqrt()).add_(mean)
        norm.running_var.mul_(variance)
