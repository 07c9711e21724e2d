"""What every test may rely on."""

import importlib.util
from pathlib import Path

import pytest
import torch

# torchvision's compiled operators do not load with a CPU build of torch from another index than
# its own; the models need only their schemas.
_TORCHVISION_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qroi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, "
    "int pooled_width, int sampling_ratio, bool aligned) -> Tensor",
)


def _define_torchvision_schemas() -> torch.library.Library | None:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return None
    (compiled,) = Path(spec.submodule_search_locations[0]).glob("_C*.so")
    try:
        torch.ops.load_library(str(compiled))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for schema in _TORCHVISION_SCHEMAS:
            library.define(schema)
        return library
    return None


torch.set_num_threads(1)  # small tensors: threads cost more than they bring
_library = _define_torchvision_schemas()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
