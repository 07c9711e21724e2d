"""What a .pt2 file may hold: nothing that runs code of its own when torch loads it.

`torch.export.load` unpickles whatever the archive says is pickled (example inputs, tensors that are
no plain ones, objects), opens compiled libraries, and evaluates strings of the program: symbolic
sizes and guards, the names of what nodes call, of inputs and of types. All are looked at before.
"""

import ast
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from passfx.errors import SourceError, first_line

TRUST_ADVICE = "load it with --trust-pickle (trust_pickle=True) if you trust where it comes from"
_PICKLED = re.compile(r"\.pt$|(^|/)serialized_(state_dict|constants)\.json$", re.IGNORECASE)
_OBJECT = re.compile(r"(^|/)(custom_obj|opaque_obj)_[^/]*$", re.IGNORECASE)
PROGRAM = re.compile(r"(^|/)(models/.*|serialized_exported_program\.json)$", re.IGNORECASE)
_CONFIG = re.compile(r"_config\.json$", re.IGNORECASE)
_COMPILED = re.compile(r"(^|/)aotinductor/", re.IGNORECASE)
_MAX_GROWTH = 100  # torch does not compress; what other tools compress grows ten times or so

# What a node may call: operators of these namespaces, and arithmetic of sizes. Other names lead to
# any function of torch, of the modules that it imports, or of a library that was loaded.
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|higher_order|quantized_decomposed|torchvision)"
    r"\.(?!__|from_file\b)\w+(\.(?!__)\w+)?"
    r"|torch\._?sym_\w+|math\.\w+|_operator\.(?!attrgetter|itemgetter|methodcaller|call)\w+"
)
_RESOLVED = ("torch", "math", "_operator", "#")  # prefixes of what torch looks up
_NAME_KEYS = re.compile(r"name|\w+_name|fqn|forward_arg_names")  # become Python code or parts of it
_NAME = re.compile(r"[^\"'()\\\n]*")
_EXPRESSION = (
    ast.Expression, ast.Name, ast.Load, ast.keyword, ast.BinOp, ast.UnaryOp, ast.BoolOp,
    ast.Compare, ast.IfExp, ast.Tuple, ast.List, ast.Subscript, ast.operator, ast.unaryop,
    ast.boolop, ast.cmpop,
)  # fmt: skip
_METHODS = ("size", "shape", "stride", "storage_offset", "isnan", "inf")
_FUNCTIONS = ("floor", "ceiling", "max", "min", "abs", "int", "float", "bool", "sqrt")
_Read = Callable[[str], bytes]


def check_archive(path: Path) -> None:
    """Refuse an archive that holds more than a program and plain tensors.

    Raises:
        SourceError: what it holds, and how to load it all the same.
    """
    try:
        for names, read in _views(path):
            found = next(_faults(names, read), None)
            if found:
                raise SourceError(
                    f"{path} holds {found}, and loading that could run any code; {TRUST_ADVICE}"
                )
    except SourceError:
        raise
    except Exception as error:  # a damaged archive makes the readers raise anything
        raise SourceError(
            f"{path} is not a program saved with torch.export.save: {first_line(error)}"
        ) from error


def _views(path: Path) -> Iterator[tuple[Sequence[str], _Read]]:
    """The archive as torch's two readers see it, which may differ in a file made to deceive."""
    with zipfile.ZipFile(path) as archive:
        size = sum(item.file_size for item in archive.infolist())
        if size > _MAX_GROWTH * path.stat().st_size:
            raise ValueError(f"its members claim to be {size / 1e9:.1f} GB")
        yield archive.namelist(), archive.read
    try:
        reader = torch._C.PyTorchFileReader(str(path))
    except RuntimeError:
        return  # torch too falls back to the zip archive
    yield reader.get_all_records(), reader.get_record


def _faults(names: Sequence[str], read: _Read) -> Iterator[str]:
    """What in an archive could run code."""
    for name in names:
        if _COMPILED.search(name):
            yield f"compiled code ({name})"
        elif _OBJECT.search(name):
            yield f"a pickled object ({name})"
        elif _PICKLED.search(name):
            yield from _pickle_faults(name, read)
        elif PROGRAM.search(name):
            yield from _program_faults(json.loads(read(name)), name)
        elif _CONFIG.search(name):
            for item in json.loads(read(name))["config"].values():
                if item["use_pickle"]:
                    place = os.path.join(os.path.dirname(name), item["path_name"])
                    yield from _pickle_faults(place, read)


def _pickle_faults(name: str, read: _Read) -> Iterator[str]:
    """Python objects, of which torch's own restricted reader knows only harmless ones."""
    data = read(name)
    try:
        if data:  # of an empty one torch makes an empty mapping
            torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:
        yield f"a pickle of more than plain tensors ({name})"


def _program_faults(item: Any, where: str, key: str = "") -> Iterator[str]:
    """The strings of a program from which torch would make other code than operators."""
    if isinstance(item, dict):
        for inner_key, inner in item.items():
            yield from _program_faults(inner, where, inner_key)
    elif isinstance(item, list):
        for inner in item:
            yield from _program_faults(inner, where, key)
    elif isinstance(item, str):
        if key in ("target", "as_operator"):
            if item.startswith(_RESOLVED) and not _OPERATOR.fullmatch(item):
                yield f"a call of {item} ({where})"
        elif key in ("expr_str", "guards_code"):
            if not _is_expression(item):
                yield f"the expression {item!r} ({where})"
        elif key in ("in_spec", "out_spec"):
            yield from _nesting_faults(json.loads(item), where, key == "in_spec")
        elif _NAME_KEYS.fullmatch(key) and not _NAME.fullmatch(item):
            yield f"the name {item!r} ({where})"


def _nesting_faults(item: Any, where: str, named: bool) -> Iterator[str]:
    """How values are nested: JSON, in which contexts are JSON again, that may name types.

    The keys of inputs can become parameters of generated code (`named`), those of outputs cannot.
    """
    if isinstance(item, dict):
        if "__enum__" in item or "default_factory_module" in item:
            yield f"the name of a type to import ({where})"
        for inner in item.values():
            yield from _nesting_faults(inner, where, named)
    elif isinstance(item, list):
        for inner in item:
            yield from _nesting_faults(inner, where, named)
    elif isinstance(item, str) and item.lstrip().startswith(("{", "[")):
        yield from _nesting_faults(json.loads(item), where, named)
    elif named and isinstance(item, str) and not _NAME.fullmatch(item):
        yield f"the name {item!r} ({where})"


def _is_expression(text: str) -> bool:
    """Whether it is arithmetic of sizes, and calls only what makes symbols and numbers."""
    for node in ast.walk(ast.parse(text, mode="eval")):
        if isinstance(node, ast.Constant):
            is_plain = bool(re.fullmatch(r"[\w.\- ]*", str(node.value)))
        elif isinstance(node, ast.Attribute):
            is_plain = node.attr in _METHODS
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            is_plain = node.func.id[0].isupper() or node.func.id in _FUNCTIONS
        elif isinstance(node, ast.Call):
            is_plain = isinstance(node.func, ast.Attribute)
        else:
            is_plain = isinstance(node, _EXPRESSION)
        if not is_plain:
            return False
    return True
