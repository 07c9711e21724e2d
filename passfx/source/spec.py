"""What the user named, and what it came to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passfx.record import TensorInfo

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.nn import Module

    Given = Sequence[Any] | Mapping[str, Any] | Tensor  # positional inputs, by name, a lone one

# What a form's file gives: a model, and the inputs that are declared beside it, if there are any,
# as a value or a function.
Arguments = Mapping[str, Any]
Loaded = tuple[Any, Any]

OWN_START = "none"  # for weights: those that a collection of models itself starts with

# The axes of an input that vary, or from where to where each of them does.
Axes = Sequence[int] | Mapping[int, tuple[int | None, int | None]]

FORMS = "file.py:factory, package.module:factory, timm:NAME, torchvision:NAME or file.pt2"


def source_file(text: str) -> Path | None:
    """The file in which a source lies, as far as its text says so."""
    place = text.rpartition(":")[0] or text
    if place.endswith((".py", ".pt2", ".onnx")):
        return Path(place)
    is_module = place not in ("timm", "torchvision") and place.replace(".", "").isidentifier()
    return Path(place.replace(".", "/") + ".py") if is_module else None


@dataclass(frozen=True)
class SourceSpec:
    """A source or a model, and its inputs; `passfx.convert` says what each field means.

    `file_inputs` are those of a file that was made of the source: where no `input_shapes` are
    given, and the source declares none or others, they count.
    """

    source: "str | Module | ExportedProgram"
    args: "Given" = ()
    kwargs: Mapping[str, Any] | None = None
    arguments: Mapping[str, Any] | None = None
    weights: str | PathLike[str] | None = None
    input_shapes: Sequence[str] = ()
    dynamic_batch: bool = False
    dynamic_axes: Mapping[str, Axes] | None = None
    dynamic_shapes: Any = None
    seed: int = 0
    trust_pickle: bool = False
    weights_key: str | None = None
    strict: bool = True
    file_inputs: Sequence[TensorInfo] = ()

    @property
    def weights_file(self) -> Path | None:
        """The file of a state dict, if one is given."""
        return None if self.weights in (None, Path(OWN_START), OWN_START) else Path(self.weights)

    @property
    def gives_inputs(self) -> bool:
        """Whether there are inputs among it, not shapes or none."""
        is_empty = self.args is None or (isinstance(self.args, Sequence) and not self.args)
        return not is_empty or bool(self.kwargs)

    def files(self) -> dict[str, Path | None]:
        """The files that are read, by what a sentence calls them."""
        weights = self.weights_file
        source = source_file(self.source) if isinstance(self.source, str) else None
        return {"the source": source, "the weights": weights}


@dataclass(frozen=True)
class Source:
    """A model and the inputs to capture it with.

    Attributes:
        name: the source as the user wrote it, or the class of a model that was given.
        args, kwargs: example inputs of `model.forward`.
        dynamic_shapes: which of their sizes vary, as `torch.export.export` takes it.
        notes: sentences about how the model came about, which its figures depend on.
    """

    name: str
    model: "Module | ExportedProgram"
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any = None
    notes: tuple[str, ...] = ()
