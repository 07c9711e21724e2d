"""Options of a session: what ONNX Runtime is told, and what is refused."""

import subprocess
import sys
from dataclasses import asdict

import onnxruntime
import pytest

from passfx.errors import SourceError
from passfx.runtime import Options


def test_the_default_is_onnxruntimes_own() -> None:
    mine, own = Options().session_options(onnxruntime), onnxruntime.SessionOptions()
    for name in ("intra_op_num_threads", "enable_mem_pattern", "graph_optimization_level"):
        assert getattr(mine, name) == getattr(own, name)
    with pytest.raises(RuntimeError):
        mine.get_session_config_entry("session.intra_op.allow_spinning")
    assert str(Options()) == str(Options("cuda")) == "default"


def test_options_and_settings_need_no_torch() -> None:
    """The command line imports them at its start."""
    code = """if True:
        import sys, passfx.runtime, passfx.export.settings, passfx.target
        print(*sys.modules.keys() & {"torch", "onnx", "onnx_ir", "onnxruntime", "rich"})
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_cpu_option_arrives() -> None:
    options = Options(threads=3, spinning=False, layout=False, memory_pattern=False)
    told = options.session_options(onnxruntime)
    assert told.intra_op_num_threads == 3
    assert told.enable_mem_pattern is False
    assert told.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    levels = onnxruntime.GraphOptimizationLevel
    assert told.graph_optimization_level == levels.ORT_ENABLE_EXTENDED
    assert options.provider_options(0) == {}
    assert str(options) == "threads=3 no-spinning no-layout no-memory_pattern"


def test_every_cuda_option_arrives() -> None:
    options = Options("cuda", prefer_nhwc=True, conv_algo_search="HEURISTIC", cuda_graph=True)
    assert options.provider_options(2) == {
        "device_id": "2",
        "cudnn_conv_algo_search": "HEURISTIC",
        "prefer_nhwc": "1",
        "fuse_conv_bias": "0",
        "use_tf32": "1",
        "enable_cuda_graph": "1",
    }
    assert str(options) == "prefer_nhwc conv_algo_search=HEURISTIC cuda_graph"


def test_options_survive_json() -> None:
    options = Options("cuda", tf32=False, cuda_graph=True)
    assert Options.from_dict(asdict(options)) == options
    assert Options.from_dict({"provider": "cuda"}) == Options("cuda")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"provider": "tpu"}, "the provider 'tpu' is not one of cpu, cuda"),
        ({"conv_algo_search": "DEFAULT"}, "is not one of EXHAUSTIVE, HEURISTIC"),
        ({"speed": 9}, "there is no option 'speed'"),
        ({"threads": "2"}, "the option threads cannot be '2'"),
        ({"spinning": 1}, "the option spinning cannot be 1"),
    ],
)
def test_what_is_no_option_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(SourceError, match=said):
        Options.from_dict(given)
