"""`passfx verify`: a file against its model, whoever wrote it."""

import json
import re
from pathlib import Path

import onnx
import pytest

import passfx
from tests.cli.net import SOURCE, Invoke


def test_verify_proves_a_file(folder: Path, invoke: Invoke, made: Path) -> None:
    result = invoke("verify", SOURCE, str(made))
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.search(r"Parity +relative error \d\.\de-\d+ under CPUExecution", result.stdout)
    assert f"File         {made}, " in result.stdout
    report = json.loads(invoke("verify", SOURCE, str(made), "--json", "-").stdout)
    assert report["parity"]["passed"] is True
    assert report["onnx"]["ops"]["Conv"] == 1
    assert report["opset"] == 20


def test_verify_fails_on_other_weights(folder: Path, invoke: Invoke, made: Path) -> None:
    result = invoke("verify", SOURCE, str(made), "--seed", "1", "--json", "out/report.json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: the result disagrees with the model: under CPUExec")
    assert not list((folder / "out").iterdir())


def test_verify_finds_one_changed_weight(folder: Path, invoke: Invoke, made: Path) -> None:
    model = onnx.load(made)
    (weight,) = (item for item in model.graph.initializer if len(item.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.reshape(-1)[5] += 1e-3
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, folder / "changed.onnx")
    assert invoke("verify", SOURCE, "changed.onnx").exit_code == 1
    assert invoke("verify", SOURCE, "changed.onnx", "--rtol", "0.1").exit_code == 0


def test_what_is_not_finite_is_accepted_where_it_is_meant(
    folder: Path, invoke: Invoke, made: Path
) -> None:
    (folder / "broken.py").write_text(
        "import net\n\ndef build():\n    model = net.build()\n"
        "    next(model.parameters()).data.view(-1)[0] = float('nan')\n    return model\n\n"
        "example_inputs = getattr(net, 'example_inputs', None)\n"
    )
    source = ("broken.py:build", "--input-shape", "1x3x6x6")
    result = invoke("convert", *source, "-o", "out/broken.onnx")
    assert result.exit_code == 1
    assert re.match(r"error: the weights are not finite: \S+ holds 1 NaN; mend", result.stderr)
    assert not list((folder / "out").iterdir())
    assert invoke("convert", *source, "-o", "b.onnx", "--allow-nonfinite").exit_code == 0
    assert invoke("verify", *source, "b.onnx").exit_code == 1
    result = invoke("verify", *source, "b.onnx", "--allow-nonfinite")
    assert result.exit_code == 0 and "Not finite " in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--input-shape", "1x3x7x7"],
            r"has the inputs x \(float32 1x3x6x6\), but the model has x \(float32 1x3x7x7\); "
            "give the options that it was made with",
        ),
        (
            ["--arg", "width=5"],
            r"has the outputs output \(float32 1x4x6x6\), but the model has output "
            r"\(float32 1x5x6x6\); give the options that it was made with",
        ),
        (
            ["--dynamic-batch"],
            r"has the inputs .*, but the model has x \(float32 batchx3x6x6\); .*",
        ),
    ],
)
def test_verify_names_other_inputs_and_outputs(
    folder: Path, invoke: Invoke, made: Path, options: list[str], message: str
) -> None:
    result = invoke("verify", SOURCE, str(made), *options)
    assert result.exit_code == 2
    assert re.fullmatch(f"error: {re.escape(str(made))} {message}\n", result.stderr), result.stderr


def test_verify_takes_a_file_with_more_freedom(folder: Path, invoke: Invoke) -> None:
    passfx.convert(SOURCE, "free.onnx", dynamic_batch=True)
    assert invoke("verify", SOURCE, "free.onnx").exit_code == 0
    assert invoke("verify", SOURCE, "free.onnx", "--dynamic-batch").exit_code == 0


def test_verify_of_what_is_no_model(folder: Path, invoke: Invoke) -> None:
    for name, message in (
        ("gone.onnx", "the file gone.onnx does not exist"),
        ("out", "the file out does not exist"),
        ("net.py", "net.py is not an ONNX file"),
    ):
        result = invoke("verify", SOURCE, name)
        assert (result.exit_code, result.stderr) == (2, f"error: {message}\n")


def test_verify_of_a_file_that_does_not_run(folder: Path, invoke: Invoke, made: Path) -> None:
    model = onnx.load(made)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, folder / "broken.onnx")
    result = invoke("verify", SOURCE, "broken.onnx")
    assert result.exit_code == 2
    assert re.fullmatch(r"error: broken\.onnx does not run: .*NoSuchOperator.*\n", result.stderr)


def test_verify_reads_the_sizes_of_the_file(folder: Path, invoke: Invoke) -> None:
    passfx.convert(SOURCE, "large.onnx", input_shapes=["2x3x9x8"])
    assert invoke("verify", SOURCE, "large.onnx").exit_code == 0
    bare = (folder / "net.py").read_text().partition("def example_inputs")[0]
    (folder / "bare.py").write_text(bare)
    passfx.convert("bare.py:build", "bare.onnx", input_shapes=["1x3x5x5"], dynamic_batch=True)
    assert invoke("verify", "bare.py:build", "bare.onnx").exit_code == 0
    result = invoke("verify", "bare.py:build", "bare.onnx", "--input-shape", "1x3x6x5")
    assert result.exit_code == 2 and "but the model has x (float32 1x3x6x5)" in result.stderr


def test_verify_says_where_nothing_is_proven(folder: Path, invoke: Invoke) -> None:
    (folder / "zero.py").write_text(
        "from torch import nn\n\ndef build():\n    model = nn.Linear(3, 4)\n"
        "    nn.init.zeros_(model.weight)\n    return model\n"
    )
    shape = ("--input-shape", "2x3")
    result = invoke("convert", "zero.py:build", "-o", "zero.onnx", *shape, "--report", "a.html")
    doubt = "the result is the same for all samples, to within the tolerance, so that parity proves"
    for found in (result, invoke("verify", "zero.py:build", "zero.onnx")):
        assert found.exit_code == 0
        assert f"Unproven     {doubt} nothing of output" in found.stdout
        assert "Note         1 layer has zero weights (linear); sizes and speeds" in found.stdout
    page = Path("a.html").read_text()
    assert doubt in page and "1 layer has zero weights" in page
    assert invoke("verify", "zero.py:build", "zero.onnx", "--json", "-").stdout.count(doubt) == 1
