"""A model repository for NVIDIA Triton Inference Server.

    DIR/NAME/config.pbtxt
    DIR/NAME/VERSION/model.onnx

The configuration is built as Triton's own protobuf message, so that it is valid by construction.
Keys are those that Triton's ONNX Runtime backend reads (its README): options of the CUDA provider
go to the execution accelerator "cuda", the others to `parameters` and `optimization.graph`.
"""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from google.protobuf import text_format

from passfx.errors import ExportError
from passfx.export.onnx import external_files, graph_inputs, load_graph, sizes
from passfx.files import staging, writing
from passfx.target import CPU, CUDA, TARGETS
from passfx.version import __version__

MAX_BATCH_SIZE = 32  # where the batch varies and nothing else is asked for
_NAMES = re.compile(r"[A-Za-z0-9_.-]+")
# Where Triton's name of a type is not TYPE_ and ONNX's.
_TYPES = {"FLOAT": "FP32", "FLOAT16": "FP16", "DOUBLE": "FP64", "BFLOAT16": "BF16"}
# Options of a session → parameters of the accelerator "cuda", which are the provider's own.
_CUDA = {
    "conv_algo_search": "cudnn_conv_algo_search",
    "prefer_nhwc": "prefer_nhwc",
    "fuse_conv_bias": "fuse_conv_bias",
    "tf32": "use_tf32",
}
_EXTENDED = 1  # the backend's number for basic and extended optimisations without layouts


@dataclass(frozen=True)
class Deployment:
    """What was written: the model's folder, its files, and the options without a key."""

    folder: Path
    files: tuple[Path, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class TritonSettings:
    """How a server runs a model.

    Attributes:
        name: of the model in Triton.
        version: a version that exists is never overwritten.
        provider: where it runs; None: on the server's GPUs, or on its CPU where it has none.
        options: of the session that differ from ONNX Runtime's own, by name.
        batches: sizes that the dynamic batcher prefers.
        max_batch_size: of the dynamic batcher; 0 turns it off. By default 0 where the batch is
            fixed, else the largest of `batches`, at least 32.
        max_queue_delay: microseconds that a request may wait for others to form a batch.
        instances: copies of the model on each GPU, or on the CPU.
    """

    name: str
    version: int = 1
    provider: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    batches: Sequence[int] = ()
    max_batch_size: int | None = None
    max_queue_delay: int = 100
    instances: int = 1


def write_triton(model: Path, repository: Path, settings: TritonSettings) -> Deployment:
    """Write a model into a repository; all of it or nothing.

    Args:
        model: the ONNX file; weights that lie beside it are copied too.
        repository: the folder with a folder for each model; made where it does not exist.

    Raises:
        ExportError: tritonclient is not installed, the file or the name does not serve, or that
            version is there already.
    """
    name = settings.name
    if not _NAMES.fullmatch(name):
        raise ExportError(
            f"{name!r} cannot be the name of a model in Triton: letters, digits, '.', '_' and '-'"
        )
    config, ignored = triton_config(model, settings)
    folder, version = repository / name, str(settings.version)
    described = folder / "config.pbtxt"
    with writing(folder):
        if (folder / version).exists():
            raise ExportError(f"{folder / version} exists already; --version writes another one")
        if described.exists() and _message(described.read_bytes()) != config:
            raise ExportError(
                f"{described} describes another model, and all versions share it; give another "
                "--name"
            )
        repository.mkdir(exist_ok=True)
        with staging(repository) as temporary:
            built = temporary / name
            (built / version).mkdir(parents=True)
            (built / "config.pbtxt").write_text(_text(config, model, ignored), encoding="utf-8")
            shutil.copyfile(model, built / version / "model.onnx")
            for data in external_files(model):
                place = built / version / data.relative_to(model.parent)
                if place.exists():
                    raise ExportError(f"{data} has the name of a file in the repository; rename it")
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(data, place)
            own = version if folder.exists() else ""  # a new model moves with its configuration
            os.replace(built / own, folder / own)
    files = sorted(file for file in (folder / version).rglob("*") if file.is_file())
    return Deployment(folder, (described, *files), ignored)


def triton_config(model: Path, settings: TritonSettings) -> tuple[Any, tuple[str, ...]]:
    """The `ModelConfig` of a file, and the options that Triton has no key for."""
    pb = _protobuf()
    graph = load_graph(model).graph
    ends = {"input": graph_inputs(graph), "output": list(graph.output)}
    shapes = {item.name: sizes(item) for values in ends.values() for item in values}
    # The batch varies where the first axis of every input and output is one size, which varies.
    first = {shape[0] if shape else None for shape in shapes.values()}
    varies = len(first) == 1 and isinstance(first.pop(), str)
    most = settings.max_batch_size
    if most is None:
        most = max([MAX_BATCH_SIZE, *settings.batches]) if varies else 0
    if most and not varies:
        raise ExportError(
            f"{model} has a fixed batch, so --max-batch-size must be 0; "
            "convert with --dynamic-batch for another one"
        )
    config = pb.ModelConfig(name=settings.name, backend="onnxruntime", max_batch_size=most)
    for kind, values in ends.items():
        for item in values:
            shape = shapes[item.name][1 if most else 0 :]
            dims = [size if isinstance(size, int) else -1 for size in shape]
            name = onnx.TensorProto.DataType.Name(item.type.tensor_type.elem_type)
            try:
                data_type = pb.DataType.Value(f"TYPE_{_TYPES.get(name, name)}")
            except ValueError as error:
                raise ExportError(f"Triton has no type for {item.name}") from error
            getattr(config, kind).add(name=item.name, data_type=data_type, dims=dims)
    if most:
        config.dynamic_batching.max_queue_delay_microseconds = settings.max_queue_delay
        preferred = sorted({size for size in settings.batches if 1 < size <= most})
        config.dynamic_batching.preferred_batch_size.extend(preferred)
    kind = "KIND_AUTO"
    if settings.provider is not None:
        kind = "KIND_GPU" if TARGETS[settings.provider].is_gpu else "KIND_CPU"
    config.instance_group.add(count=settings.instances, kind=kind)
    return config, _set_options(config, settings)


def _set_options(config: Any, settings: TritonSettings) -> tuple[str, ...]:
    accelerated: dict[str, str] = {}
    ignored = []
    for name, value in settings.options.items():
        if name == "threads":
            config.parameters["intra_op_thread_count"].string_value = str(value)
        elif name == "memory_pattern":
            config.parameters["enable_mem_pattern"].string_value = str(int(value))
        elif name == "layout":
            config.optimization.graph.level = _EXTENDED
        elif settings.provider != CPU.name and name in _CUDA:
            accelerated[_CUDA[name]] = value if isinstance(value, str) else str(int(value))
        else:
            ignored.append(f"{name}={value}")
    if accelerated:
        accelerators = config.optimization.execution_accelerators
        accelerators.gpu_execution_accelerator.add(name=CUDA.name, parameters=accelerated)
    return tuple(ignored)


def _protobuf() -> Any:
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise ExportError(
            "Triton's configuration format is not installed; pip install 'passfx[triton]'"
        ) from error
    return model_config_pb2


def _message(text: bytes) -> Any:
    try:
        return text_format.Parse(text, _protobuf().ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError):
        return None


def _text(config: Any, model: Path, ignored: Sequence[str]) -> str:
    lines = [f"# Written by passfx {__version__} for {model.name}."]
    if ignored:
        lines.append(f"# Triton's ONNX Runtime backend has no key for: {', '.join(ignored)}.")
    return "\n".join([*lines, text_format.MessageToString(config)])
