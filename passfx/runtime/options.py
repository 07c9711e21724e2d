"""How a session runs a file: the switches of ONNX Runtime that change its speed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from passfx.errors import SourceError
from passfx.target import CPU, TARGETS, Target, find_target

CONV_ALGO_SEARCHES = ("EXHAUSTIVE", "HEURISTIC")  # DEFAULT chooses blindly


@dataclass(frozen=True)
class Options:
    """What a session is opened with; the defaults are ONNX Runtime's own.

    Attributes:
        provider: "cpu" or "cuda".
        threads: cpu: that share one operator; 0 is one for each physical core.
        spinning: cpu: idle threads wait busily for the next operator.
        layout: cpu: convolutions may run in the blocked layout NCHWc.
        memory_pattern: buffers are planned ahead, for shapes that were seen before.
        prefer_nhwc: cuda: convolutions run in the layout NHWC.
        fuse_conv_bias: cuda: cuDNN adds the bias within the convolution.
        conv_algo_search: cuda: how the algorithm of a convolution is chosen, "EXHAUSTIVE" (by
            measuring) or "HEURISTIC".
        tf32: cuda: float32 products may be computed in TensorFloat-32, with 10 bits of mantissa.
        cuda_graph: cuda: the launches of a run are recorded once for each shape and replayed.

    Raises:
        SourceError: an unknown provider or algorithm search, or a negative number of threads.
    """

    provider: str = CPU.name
    threads: int = 0
    spinning: bool = True
    layout: bool = True
    memory_pattern: bool = True
    prefer_nhwc: bool = False
    fuse_conv_bias: bool = False
    conv_algo_search: str = "EXHAUSTIVE"
    tf32: bool = True
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        find_target(self.provider, "provider")
        search, known = self.conv_algo_search, ", ".join(CONV_ALGO_SEARCHES)
        if search not in CONV_ALGO_SEARCHES:
            raise SourceError(f"the conv_algo_search {search!r} is not one of {known}")
        if not 0 <= self.threads < 2**31:
            raise SourceError(f"the number of threads cannot be {self.threads}")

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Options":
        """Options from the values of JSON.

        Raises:
            SourceError: an unknown name, or a value of another type.
        """
        types = {field.name: type(field.default) for field in fields(cls)}
        for name, value in given.items():
            if name not in types:
                raise SourceError(f"there is no option {name!r}; there are {', '.join(types)}")
            if type(value) is not types[name]:
                raise SourceError(f"the option {name} cannot be {value!r}")
        return cls(**given)

    @property
    def target(self) -> Target:
        """What the provider is for."""
        return TARGETS[self.provider]

    def differences(self) -> dict[str, Any]:
        """The options that are not those of an untuned session on the same provider."""
        default = asdict(Options(self.provider))
        return {name: value for name, value in asdict(self).items() if value != default[name]}

    def __str__(self) -> str:
        return " ".join(_named(*item) for item in self.differences().items()) or "default"

    def session_options(self, onnxruntime: Any) -> Any:
        """The `onnxruntime.SessionOptions`."""
        chosen = onnxruntime.SessionOptions()
        chosen.log_severity_level = 3  # errors
        chosen.intra_op_num_threads = self.threads
        chosen.enable_mem_pattern = self.memory_pattern
        if not self.spinning:
            chosen.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not self.layout:
            level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            chosen.graph_optimization_level = level
        return chosen

    def provider_options(self, device: int) -> dict[str, str]:
        """What the execution provider is opened with, on the GPU number `device`."""
        if not self.target.is_gpu:
            return {}
        return {
            "device_id": str(device),
            "cudnn_conv_algo_search": self.conv_algo_search,
            "prefer_nhwc": str(int(self.prefer_nhwc)),
            "fuse_conv_bias": str(int(self.fuse_conv_bias)),
            "use_tf32": str(int(self.tf32)),
            "enable_cuda_graph": str(int(self.cuda_graph)),
        }


def _named(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else f"no-{name}"
    return f"{name}={value}"
