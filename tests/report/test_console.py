"""What the terminal shows of a report."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from passfx.analysis.cost import GraphCost
from passfx.analysis.shortcuts import Shortcut
from passfx.record import OnnxReport, PassReport, Refusal, Rewrite, TensorInfo
from passfx.report.console import (
    format_bytes,
    format_count,
    print_conversion,
    print_inspection,
    print_parity,
)
from passfx.report.model import Report
from passfx.verify.parity import Parity

REPORT = Report(
    source="net.py:build",
    target="cpu",
    precision="fp32",
    inputs=(TensorInfo("x", "float32", ("batch", 3)),),
    outputs=(TensorInfo("loss", "float64", ()),),
    before=GraphCost(3, {"conv2d": 1, "batch_norm": 1, "dropout": 1}, 1_814_073_344, 999, 3996),
    after=GraphCost(2, {"conv2d": 1, "relu": 1}, 1_814_073_344, 990, 3960),
    shortcuts=(
        Shortcut("identity", "add", "relu", "add", "layer1.0", (), ("conv2d", "relu_1"), False),
        Shortcut(
            *("projection", "cat", "relu_2", "cat", ""),
            ("conv2d_2",),
            tuple(f"node_{number}" for number in range(9)),
            True,
        ),
    ),
    passes=(
        PassReport(
            "collapse",
            0.1,
            False,
            (Rewrite("batch_norm", "bn", "batch_norm into conv2d", ("a",), ("b",), 3.2e-16),),
            (
                Refusal("mul", "", "conv2d is also read by add"),
                Refusal("add", "head", "undone: relative error 1.0e-01 on random inputs", True),
            ),
        ),
        PassReport(
            "share-common",
            0.1,
            True,
            (),
            (Refusal("output", "", "the pass was undone: output 0 changed its shape or dtype"),),
        ),
    ),
    parity=Parity("CPUExecutionProvider", 2, 1e-6, 2e-7, 1e-7, 1.2e-6, True),
    onnx=OnnxReport("[/b].onnx", 44_700_000, 3, {"Conv": 2, "Relu": 1}, 20),
    seconds={"capture": 1.0, "passes": 0.5, "verify": 0.0, "export": 2.0, "total": 3.5},
)


def shown(function: object, report: Report = REPORT) -> list[str]:
    console = Console(file=io.StringIO(), width=40, highlight=False, markup=False, soft_wrap=True)
    function(console, report)  # type: ignore[operator]
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_conversion() -> None:
    assert shown(print_conversion) == [
        "net.py:build",
        "               before   after",
        "batch_norm          1       0",
        "conv2d              1       1",
        "dropout             1       0",
        "relu                0       1",
        "operators           3       2",
        "MACs, batch 1  1.81 G  1.81 G",
        "parameters        999     990",
        "weights        4.0 kB  4.0 kB",
        "Shortcuts    1 identity, 1 projection",
        "Undone       collapse at head (add): undone: relative error 1.0e-01 on random inputs",
        "Refused      collapse: 1 (`passfx inspect` shows why)",
        "Rolled back  share-common: the pass was undone: output 0 changed its shape or dtype",
        "Refused      share-common: 1 (`passfx inspect` shows why)",
        "Parity       relative error 2.0e-07 under CPUExecutionProvider, tolerated 1.2e-06 "
        "(PyTorch itself 1.0e-07, max abs 1.0e-06, 2 samples)",
        "File         [/b].onnx, 44.7 MB, opset 20: 2 Conv, 1 Relu",
        "Seconds      3.5 (capture 1.0, passes 0.5, export 2.0)",
    ]


def test_inspection() -> None:
    lines = shown(print_inspection)
    assert lines[:2] == ["Input        x: float32 batch × 3", "Output       loss: float64 scalar"]
    assert lines[lines.index("weights        4.0 kB  4.0 kB") + 1 :] == [
        "identity at layer1.0 (add), add from relu",
        "  body  conv2d relu_1",
        "projection at cat, cat from relu_2, collapsible",
        "  path  conv2d_2",
        "  body  node_0 … node_8 (9)",
        "Shortcuts    1 identity, 1 projection",
        "collapse: 1 rewrite, 2 refusals",
        "  bn (batch_norm): batch_norm into conv2d (error 3e-16)",
        "  mul: refused, conv2d is also read by add",
        "  head (add): refused, undone: relative error 1.0e-01 on random inputs",
        "share-common: 0 rewrites, 1 refusal, rolled back",
        "  output: refused, the pass was undone: output 0 changed its shape or dtype",
    ]


def test_what_was_not_done_is_not_shown() -> None:
    assert shown(print_parity, replace(REPORT, parity=None, onnx=None)) == []
    lines = shown(print_conversion, replace(REPORT, parity=None, onnx=None))
    assert not [line for line in lines if line.startswith(("Parity", "File"))]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (44_654_504, "44.7 MB"),
        (2 * 10**12, "2000.0 GB"),
    ],
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (11_689_512, "11.69 M"), (1_814_073_344, "1.81 G")],
)
def test_format_count(count: int, text: str) -> None:
    assert format_count(count) == text
