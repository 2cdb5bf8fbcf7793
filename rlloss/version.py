"""The version, and where the package lies: below everything that records or looks up either."""

from pathlib import Path

__version__ = "0.2.0"

PACKAGE = Path(__file__).parent
