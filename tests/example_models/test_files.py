"""Every file of models/ stands alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from models import digits

MODELS = Path(digits.__file__).parent


def test_files_load_by_their_paths_alone(tmp_path: Path) -> None:
    script = (
        "import importlib.util, sys\n"
        "for path in sys.argv[1:]:\n"
        "    spec = importlib.util.spec_from_file_location('loaded_by_path', path)\n"
        "    module = importlib.util.module_from_spec(spec)\n"
        "    spec.loader.exec_module(module)\n"
        "    if hasattr(module, 'digits_resnet'):\n"
        "        module.digits_resnet()(*module.example_inputs())\n"
        "    assert not {'models', 'passfx', 'sklearn'} & set(sys.modules), path\n"
    )
    paths = [str(MODELS / f"{name}.py") for name in ("digits", "pass_layer", "resnet")]
    subprocess.run([sys.executable, "-I", "-c", script, *paths], cwd=tmp_path, check=True)


@pytest.mark.parametrize("path", sorted(MODELS.rglob("*.py")), ids=lambda path: path.name)
def test_models_do_not_import_passfx(path: Path) -> None:
    imported = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported.append(node.module or "")
    assert not [name for name in imported if name.split(".")[0] == "passfx"]
