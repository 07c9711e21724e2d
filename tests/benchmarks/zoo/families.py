"""Write `models.json`: the smallest model of every timm family, every builder of torchvision.

    python -m tests.benchmarks.zoo.families

A family is a module of timm's registry; the smallest model is the one with the fewest parameters,
counted on the meta device, so that no weights are made. Ten minutes for 1,371 models.
"""

import json
from typing import Any

import timm
import torch
from torchvision import models

from tests.benchmarks.zoo.cases import KNOWN

KINDS = {
    "classification": models,
    "segmentation": models.segmentation,
    "video": models.video,
    "optical_flow": models.optical_flow,
}


def smallest(family: str) -> dict[str, Any]:
    """The smallest model of one of timm's modules."""
    found: list[dict[str, Any]] = []
    for name in timm.list_models(module=family):
        with torch.device("meta"):
            model = timm.create_model(name)
        count = sum(item.numel() for item in model.parameters())
        size = list(model.pretrained_cfg["input_size"])
        found.append({"family": family, "model": name, "parameters": count, "size": size})
    return min(found, key=lambda item: item["parameters"])


def builder(kind: str, name: str) -> dict[str, Any]:
    """A builder of torchvision; its weights say how many parameters there are."""
    count = models.get_model_weights(name).DEFAULT.meta["num_params"]
    return {"kind": kind, "model": name, "parameters": count}


def main() -> None:
    """Write the file, the smallest models first."""
    families = [smallest(item) for item in timm.list_modules() if timm.list_models(module=item)]
    builders = [
        builder(kind, name) for kind, module in KINDS.items() for name in models.list_models(module)
    ]
    known = {"timm": families, "torchvision": builders}
    for items in known.values():
        items.sort(key=lambda item: item["parameters"])
    lines = [
        f'"{name}": [\n' + ",\n".join(map(json.dumps, items)) + "\n]"
        for name, items in known.items()
    ]
    KNOWN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
