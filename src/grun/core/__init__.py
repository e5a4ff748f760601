"""Errors, records, settings and files: the base of all other packages, independent of models."""

from __future__ import annotations

__all__ = ["CODE", "__version__"]

from pathlib import Path

__version__ = "0.1.0"
CODE = Path(__file__).resolve().parents[1]  # of the package
