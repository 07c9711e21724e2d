"""The errors that passfx raises; each message says what was wrong, where, and what to do."""

import logging
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class PassfxError(Exception):
    """Base class: catch this to catch every error that passfx raises on purpose."""


class SourceError(PassfxError):
    """The model, its arguments, its weights or its example inputs could not be obtained."""


class CaptureError(PassfxError):
    """The model could not be captured as a functional graph in eval mode."""


class VerificationError(PassfxError):
    """The result does not agree with the original model."""


class ExportError(PassfxError):
    """The graph could not be written as ONNX."""


class RuntimeUnavailableError(PassfxError):
    """ONNX Runtime, or the execution provider that was asked for, is not installed."""


class PassError(Exception):
    """A pass raised an exception, which is a bug; the message names it and the passes before it."""


def first_line(error: BaseException) -> str:
    """What somebody else's exception says, in one line, without its class."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")


def named_line(error: BaseException) -> str:
    """The same with its class before it: "RuntimeError: out of memory"."""
    return f"{type(error).__name__}: {first_line(error)}"


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


_NOISY_LOGGERS = (
    "torch.export",
    "torch._export",
    "torch.fx.experimental.symbolic_shapes",
    "torch.onnx",
    "torch.utils.cpp_extension",
    "onnx_ir",
)
_LOCK = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """A block for the tracer or the exporter: one thread at a time, and without their warnings.

    Both patch what a process has only once, and so does silence. They warn about their own
    internals, which no user can mend.
    """
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    with _LOCK:
        levels = [logger.level for logger in loggers]
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            with warnings.catch_warnings(action="ignore"):
                yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
