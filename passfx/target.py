"""What a file is written for: the one place that knows the targets by name."""

from dataclasses import dataclass

from passfx.errors import SourceError


@dataclass(frozen=True)
class Profile:
    """What a device can do with float32 operators of one image.

    Attributes:
        macs: multiply-accumulates per second, of convolutions and matrix products.
        depthwise: the same of a convolution of each channel alone, which reuses little.
        bandwidth: bytes per second.
        launch: seconds that an operator takes besides.
    """

    macs: float
    depthwise: float
    bandwidth: float
    launch: float

    def seconds(self, macs: float, moved: float, *, is_depthwise: bool = False) -> float:
        """The predicted time of one operator: a roofline, and a launch."""
        rate = self.depthwise if is_depthwise else self.macs
        return max(macs / rate, moved / self.bandwidth) + self.launch


@dataclass(frozen=True)
class Target:
    """What a file is written for.

    Attributes:
        name: as the user writes it; torch's name of the device too.
        profile: what its device can do, which every decision by cost is made from.
        provider: ONNX Runtime's execution provider for it.
        precisions: that the provider has kernels for.
        fuses_epilogues: whether the provider has a FusedConv that is worth writing.
        opset: the ONNX operator set that a file has by default.
    """

    name: str
    profile: Profile
    provider: str
    precisions: tuple[str, ...]
    fuses_epilogues: bool
    opset: int = 20

    @property
    def is_gpu(self) -> bool:
        """Whether its tensors lie in a memory of their own."""
        return self is not CPU

    def device(self, number: int = 0) -> str:
        """Where its tensors lie, as torch names it: "cpu", "cuda:1"."""
        return f"{self.name}:{number}" if self.is_gpu else self.name


# The profile of two cores under ONNX Runtime, about what tests/benchmarks/profile_cpu.py prints.
CPU = Target(
    name="cpu",
    profile=Profile(macs=4e10, depthwise=5e9, bandwidth=5e10, launch=2e-6),
    provider="CPUExecutionProvider",
    precisions=("fp32", "fp16"),
    fuses_epilogues=False,
)
# The profile is a guess, not measured yet.
CUDA = Target(
    name="cuda",
    profile=Profile(macs=2e13, depthwise=2e12, bandwidth=2e12, launch=4e-6),
    provider="CUDAExecutionProvider",
    precisions=("fp32", "fp16", "bf16"),
    fuses_epilogues=True,
)
TARGETS = {target.name: target for target in (CPU, CUDA)}


def find_target(name: str, kind: str = "target") -> Target:
    """The target of a name; `kind` is what the user calls it.

    Raises:
        SourceError: there is none.
    """
    if name not in TARGETS:
        raise SourceError(f"the {kind} {name!r} is not one of {', '.join(TARGETS)}")
    return TARGETS[name]
