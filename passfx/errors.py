"""The errors that passfx raises; each message says what was wrong, where, and what to do."""


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
