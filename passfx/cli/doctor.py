"""`passfx doctor`."""

import importlib.metadata
import platform

import click
from rich.console import Console
from rich.table import Table

_PACKAGES = (
    ("torch", "pip install torch"),
    ("onnx", "pip install onnx"),
    ("onnxscript", "pip install onnxscript"),
    ("safetensors", "pip install safetensors"),
    ("timm", "for timm:NAME sources: pip install 'passfx[zoo]'"),
    ("torchvision", "for torchvision:NAME sources: pip install 'passfx[zoo]'"),
)
_NO_RUNTIME = "to verify and run files: pip install 'passfx[cpu]', for NVIDIA GPUs 'passfx[gpu]'"


@click.command()
def doctor() -> None:
    """Show versions and execution providers, what is missing, and how to get it."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("python", platform.python_version(), "")
    table.add_row("passfx", _version("passfx") or "not installed as a package", "")
    for name, advice in _PACKAGES:
        version = _version(name)
        table.add_row(name, version or "missing", "" if version else advice)
    for row in _runtime_rows():
        table.add_row(*row)
    Console(highlight=False, soft_wrap=True).print(table)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _runtime_rows() -> list[tuple[str, str, str]]:
    cpu, gpu = _version("onnxruntime"), _version("onnxruntime-gpu")
    if not cpu and not gpu:
        return [("onnxruntime", "missing", _NO_RUNTIME)]
    both = "onnxruntime and onnxruntime-gpu overwrite each other: uninstall both, install one"
    name = "onnxruntime-gpu" if gpu else "onnxruntime"
    rows = [(name, str(gpu or cpu), both if cpu and gpu else "")]
    try:
        import onnxruntime
    except ImportError as error:
        return [*rows, ("providers", "none", f"onnxruntime does not import: {error}")]
    providers = onnxruntime.get_available_providers()
    lacking = bool(gpu) and "CUDAExecutionProvider" not in providers
    advice = "the CUDA provider is missing: pip install 'passfx[gpu]'" if lacking else ""
    return [*rows, ("providers", ", ".join(providers), advice)]
