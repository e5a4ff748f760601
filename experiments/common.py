"""Shared by the experiments: results with their provenance, the model of the training figures, pyreft beside it."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from grun.core.provenance import provenance
from grun.models.row_encoder import RowEncoder

RESULTS = Path(__file__).parent.parent / "docs" / "results"
LAYERS: list[int | float] = [10, 12, 15]  # of the edits in the model below
RANK = 4  # of the edits
MODEL: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 512,
}


class TokenEncoder(RowEncoder):
    """Encoder of rows that are token ids already."""

    def __init__(self) -> None:
        super().__init__(None, None, None, 16, torch.device("cpu"))  # type: ignore[arg-type]

    @property
    def pad(self) -> int:
        """Padding token; any one will do, as it is masked."""
        return 0


def environment() -> dict[str, Any]:
    """The provenance of a result."""
    return provenance()


def write_results(name: str, found: dict[str, Any] | list[Any], text: str) -> None:
    """Write `docs/results/<name>.json`, with the environment, and `.md`; a list becomes the `runs` of the file."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = {**environment(), **(found if isinstance(found, dict) else {"runs": found})}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")


def with_pyreft(python: str, **setting: Any) -> list[list[float]]:
    """Seconds that `baselines/pyreft_step.py` measures for a setting with the model above, in a process of its own."""
    setting |= {"model": MODEL, "layers": LAYERS, "rank": RANK, "threads": torch.get_num_threads()}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(setting, file)
        file.flush()
        script = Path(__file__).parent / "baselines" / "pyreft_step.py"
        done = subprocess.run([python, str(script), file.name], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))
