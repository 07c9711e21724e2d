"""`passfx deploy`: what it writes and says, and wrong use."""

import re
import shutil
from pathlib import Path

import pytest

from tests.cli.net import Invoke

pytest.importorskip("tritonclient.grpc.model_config_pb2")


@pytest.fixture
def model(folder: Path, made: Path) -> Path:
    return Path(shutil.copy(made, folder / "my net.onnx"))


def test_it_says_what_it_wrote_and_how_to_serve_it(model: Path, invoke: Invoke) -> None:
    result = invoke("deploy", "my net.onnx", "--triton", "models")
    assert result.exit_code == 0, result.stderr
    assert "models/my_net/1/model.onnx" in result.stdout
    assert "tritonserver --model-repository=models" in result.stdout
    assert "on the server's GPUs, or its CPU; --provider says which" in result.stdout
    assert "kind" not in Path("models/my_net/config.pbtxt").read_text()  # Triton's KIND_AUTO
    assert invoke("deploy", "my net.onnx", "--triton", "b", "-q").stdout == ""
    for provider, kind in (("cuda", "KIND_GPU"), ("cpu", "KIND_CPU")):
        result = invoke("deploy", "my net.onnx", "--triton", provider, "--provider", provider)
        assert "--provider says which" not in result.stdout
        assert kind in Path(f"{provider}/my_net/config.pbtxt").read_text()


def test_a_tuned_file_is_deployed_as_it_was_tuned(model: Path, invoke: Invoke) -> None:
    assert invoke("tune", "my net.onnx", "--budget", "0.1", "-q").exit_code == 0
    assert invoke("deploy", "my net.onnx", "--triton", "models").exit_code == 0
    assert "KIND_CPU" in Path("models/my_net/config.pbtxt").read_text()
    result = invoke("deploy", "my net.onnx", "--triton", "gpu", "--provider", "cuda")
    assert "the file was tuned for cpu" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.onnx", "--triton", "m"], "the file gone.onnx does not exist"),
        (["net.py", "--triton", "m"], "net.py is not an ONNX file"),
        (["my net.onnx"], "missing option '--triton'; see passfx deploy --help"),
        (["my net.onnx", "--triton", "m", "--version", "0"], "invalid value for '--version'.*"),
        (["my net.onnx", "--triton", "m", "--name", "a b"], "'a b' cannot be the name of a .*"),
        (["my net.onnx", "--triton", "gone/m"], "gone/m/my_net cannot be written: No such .*"),
    ],
)
def test_wrong_use_gives_one_sentence(
    model: Path, invoke: Invoke, arguments: list[str], message: str
) -> None:
    result = invoke("deploy", *arguments)
    assert result.exit_code == 2
    assert re.fullmatch(f"error: {message}\n", result.stderr), result.stderr
    assert not Path("m").exists()
