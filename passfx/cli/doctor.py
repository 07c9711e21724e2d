"""`passfx doctor`."""

import importlib.metadata
import platform

import click

from passfx.target import CUDA

_PACKAGES = (
    *((name, f"pip install {name}") for name in ("torch", "onnx", "onnxscript", "safetensors")),
    ("tritonclient", "for passfx deploy: pip install 'passfx[triton]'"),
    ("timm", "for timm:NAME sources: pip install 'passfx[zoo]'"),
    ("torchvision", "for torchvision:NAME sources: pip install 'passfx[zoo]'"),
)
_NO_RUNTIME = "to verify and run files: pip install 'passfx[cpu]', for NVIDIA GPUs 'passfx[gpu]'"


@click.command()
def doctor() -> None:
    """Show what is installed, what is missing, and how to get it."""
    rows = [
        ("python", platform.python_version(), ""),
        ("passfx", _version("passfx") or "not installed as a package", ""),
    ]
    for name, advice in _PACKAGES:
        version = _version(name)
        rows.append((name, version or "missing", "" if version else advice))
    rows += _runtime_rows()
    for name, state, advice in rows:
        click.echo(f"{name:<15}  {state}" + (f"; {advice}" if advice else ""))


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
    lacking = bool(gpu) and CUDA.provider not in providers
    advice = "the CUDA provider is missing: pip install 'passfx[gpu]'" if lacking else ""
    return [*rows, ("providers", ", ".join(providers), advice)]
