"""GRUN as a PEFT method. Importing this package registers it with PEFT."""

from __future__ import annotations

__all__ = ["register_with_peft"]

from grun.models.tuner.peft_registration import register_with_peft

register_with_peft()
