"""MODEL.passfx.json: what `passfx tune` found out about a file, beside the file."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from passfx.errors import SourceError, named_line
from passfx.export.onnx import external_files
from passfx.files import is_file
from passfx.runtime.options import Options
from passfx.version import __version__


@dataclass(frozen=True)
class Sidecar:
    """The result of tuning a file.

    Attributes:
        model_path: the file to run: the tuned one itself, or a variant of it beside it.
        options: what to open it with.
        batches: the batch sizes that were measured.
        device: the processor or GPU that it was measured on.
        speedup: the geometric mean, over the batches, of the times of an untuned session of the
            given file divided by the tuned one's.
        results: what was measured, a row for each combination and batch size.
    """

    model_path: Path
    options: Options
    batches: tuple[int, ...]
    device: str
    speedup: float
    results: tuple[Mapping[str, Any], ...]


def sidecar_path(model: Path) -> Path:
    """Where the sidecar of a file lies: "model.passfx.json" beside "model.onnx"."""
    return model.with_suffix(".passfx.json")


def sidecar_text(model: Path, sidecar: Sidecar, versions: Mapping[str, str]) -> str:
    """The sidecar of a file as JSON, with the checksums that tie it to the file."""
    found = {
        "passfx": __version__,
        "model": _fingerprint(model),
        "tuned": _fingerprint(sidecar.model_path),
        "provider": sidecar.options.provider,
        "device": sidecar.device,
        "versions": dict(versions),
        "batches": sidecar.batches,
        "options": asdict(sidecar.options),
        "speedup": sidecar.speedup,
        "results": sidecar.results,
    }
    return json.dumps(found, indent=2, allow_nan=False) + "\n"


def read_sidecar(model: Path) -> Sidecar | None:
    """The sidecar of a file; None where there is none.

    Raises:
        SourceError: it cannot be read, or it was made for other contents of the file.
    """
    path = sidecar_path(model)
    if not is_file(path):
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        tuned = path.with_name(_text(found["tuned"]["file"]))
        fingerprints = (model, found["model"]), (tuned, found["tuned"])
        batches = tuple(map(_size, found["batches"]))
        sidecar = Sidecar(
            tuned,
            Options.from_dict(found["options"]),
            batches,
            _text(found["device"]),
            _positive(found["speedup"]),
            tuple(dict(row) for row in found["results"]),
        )
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SourceError) as error:
        raise SourceError(
            f"{path} is not a file that `passfx tune` wrote ({named_line(error)}); "
            "tune again or delete it"
        ) from error
    for file, fingerprint in fingerprints:
        if not is_file(file):
            raise SourceError(f"{path} is about {file}, which does not exist; tune again")
        if _fingerprint(file) != fingerprint:
            raise SourceError(
                f"{file} is not what it was when {path} was written; tune again or delete that file"
            )
    return sidecar


def _text(item: Any) -> str:
    if not isinstance(item, str):
        raise TypeError(f"{item!r} is no text")
    return item


def _size(item: Any) -> int:
    if type(item) is not int or item < 1:
        raise ValueError(f"{item!r} is no batch size")
    return item


def _positive(item: Any) -> float:
    if type(item) not in (int, float) or not 0 < item < math.inf:
        raise ValueError(f"{item!r} is no speed-up")
    return float(item)


def _fingerprint(model: Path) -> dict[str, str]:
    """Name and checksum of a file, with the weights that lie beside it."""
    digest = hashlib.sha256()
    for path in (model, *external_files(model)):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return {"file": model.name, "sha256": digest.hexdigest()}
