"""timm:NAME."""

import torch

from passfx.source.spec import Arguments, Loaded
from passfx.source.zoo import build, unknown, zoo


def timm_model(text: str, arguments: Arguments) -> Loaded:
    """The model, and an image of the size that its configuration declares."""
    timm, name = zoo("timm"), text.removeprefix("timm:")
    if not timm.is_model(name):
        raise unknown("timm", name, timm.list_models())
    model = build(lambda: timm.create_model(name, **arguments), text)
    config = getattr(model, "pretrained_cfg", None) or {}
    channels, *image = config.get("input_size", (3, 224, 224))
    channels, given = arguments.get("in_chans", channels), arguments.get("img_size", image)
    height, width = (given, given) if isinstance(given, int) else given
    return model, lambda: torch.randn(1, channels, height, width)
