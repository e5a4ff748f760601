"""Shared by the experiments: the folder of results, the record of the machine, the model of the training figures, pyreft."""

from __future__ import annotations

import json
import platform
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

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
    """The machine and the libraries of a run."""
    return {
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft")},
    }


def write_results(name: str, record: Any, text: str) -> None:
    """Write `docs/results/<name>.json` and `.md`."""
    RESULTS.mkdir(parents=True, exist_ok=True)
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
