"""Models, an adapter and rows on disk, once for all evaluation tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.evaluation_kit import FORGET, ROWS, TOKENIZER, grun_model
from support.tiny_models import tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its tokenizer, an adapter, and two files of rows."""
    folder = tmp_path_factory.mktemp("evaluation")
    tiny_model().save_pretrained(folder / "target")
    TOKENIZER.save_pretrained(folder / "target")
    grun_model().save_pretrained(folder / "run" / "adapter")
    for name, rows in (("forget", FORGET), ("retain", ROWS)):
        lines = [
            {"question": r.prompt, "answer": r.answer, "paraphrased_question": list(r.paraphrased_prompts)}
            for r in rows
        ]
        text = "\n".join(json.dumps({k: v for k, v in line.items() if v}) for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    return folder
