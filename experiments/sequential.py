"""Ten requests, one after the other: forgetting, damage, and the effect of taking one back.

    python experiments/sequential.py --output runs/sequential
    python experiments/sequential.py --output runs/sequential-tofu --tofu "$GRUN_TOFU_DIR"

The data are 50 invented people (`fictional`), ten of whom ask to be forgotten, one by one. After every request the experiment
measures the forget probability of all requests so far, and the probability of people that unlearning never saw and of general
knowledge. A ledger of GRUN adapters is compared with LoRA (merged after every request) and full fine-tuning, which continue
from the model that the request before left, with the same objective; also with one GRUN adapter for all ten, and with a model
that never saw the ten. At the end request 3 is withdrawn. Two more ledgers are learnt with poor retain rows (general knowledge
only), with and without features of earlier requests. With `--tofu` the ten requests are the authors of forget05, beside 400
retain rows, and the model is that of `experiments/tofu.py`. Killed and started again it continues where it stopped.
Writes `docs/results/sequential.json` (or `sequential_tofu`, `sequential_seed1`), `.md` and `.png`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tofu
import torch
from common import RESULTS, write_results
from peft import PeftModel
from sequential_results import POOR_ROWS, REQUESTS, WITHDRAWN, drawn, table
from transformers import AutoModelForCausalLM, AutoTokenizer

from grun.core.config.jobs import FinetuneConfig, UnlearnConfig
from grun.core.config.requests import RequestConfig
from grun.core.records import Example
from grun.core.storage.atomic_files import read_json, write_json
from grun.data.benchmarks import load_benchmark
from grun.jobs.finetune import finetune
from grun.jobs.unlearn import unlearn
from grun.models.encoding.templates import resolve_template
from grun.models.gates.calibration import logits_of_prompts
from grun.models.gates.features import thresholds_of
from grun.models.loading.pretrained import load_adapter, load_model_and_tokenizer
from grun.models.row_encoder import RowEncoder
from grun.models.tuner.call.decision import is_open
from grun.requests.ledger import LedgerState, change
from grun.requests.operations import add, export

OPTIONS = {"fictional": {"people": "50", "forget_share": "0.2"}, "tofu": tofu.OPTIONS}
KEPT = {
    "fictional": {"retain_heldout": "people never shown to unlearning", "general": "general knowledge"},
    "tofu": {"retain_withheld": "authors never shown to unlearning", "retain": "authors to be kept"},
}
POOR = {"fictional": "general", "tofu": "world_facts"}  # split with retain rows that are not like the forget rows


def spread(rows: Sequence[Example], count: int) -> list[Example]:
    """`count` of the rows, evenly spread."""
    return [rows[i * len(rows) // count] for i in range(count)]


class Work:
    """Models, data and measurements, in one folder."""

    def __init__(self, folder: Path, seed: int, benchmark: str, data_dir: str | None) -> None:
        self.folder = folder
        self.seed = seed
        self.names = KEPT[benchmark]
        options = OPTIONS[benchmark]
        shared = {"benchmark": benchmark, "data_dir": data_dir, "benchmark_options": options, "seed": seed}
        self.common: dict[str, Any] = {**shared, **(tofu.TARGET if benchmark == "tofu" else {})}
        data = load_benchmark(benchmark, data_dir=data_dir, seed=seed, options=options)
        people = list(dict.fromkeys(row.subject for row in data.splits["forget"]))
        assert len(people) == REQUESTS
        self.requests = [[row for row in data.splits["forget"] if row.subject == person] for person in people]
        self.kept = {name: list(data.splits[name]) for name in self.names}
        folder.mkdir(parents=True, exist_ok=True)
        self.retain = self._file("retain", data.splits["retain"])
        self.poor = self._file("poor", spread(data.splits[POOR[benchmark]], POOR_ROWS))
        self.files = [self._file(f"request-{i + 1}", rows) for i, rows in enumerate(self.requests)]
        self.target = finetune(FinetuneConfig(**self.common, output=str(folder / "target")))

    def _file(self, name: str, rows: Sequence[Example]) -> str:
        file = self.folder / f"{name}.jsonl"
        lines = [json.dumps({"prompt": r.prompt, "answer": r.answer, "subject": r.subject}) for r in rows]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(file)

    def settings(self, model: Path, files: Sequence[str]) -> dict[str, Any]:
        """Settings of unlearning."""
        rows = {"forget": list(files), "retain": [self.retain]}
        return {"model": str(model), **rows, "objective": "npo", "seed": self.seed}

    def once(self, name: str, find: Callable[[], Any]) -> Any:
        """The result stored under this name; `find` makes it if there is none yet."""
        file = self.folder / "found" / f"{name}.json"
        if (known := read_json(file)) is None:
            file.parent.mkdir(exist_ok=True)
            known = find()
            write_json(file, known)
        return known

    @torch.no_grad()
    def measured(self, model: Path, adapter: Path | None = None) -> dict[str, Any]:
        """Answer probabilities of every request and of the kept splits, and the share of prompts that open each gate."""
        base, tokenizer = load_model_and_tokenizer(str(model), device="cpu")
        rows = RowEncoder(tokenizer, resolve_template("auto", tokenizer), None, 16, base.device)
        adapted: Any = base if adapter is None else load_adapter(base, str(adapter))
        found: dict[str, Any] = {
            "requests": [rows.probability(adapted, rows.encode(own)) for own in self.requests],
            "kept": {name: rows.probability(adapted, rows.encode(own)) for name, own in self.kept.items()},
        }
        if adapter is not None:
            threshold_G = thresholds_of(adapted)
            sets = {**{str(i + 1): own for i, own in enumerate(self.requests)}, **self.kept}
            found["open"] = {
                name: is_open(logits_of_prompts(adapted, rows, own), threshold_G).float().mean(0).tolist()
                for name, own in sets.items()
            }
        return found


def with_ledger(work: Work, folder: str, **options: Any) -> list[dict[str, Any]]:
    """Measurements after every request, with a ledger of GRUN adapters."""
    ledger, found = work.folder / folder, []
    for i, file in enumerate(work.files):
        name, export_to = f"r{i + 1:04d}", work.folder / "exports" / f"{folder}-{i + 1}"

        def one(file: str = file, name: str = name, export_to: Path = export_to) -> dict[str, Any]:
            if not (ledger / "ledger.json").exists() or name not in LedgerState.read(ledger).requests:
                settings = {**work.settings(work.target, [file]), **options}
                add(RequestConfig(**settings, ledger=str(ledger), id=name))
            return work.measured(work.target, export(str(ledger), str(export_to)))

        found.append(work.once(f"{folder}-{i + 1}", one))
    return found


def by_weights(work: Work, adapt: str) -> list[dict[str, Any]]:
    """Measurements after every request, each learnt on the model that the request before left."""
    model, found = work.target, []
    for i, file in enumerate(work.files):
        run = work.folder / adapt / str(i + 1)

        def one(file: str = file, model: Path = model, run: Path = run) -> dict[str, Any]:
            made = unlearn(UnlearnConfig(**work.settings(model, [file]), output=str(run), adapt=adapt))
            if adapt != "full":
                merged: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), made)
                merged.merge_and_unload().save_pretrained(run / "model")
                AutoTokenizer.from_pretrained(model).save_pretrained(run / "model")
            return work.measured(run / "model")

        found.append(work.once(f"{adapt}-{i + 1}", one))
        model = run / "model"
    return found


def taken_back(work: Work, folder: str, before: dict[str, Any]) -> dict[str, Any]:
    """Changes by the withdrawal of one request from a ledger."""
    ledger = str(work.folder / folder)
    if LedgerState.read(ledger).get(f"r{WITHDRAWN:04d}").state == "active":
        change(ledger, f"r{WITHDRAWN:04d}", "withdraw")
    after = work.measured(work.target, export(ledger, str(work.folder / "exports" / f"{folder}-withdrawn")))
    others = [i for i in range(REQUESTS) if i != WITHDRAWN - 1]
    moved = [abs(after["requests"][i] - before["requests"][i]) for i in others]
    kept = [abs(after["kept"][name] - before["kept"][name]) for name in work.names]
    return {"after": after, "restored": after["requests"][WITHDRAWN - 1], "largest_other_change": max(moved + kept)}


def with_poor_retain_rows(work: Work) -> dict[str, Any]:
    """Measurements of two ledgers with few retain rows of another kind, with and without features of earlier requests."""
    found: dict[str, Any] = {}
    for name, folder, keep in (("nothing", "ledger-poor", False), ("features", "ledger-poor-with-features", True)):
        steps = with_ledger(work, folder, retain=[work.poor], keep_features=keep)
        back = work.once(f"{folder}-withdrawn", partial(taken_back, work, folder, steps[-1]))
        found[name] = {"steps": steps, "withdrawn": back}
    return found


def main() -> None:
    """Run the missing parts and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/sequential")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tofu", metavar="FOLDER", help="take TOFU instead of invented people, from this folder")
    given = parser.parse_args()
    benchmark = "tofu" if given.tofu else "fictional"
    work = Work(Path(given.output), given.seed, benchmark, given.tofu)
    found: dict[str, Any] = {"target": work.once("target", lambda: work.measured(work.target))}
    found["sequential"] = {
        "GRUN, a ledger": with_ledger(work, "ledger"),
        "GRUN, features kept": with_ledger(work, "ledger-with-features", keep_features=True),
        "LoRA, merged": by_weights(work, "lora"),
        "full fine-tuning": by_weights(work, "full"),
    }

    def union() -> dict[str, Any]:
        made = unlearn(UnlearnConfig(**work.settings(work.target, work.files), output=str(work.folder / "union")))
        return work.measured(work.target, made)

    def retrained() -> dict[str, Any]:
        made = finetune(FinetuneConfig(**work.common, split="retain", output=str(work.folder / "retrained")))
        return work.measured(made)

    def scaled() -> dict[str, Any]:
        folder = export(str(work.folder / "ledger"), str(work.folder / "exports" / "scaled"), reference_scale=True)
        return work.measured(work.target, folder)

    found["at_once"] = {
        "GRUN, the same ledger with the reference's scale": work.once("scaled", scaled),
        "GRUN, one adapter for all": work.once("union", union),
        "trained again without the ten": work.once("retrained", retrained),
    }
    last = found["sequential"]["GRUN, a ledger"][-1]
    found["withdrawn"] = work.once("withdrawn", lambda: taken_back(work, "ledger", last))
    found["poor"] = with_poor_retain_rows(work)
    record = {
        "options": OPTIONS[benchmark],
        "seed": given.seed,
        **found,
    }
    name = (
        "sequential"
        + (f"_{benchmark}" if benchmark != "fictional" else "")
        + (f"_seed{given.seed}" if given.seed else "")
    )
    text = table(found, work.names)
    write_results(name, record, text)
    drawn(found).savefig(RESULTS / f"{name}.png", dpi=130)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
