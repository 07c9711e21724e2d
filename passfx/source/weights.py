"""A state dict from a file into a model."""

import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from passfx.errors import SourceError
from passfx.files import is_file


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Load a state dict into the model; every key and shape must match.

    Raises:
        SourceError: the file cannot be read, or does not match; the message names the keys.
    """
    state, own = _read_state(path), model.state_dict()
    for prefix in ("module.", "_orig_mod."):  # what DataParallel and torch.compile put before keys
        if all(key.startswith(prefix) for key in state) and not own.keys() & state.keys():
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    shapes = {key: (tuple(state[key].shape), tuple(own[key].shape)) for key in own if key in state}
    misfits = [f"{key} {has} instead of {due}" for key, (has, due) in shapes.items() if has != due]
    problems = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": misfits,
    }
    found = [f"{what}: {some(keys)}" for what, keys in problems.items() if keys]
    if found:
        raise SourceError(f"{path} does not fit {type(model).__name__}: {'; '.join(found)}")
    model.load_state_dict(state)


def some(keys: Sequence[str], limit: int = 5) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if not is_file(path):
        raise SourceError(f"the weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # The error below says more than torch's advice.
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise SourceError(f"{path} is not a safetensors file: {error}") from error
    except Exception as error:  # a damaged file makes torch.load raise anything
        problem = f"cannot be read by torch.load ({type(error).__name__})"
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            problem = "holds Python objects, and loading those could run any code"
        raise SourceError(
            f"{path} {problem}; save the weights with torch.save(model.state_dict(), ...)"
        ) from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise SourceError(f"{path} holds no state dict (a mapping of names to tensors)")
    return {str(key): value for key, value in state.items()}
