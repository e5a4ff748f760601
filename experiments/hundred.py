"""A hundred requests in one ledger: growth of the time of the next request, the size of the export and the cost of a prompt.

    python experiments/sequential.py --output runs/sequential      # makes the model
    python experiments/hundred.py --work runs/sequential

Each request is one invented person and gets 20 steps: the experiment measures growth with the number of requests, not the
quality of forgetting. Prefill is one forward pass over prompts of 30 tokens, 1 and 8 at a time, with everything in force and
all gates shut: the median of 15, in turns with the bare model. Writes `docs/results/hundred.json` and `.md`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import write_results
from transformers import AutoModelForCausalLM

from grun.core.config.requests import RequestConfig
from grun.core.storage.atomic_files import read_json, write_json
from grun.data.benchmarks import load_benchmark
from grun.models.loading.pretrained import load_adapter
from grun.requests.ledger import LedgerState
from grun.requests.operations import add, export

COUNTS, STEPS, REPEATS, PROMPT = (1, 10, 30, 100), 20, 15, 30
SEED = 2_000  # of people that no other benchmark has


def written(folder: Path) -> list[str]:
    """Paths of the files of rows, one for every request."""
    data = load_benchmark("fictional", seed=SEED, options={"people": "260", "forget_share": "0.4"})
    people = list(dict.fromkeys(row.subject for row in data.splits["forget"]))[: max(COUNTS)]
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for i, person in enumerate(people):
        rows = [{"prompt": r.prompt, "answer": r.answer} for r in data.splits["forget"] if r.subject == person]
        files.append(folder / f"{i + 1}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [str(file) for file in files]


@torch.no_grad()
def prefill(model_folder: str, adapter: Path) -> dict[str, Any]:
    """Milliseconds of a forward pass with and without the adapter of everything in force."""
    base = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    stacked: Any = load_adapter(AutoModelForCausalLM.from_pretrained(model_folder), str(adapter))
    for layer in stacked.base_model.runtime.layers:
        for gate in layer.gates.values():
            gate.threshold.fill_(1e9)
    found: dict[str, Any] = {}
    for rows in (1, 8):
        ids = torch.randint(10, base.config.vocab_size, (rows, PROMPT), generator=torch.Generator().manual_seed(rows))
        lengths = torch.full((rows,), PROMPT)
        seconds: dict[str, list[float]] = {"bare": [], "stacked": []}
        for turn in range(REPEATS + 1):
            for name, run in (
                ("bare", lambda: base(input_ids=ids)),  # noqa: B023
                ("stacked", lambda: stacked(input_ids=ids, prompt_lengths=lengths)),  # noqa: B023
            ):
                start = time.perf_counter()
                run()
                if turn:
                    seconds[name].append(time.perf_counter() - start)
        found[str(rows)] = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    return found


def main() -> None:
    """Add the missing requests, measure at every count, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/sequential"), help="folder that sequential.py made")
    work = parser.parse_args().work
    model, ledger, times = str(work / "target" / "model"), work / "hundred", work / "hundred-seconds.json"
    seconds: list[float] = read_json(times) or []
    found: dict[str, Any] = {}
    for i, file in enumerate(written(work / "hundred-files")):
        known = len(LedgerState.read(ledger).requests) if (ledger / "ledger.json").exists() else 0
        start = time.perf_counter()
        if i >= known:
            given: dict[str, Any] = {"forget": [file], "retain": [str(work / "retain.jsonl")], "ledger": str(ledger)}
            add(RequestConfig(model=model, objective="npo", steps=STEPS, **given))
            seconds = [*seconds[:i], time.perf_counter() - start]
            write_json(times, seconds)
        if i + 1 in COUNTS:
            adapter = export(str(ledger), str(work / f"hundred-export-{i + 1}"))
            size = (adapter / "adapter_model.safetensors").stat().st_size
            recent = statistics.median(seconds[max(0, i - 4) : i + 1])
            found[str(i + 1)] = {"seconds": recent, "bytes": size, "prefill_ms": prefill(model, adapter)}
    lines = [
        "| requests | seconds of the last ones (median of 5) | export, KiB | prefill over the bare model, 1 prompt | 8 |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for count, one in found.items():
        over = [
            f"{x['stacked'] / x['bare'] - 1:+.0%} ({x['stacked'] - x['bare']:+.1f} ms)"
            for x in one["prefill_ms"].values()
        ]
        lines.append(f"| {count} | {one['seconds']:.1f} | {one['bytes'] / 1024:.0f} | {over[0]} | {over[1]} |")
    write_results("hundred", found, "\n".join(lines) + "\n")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
