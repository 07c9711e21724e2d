"""The import rule: a file never imports from a room to its right, and what only some rooms do."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "passfx"

# From left to right; the rooms of one step do not import each other either, unless they are one.
ROOMS = (
    ("errors", "version"),
    ("files", "record", "target"),
    ("algebra", "graph"),
    ("source", "capture", "analysis"),
    ("verify",),
    ("passes",),
    ("pipeline",),
    ("export",),
    ("runtime",),
    ("report",),
    ("jobs",),
    ("cli",),
)
# Importing passfx must stay light.
HEAVY = {"onnx", "onnxruntime", "onnx_ir", "onnxscript", "ml_dtypes", "rich", "click", "timm",
         "torchvision", "jinja2"}  # fmt: skip

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every absolute name that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            assert node.module is not None
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def called_attributes(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func), node.lineno


def rank(name: str) -> int:
    return next(number for number, names in enumerate(ROOMS) if name in names)


def test_every_room_has_its_place() -> None:
    assert {room(path) for path in FILES} == {name for names in ROOMS for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_never_imports_from_a_room_to_its_right(path: Path) -> None:
    own = room(path)
    for name, line in imports(path):
        top, _, rest = name.partition(".")
        if top != "passfx":
            continue
        assert rest, f"{path}:{line} imports the whole package"
        other = rest.split(".")[0]
        if other == own:
            continue
        assert rank(other) < rank(own), f"{path}:{line} imports {name}, which is to its right"


def test_passes_never_import_each_other() -> None:
    for path in (PACKAGE / "passes").glob("*.py"):
        if path.name == "__init__.py":
            continue
        for name, line in imports(path):
            if name.startswith("passfx.passes"):
                assert name.startswith("passfx.passes.base"), f"{path}:{line} imports {name}"


def importers_of(package: str) -> set[str]:
    return {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if any(name.split(".")[0] == package for name, _ in imports(path))
    }


def test_only_runtime_runs_onnxruntime() -> None:
    # `doctor` only asks which providers there are.
    others = {path for path in importers_of("onnxruntime") if not path.startswith("runtime/")}
    assert others <= {"cli/doctor.py"}


def test_algebra_knows_no_graph() -> None:
    for path in (PACKAGE / "algebra").glob("*.py"):
        for name, line in imports(path):
            assert not name.startswith(("torch.fx", "passfx.graph")), f"{path}:{line}"


def test_verify_knows_no_onnx() -> None:
    for path in (PACKAGE / "verify").glob("*.py"):
        assert not {name.split(".")[0] for name, _ in imports(path)} & HEAVY, path


def test_certificates_know_no_captured_model() -> None:
    names = {name for name, _ in imports(PACKAGE / "verify" / "certificate.py")}
    assert not any(name.startswith("passfx.capture") for name in names)


def test_only_capture_traces() -> None:
    for path in FILES:
        traces = [
            f"{path}:{line} calls {name}"
            for name, line in called_attributes(path)
            if name in ("torch.export.export", "fx.symbolic_trace", "torch.fx.symbolic_trace")
            or name.split(".")[-1] in ("run_decompositions", "draft_export", "make_fx")
        ]
        imported = {name.split(".")[-1] for name, _ in imports(path)}
        assert room(path) == "capture" or not traces, traces
        assert not imported & {"symbolic_trace", "Tracer", "make_fx", "export_for_training"}, path


WRITES = {
    "create_node", "erase_node", "call_function", "call_method", "call_module", "get_attr",
    "placeholder", "node_copy", "replace_all_uses_with", "replace_input_with", "update_arg",
    "update_kwarg", "insert_arg", "prepend", "inserting_before", "inserting_after",
    "eliminate_dead_code", "register_buffer", "register_parameter",
}  # fmt: skip
# capture builds the graph, export/onnx builds a new one for the exporter; its neighbours rewrite
# ONNX graphs, which torch.fx does not know.
WRITERS = {
    "graph/editor.py",
    "capture/functional.py",
    "capture/region.py",
    "export/onnx.py",
    "export/epilogue.py",
    "export/casts.py",
    "export/rounding.py",
    "export/sizes.py",
}


def test_only_the_editor_writes_graphs() -> None:
    for path in FILES:
        if str(path.relative_to(PACKAGE)) in WRITERS:
            continue
        found = [
            f"{path}:{line} calls {name}"
            for name, line in called_attributes(path)
            if name.split(".")[-1] in WRITES
        ]
        assert not found, found


NODE_FIELDS = {"args", "kwargs", "target", "op"}


def test_only_the_editor_assigns_the_fields_of_nodes() -> None:
    for path in FILES:
        if str(path.relative_to(PACKAGE)) in WRITERS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in targets:
                if isinstance(target, ast.Attribute) and target.attr in NODE_FIELDS:
                    owner = ast.unparse(target.value)
                    assert owner == "self", f"{path}:{node.lineno} assigns {owner}.{target.attr}"


def test_only_the_command_line_prints_and_exits() -> None:
    for path in FILES:
        if room(path) == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("print", "sys.exit", "exit", "quit"), f"{path}:{node.lineno}"


def test_no_test_is_imported() -> None:
    """What tests and benchmarks share has files of its own."""
    for path in (ROOT / "tests").rglob("*.py"):
        for name, line in imports(path):
            parts = name.split(".") if name.startswith("tests.") else []
            test = any(part == "conftest" or part.startswith("test_") for part in parts)
            assert not test, f"{path}:{line} imports {name}"


def test_shared_models_know_nothing_of_passfx() -> None:
    assert "passfx" not in imported_from(ROOT / "tests" / "models.py")


def test_models_stand_alone() -> None:
    for path in (ROOT / "models").rglob("*.py"):
        assert not any(name.split(".")[0] == "passfx" for name, _ in imports(path)), path


def top_level_imports(path: Path) -> set[str]:
    """The packages that importing a file imports: not those inside functions or type checks."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def file_of(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((item for item in candidates if item.is_file()), None)


def test_the_public_names_are_light_until_they_need_more() -> None:
    """Importing passfx, and optimising, needs no onnx; the command line needs no torch to start."""
    assert "torch" not in imported_from(PACKAGE / "__init__.py")
    assert not {"torch", *HEAVY} - {"click"} & imported_from(PACKAGE / "cli" / "__init__.py")
    assert not HEAVY & imported_from(PACKAGE / "jobs" / "convert.py")


def imported_from(start: Path) -> set[str]:
    """The packages that importing a file imports, through passfx's own files too."""
    found: set[str] = set()
    seen: set[Path] = set()
    pending = [start]
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in top_level_imports(path):
            found.add(name.split(".")[0])
            inner = file_of(name) if name.split(".")[0] in ("passfx", "models", "tests") else None
            if inner is not None:
                pending.append(inner)
    return found
