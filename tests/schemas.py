"""What torchvision needs before it is imported beside a torch of another index."""

import functools
import importlib.util
from pathlib import Path

import torch

# torchvision's compiled operators do not load with a CPU build of torch from another index than
# its own; the models need only their schemas.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qroi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, "
    "int pooled_width, int sampling_ratio, bool aligned) -> Tensor",
)


@functools.cache  # the schemas live as long as the library does
def define_torchvision_schemas() -> torch.library.Library | None:
    """Define the schemas of torchvision's operators, where the operators themselves do not load."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return None
    (compiled,) = Path(spec.submodule_search_locations[0]).glob("_C*.so")
    try:
        torch.ops.load_library(str(compiled))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            library.define(schema)
        return library
    return None
