"""Attacks on what was forgotten: full fine-tuning, LoRA, GRUN as published, our default before, and our default now.

    python experiments/robustness.py --output runs/robustness [--data-dir "$GRUN_TOFU_DIR"] [--tables-only]

Trains a target model per seed (`topics` has a real one, SmolLM2), unlearns in every way, and attacks each with `grun attack`.
The default before has a learnt gate and the objective `idk`, which full fine-tuning, LoRA and the published setting have as
well; the default now has a gate that reads text and `idk_deep`. Writes `docs/results/robustness.json` and `.md` from
everything that is there. Every part is a run directory of its own: killed and started again it continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import write_results

from grun.core.config.attacking import AttackConfig
from grun.core.config.jobs import FinetuneConfig, UnlearnConfig
from grun.jobs.attacks.attack import attack
from grun.jobs.finetune import finetune
from grun.jobs.unlearn import unlearn

OBJECTIVE = "idk"
WAYS: dict[str, dict[str, Any]] = {
    "full": {"adapt": "full"},
    "lora": {"adapt": "lora"},
    "grun (paper)": {"preset": "paper"},
    "grun, learnt gate": {"gate": "mlp"},
    "grun": {"objective": "idk_deep"},
}
LOOKED_AT = 0  # seed whose rows were looked at when the default was changed
CHOSEN = (
    f"What was looked at: seed {LOOKED_AT} of `fictional` and `tofu` when `idk_deep` was made the default (its margin and "
    "push are the first that were tried) and when being mentioned was told from being asked about; the words for that were "
    "chosen with TOFU's retain questions, which are the same for all seeds. Versions before had been attacked on all "
    "three seeds of `fictional`."
)
IN_SHORT = ("after_turn", "mention", "mixed", "worst case", "ordinary questions")
SEEDS = {"fictional": (0, 1, 2), "tofu": (0, 1, 2), "topics": (0,)}
OPTIONS: dict[str, dict[str, str]] = {"fictional": {}, "tofu": {"retain_rows": "400"}, "topics": {"topic": "beethoven"}}
TARGETS: dict[str, dict[str, Any]] = {
    "fictional": {},
    "tofu": {"hidden_size": 256, "layers": 5, "learning_rate": 1.5e-3, "epochs": 24.0, "stop_loss": 0.06},
}
ROWS = {"fictional": 40, "tofu": 40, "topics": 12}
# What an attack is judged by after unlearning, and what is shown of the target.
FIGURES = {"leak": ("probability", "probability"), "damage": ("kept", "probability"), "recognition": ("AUC", "AUC")}
LONGEST_ANSWER = {"fictional": 32, "tofu": 48, "topics": 24}  # tokens


def parts(data: Sequence[str]) -> Iterator[tuple[str, int, str]]:
    """Data, seed and way of every part."""
    for name in data:
        for seed in SEEDS[name]:
            for way in WAYS:
                if not (name == "topics" and way == "full"):  # more than a CPU has time for
                    yield name, seed, way


def folder_of(output: Path, part: tuple[str, int, str], of: str = "") -> Path:
    """The run directory of a part, or of its attacks."""
    name, seed, way = part
    return output / f"{name}-{seed}-{way.replace(' ', '-').replace(',', '')}{of}"


def one(output: Path, data_dir: str | None, part: tuple[str, int, str]) -> dict[str, Any]:
    """The record of the attacks of one part; it runs unless it has run before."""
    name, seed, way = part
    shared: dict[str, Any] = {"benchmark": name, "benchmark_options": OPTIONS[name]}
    shared |= {"data_dir": data_dir} if name == "tofu" else {}
    model = "smollm2"
    if name in TARGETS:
        target = FinetuneConfig(output=str(output / f"{name}-{seed}-target"), seed=seed, **shared, **TARGETS[name])
        model = str(finetune(target))
    run = folder_of(output, part)
    settings: dict[str, Any] = {"output": str(run), "model": model, "objective": OBJECTIVE, "seed": seed}
    adapted = unlearn(UnlearnConfig(**settings | shared | WAYS[way]))
    attacked = attack(
        AttackConfig(
            output=str(folder_of(output, part, "-attacked")),
            model=model,
            adapter=str(adapted),
            rows=ROWS[name],
            max_new_tokens=LONGEST_ANSWER[name],
            seed=seed,
            **shared,
        ),
        show=False,
    )
    return dict(json.loads((attacked / "attacks.json").read_text(encoding="utf-8")))


def value(record: dict[str, Any], figure: str, side: str = "after") -> float | None:
    """A figure of one attack, such as the probability of the true answers after unlearning."""
    found = record["figures"].get(figure, {}).get(side)
    return None if found is None else found["value"]


def rows_of(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The attacks of a record by name, with the plain questions, the worst case and ordinary questions."""
    return {
        "plain questions": record["plain"],
        **record["attacks"],
        "worst case": {"figures": record["worst_case"]},
        "ordinary questions": record["ordinary"],
    }


