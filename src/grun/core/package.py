"""The package itself: its version, and where its code is."""

from __future__ import annotations

__all__ = ["CODE", "__version__"]

from pathlib import Path

__version__ = "0.1.0"
CODE = Path(__file__).resolve().parents[1]
