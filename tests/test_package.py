"""The package as it is imported."""

import subprocess
import sys

import passfx


def test_import_is_light() -> None:
    script = (
        "import sys, passfx\n"
        "heavy = {'onnx', 'onnxruntime', 'rich', 'onnxscript', 'timm', 'torchvision', 'click'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.stdout.strip(), result.returncode) == ("[]", 0), result.stderr


def test_public_names_exist() -> None:
    assert [name for name in passfx.__all__ if not hasattr(passfx, name)] == []