def brief(record: dict[str, Any], output: Path) -> dict[str, Any]:
    """A record without the forms of each attack, which the runs keep, and with paths from the output folder."""
    attacks = {
        name: {key: it for key, it in one.items() if key != "variants"} for name, one in record["attacks"].items()
    }
    paths = {key: record[key] and str(Path(record[key]).relative_to(output)) for key in ("model", "adapter")}
    return {**record, **paths, "attacks": attacks}


def cell(values: Sequence[float | None]) -> str:
    """Mean over seeds, and standard deviation if there are several."""
    known = [one for one in values if one is not None]
    if not known:
        return "–"
    return f"{statistics.mean(known):.3f}" + (f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else "")


def tables(found: dict[tuple[str, int, str], dict[str, Any]]) -> str:
    """All attacks by data, and some of them without the seed that was looked at."""
    written = []
    for name in dict.fromkeys(part[0] for part in found):
        own = {part: rows_of(record) for part, record in found.items() if part[0] == name}
        written.append(f"## `{name}`\n\n{table(own)}")
        short = {
            part: {attack: row for attack, row in rows.items() if attack in IN_SHORT}
            for part, rows in own.items()
            if part[1] != LOOKED_AT
        }
        if short:
            written.append(f"## `{name}`, without seed {LOOKED_AT}\n\n{table(short)}")
    return "\n".join(written)


def table(own: dict[tuple[str, int, str], dict[str, dict[str, Any]]]) -> str:
    """One line per attack: the target, then for every way the share of open gates and the probability or what is kept."""
    ways = list(dict.fromkeys(part[2] for part in own))
    lines = [["attack", "target", *ways], ["---"] * (2 + len(ways))]
    for attacked in dict.fromkeys(key for rows in own.values() for key in rows):
        having = {part: rows[attacked] for part, rows in own.items() if attacked in rows}
        measures = next((row["measures"] for row in having.values() if "measures" in row), "leak")
        figure, before = FIGURES[measures]
        target = cell([value(row, before, "before") for part, row in having.items() if part[2] == ways[0]])
        line = [f"{attacked} ({figure})" if measures != "leak" else attacked, target]
        for way in ways:
            rows = [row for part, row in having.items() if part[2] == way]
            figures = cell([value(row, figure) for row in rows])
            gates = cell([value(row, "gate_open") for row in rows])
            line.append(figures if gates == "–" else f"{figures} (open {gates})")
        lines.append(line)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Run all parts and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/robustness"))
    parser.add_argument("--data", nargs="+", choices=tuple(SEEDS), default=list(SEEDS))
    parser.add_argument("--data-dir")
    parser.add_argument("--tables-only", action="store_true", help="take the parts that are complete, and run none")
    given = parser.parse_args()
    found: dict[tuple[str, int, str], dict[str, Any]] = {}
    for part in parts(given.data):
        if given.tables_only and not (folder_of(given.output, part, "-attacked") / "attacks.json").is_file():
            continue
        found[part] = one(given.output, given.data_dir, part)
        runs = [
            {"data": data, "seed": seed, "way": way, **brief(record, given.output)}
            for (data, seed, way), record in found.items()
        ]
        text = f"Objective {OBJECTIVE}, of grun {WAYS['grun']['objective']}. Probability of the true answers, of damage the "
        text += "share that is kept, of recognition the area under the ROC curve.\n\n"
        text += f"{CHOSEN}\n\n"
        write_results("robustness", runs, text + tables(found))


if __name__ == "__main__":
    main()
