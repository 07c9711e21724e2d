"""Weights as a trained model could have them, a model's results as a list, and distances."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

TOLERANCE = 1e-4  # max |difference| / max |reference| of each output, or
TIMES = 10  # so many times as far from float64 as the float32 model is under PyTorch
CONSTANT = 1e-5  # an output that changes less than that with the input proves nothing


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random values for whatever a model starts as a constant: norms, biases, layer scales.

    Zeros, which would leave branches dead, become small; ones 0.5 to 1.5; what is between them (a
    layer scale of 1e-5) 0.1 to 0.5; anything else varies by a fifth. Batch statistics are near
    those of the activations, as a trained net's are.
    """
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            mean, var = (getattr(module, f"running_{name}", None) for name in ("mean", "var"))
            if isinstance(mean, torch.Tensor) and isinstance(var, torch.Tensor):
                mean.normal_(0, 0.1, generator=random)
                var.uniform_(0.5, 2, generator=random)
            if type(module).__name__ == "FrozenBatchNorm2d":
                module.weight.uniform_(0.5, 1.5, generator=random)
                module.bias.normal_(0, 0.1, generator=random)
        for item in model.parameters():
            if (
                item.is_floating_point()
                and item.numel()
                and bool((item == item.flatten()[0]).all())
            ):
                start = float(item.flatten()[0])
                if start == 0:
                    item.normal_(0, 0.1 if item.ndim < 2 else 0.02, generator=random)
                elif start == 1 and item.numel() > 1:
                    item.uniform_(0.5, 1.5, generator=random)
                elif abs(start) < 0.5 and item.numel() > 1:
                    item.uniform_(0.1, 0.5, generator=random)
                else:
                    item.mul_(torch.empty_like(item).uniform_(0.8, 1.2, generator=random))
    return model


def flat(result: Any) -> list[torch.Tensor]:
    """The tensors of a model's result, whatever classes hold them, in their order."""
    return list(_tensors(result))


def _tensors(result: Any) -> Iterator[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, Mapping):
        for item in result.values():
            yield from _tensors(item)
    elif dataclasses.is_dataclass(result):
        for field in dataclasses.fields(result):
            yield from _tensors(getattr(result, field.name))
    elif isinstance(result, Sequence) and not isinstance(result, str):
        for item in result:
            yield from _tensors(item)


def cast(values: Any, dtype: torch.dtype) -> Any:
    """Arguments with their floating tensors in another dtype."""
    return torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda item: item.to(dtype) if item.is_floating_point() else item, values
    )


def distance(result: torch.Tensor, wanted: torch.Tensor) -> float:
    """max |difference| / max |reference|; infinite where shapes or what is not finite differ."""
    if result.shape != wanted.shape:
        return float("inf")
    if not wanted.numel():
        return 0.0
    result, wanted = result.double(), wanted.double()
    finite = wanted.isfinite()
    if not torch.equal(result.isfinite(), finite):
        return float("inf")
    difference = torch.where(finite, result - wanted, 0).abs().max()
    scale = torch.where(finite, wanted, 0).abs().max()
    return float(difference / scale) if scale else float(difference)
