"""The seconds that certificates take at two image sizes; the ratio should be about 1.

    python tests/benchmarks/certificate_time.py [SOURCE ...] [--sizes 64 224] [--rounds N]

The passes run over one capture a size; what counts is the time inside the certificates alone, the
best of the rounds.
"""

from tests.helpers import apply as apply

SOURCES = ("torchvision:resnet18", "timm:resnet50d")


def main() -> None:
    """Print one row a source."""
