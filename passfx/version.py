"""The version of passfx."""

__version__ = "0.1.0"
