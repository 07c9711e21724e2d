"""Records as a markdown table, and what they say in five lines."""

from collections.abc import Sequence
from typing import Any

Record = dict[str, Any]


def markdown(records: Sequence[Record]) -> str:
    """To come."""
    return ""


def summary(records: Sequence[Record]) -> str:
    """To come."""
    return ""
