"""Models of other packages (the extra `wild`), as small as their configurations allow."""

from typing import Any

WILD: dict[str, tuple[Any, Any]] = {}
