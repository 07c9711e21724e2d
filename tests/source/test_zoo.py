"""Collections of models: names that they do not have, packages that are not there."""

import sys
import types

import pytest

from passfx.errors import SourceError
from passfx.source.load import load_source
from passfx.source.spec import SourceSpec


@pytest.mark.parametrize("name", ["timm:resnt18", "torchvision:resnt18"])
def test_unknown_zoo_model_suggests_another(name: str) -> None:
    with pytest.raises(SourceError, match=r"has no model 'resnt18'; did you mean resnet18,"):
        load_source(SourceSpec(name))


def test_absent_zoo_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SourceError, match=r"timm is not installed: pip install 'passfx\[zoo\]'"):
        load_source(SourceSpec("timm:resnet18"))


def test_zoo_that_does_not_import_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> types.ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(SourceError, match="nms does not exist; torch and torchvision must be"):
        load_source(SourceSpec("torchvision:resnet18"))
