"""What somebody may have meant who named no source."""

from collections.abc import Sequence
from pathlib import Path

from passfx.errors import SourceError, some
from passfx.files import is_file, is_folder
from passfx.source.checkpoint import archive_kind, modules_in, read_checkpoint
from passfx.source.factory import factories, import_file, import_module, is_module
from passfx.source.fit import parts
from passfx.source.spec import FORMS
from passfx.source.zoo import suggestions

_WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".pkl", ".tar")


def no_source(text: str) -> SourceError:
    """The error of a text that is none of the forms, with what to give instead.

    Raises:
        SourceError: a Python file that it names does not import.
    """
    place = text.rstrip(":")
    path = Path(place)
    if not place:
        return SourceError(f"{text!r} is not a source: give {FORMS}")
    if path.suffix == ".onnx":
        return SourceError(
            f"{path} is an ONNX file, which is not a source: give the model that it was made from; "
            "`passfx tune`, `bench` and `deploy` take the file itself, and `passfx verify SOURCE "
            f"{path}` proves it"
        )
    if path.suffix == ".py":
        return _without_factory(place, factories(import_file(path)))
    if path.suffix in _WEIGHTS or is_file(path):
        return _file_of_weights(path)
    if is_folder(path):
        files = sorted(item.name for item in path.glob("*.py"))
        holds = f"; it holds {some(files)}" if files else ""
        return SourceError(f"{path} is a folder: name a file in it, {path}/net.py:factory{holds}")
    if all(map(str.isidentifier, place.split("."))) and is_module(place):
        return _without_factory(place, factories(import_module(place)))
    meant = suggestions(place.rpartition("/")[2].rpartition(":")[2])
    hint = f"; did you mean {' or '.join(meant)}?" if meant else f": give {FORMS}"
    return SourceError(f"{text!r} is not a source{hint}")


def _without_factory(place: str, names: Sequence[str]) -> SourceError:
    if not names:
        return SourceError(
            f"{place} has no factory: define a function that returns the model, and give "
            f"{place}:function"
        )
    known = some([f"{place}:{name}" for name in names], 8)
    return SourceError(f"{place} alone is not a source: name a factory in it, {known}")


def _file_of_weights(path: Path) -> SourceError:
    if not is_file(path):
        return SourceError(f"the file {path} does not exist; a source is {FORMS}")
    kind = archive_kind(path)
    if kind == "TorchScript":
        return SourceError(
            f"{path} is TorchScript, which torch.export does not capture: give the module that it "
            "was made from, as file.py:factory, and its weights as --weights FILE, from "
            f"torch.save(torch.jit.load({str(path)!r}).state_dict(), FILE)"
        )
    if kind is not None:
        return SourceError(f"{path} holds {kind}: give it a name that ends with .pt2")
    try:
        found = read_checkpoint(path)
    except SourceError as error:
        return SourceError(f"{error}; a source is {FORMS}")
    if pickled := next(modules_in(found), None):
        return SourceError(
            f"{path} holds a whole pickled module ({pickled.name}) without its code: give what "
            f"builds it as SOURCE, file.py:factory, with --weights {path} --trust-pickle if you "
            "trust where it comes from"
        )
    if any(parts(found)):
        return SourceError(
            f"{path} holds weights and no model: give what builds it as SOURCE (file.py:factory, "
            f"timm:NAME, …), with --weights {path}"
        )
    return SourceError(f"{path} holds neither a model nor weights: give {FORMS}")
