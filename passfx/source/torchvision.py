"""torchvision:NAME."""

import inspect

import torch

from passfx.source.spec import Arguments, Loaded
from passfx.source.zoo import build, unknown, zoo


def torchvision_model(text: str, arguments: Arguments) -> Loaded:
    """The model, and an image of the size that its weights were trained for, if they say so."""
    models, name = zoo("torchvision").models, text.removeprefix("torchvision:")
    if name not in models.list_models():
        raise unknown("torchvision", name, models.list_models())
    arguments = {"weights": None, **arguments}
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        arguments.setdefault("weights_backbone", None)
    model = build(lambda: models.get_model(name, **arguments), text)
    try:
        crop = models.get_model_weights(name).DEFAULT.transforms().crop_size
    except AttributeError:
        return model, None
    return (model, lambda: torch.randn(1, 3, crop[0], crop[0])) if len(crop) == 1 else (model, None)
