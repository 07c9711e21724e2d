"""torchvision:NAME."""

import pytest

from passfx.errors import SourceError
from passfx.source.load import load_source
from passfx.source.spec import SourceSpec


@pytest.mark.parametrize(("name", "size"), [("squeezenet1_1", 224), ("inception_v3", 299)])
def test_torchvision_model_has_its_declared_size(name: str, size: int) -> None:
    assert load_source(SourceSpec(f"torchvision:{name}")).args[0].shape == (1, 3, size, size)


def test_torchvision_model_without_a_declared_size() -> None:
    name = "torchvision:lraspp_mobilenet_v3_large"
    with pytest.raises(SourceError, match="give --input-shape 1x3x224x224$"):
        load_source(SourceSpec(name))
    source = load_source(SourceSpec(name, input_shapes=["1x3x64x64"]))
    assert source.args[0].shape == (1, 3, 64, 64)
