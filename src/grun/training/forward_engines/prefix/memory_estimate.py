"""Expected size of a prefix cache, so that a large one is announced before it is built."""

from __future__ import annotations

__all__ = ["expected_bytes"]

from collections.abc import Collection, Sequence
from typing import Any

from grun.models.encoding.encode import Encoded


def expected_bytes(
    config: Any, layers_above: int, element_size: int, rows: Sequence[Encoded], names: Collection[str]
) -> int:
    """Bytes that some rows will take; a prompt that several rows share is counted once for each of them.

    Args:
        config: text configuration of the base model.
        layers_above: number of decoder layers above the first edited one.
        element_size: bytes of one number in the model's dtype.
        rows: to be added.
        names: quantities of the base model that are kept beside them.
    """
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_prefix = 2 * layers_above * heads * head_size
    per_answer = config.hidden_size * (1 + ("hidden" in names)) + config.vocab_size * ("logits" in names)
    answers = sum(len(row.input_ids) - row.prompt_length + 1 for row in rows)
    prefixes = sum(row.prompt_length - 1 for row in rows)
    return (prefixes * per_prefix + answers * per_answer) * element_size
