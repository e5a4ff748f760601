"""`grun demo --fictional`: a small model learns invented people by heart, forgets some of them, and shows what is left."""

from __future__ import annotations

__all__ = ["fictional_demo"]

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from grun.core.config.jobs import DemoConfig, FinetuneConfig, UnlearnConfig
from grun.core.records import Benchmark, Evidence, Example
from grun.core.storage.claims import keeps
from grun.core.storage.run_directory import RunDirectory
from grun.data.benchmarks import load_benchmark
from grun.evaluation.measuring.measure import measure
from grun.evaluation.measuring.settings import MeasureSettings, Subject
from grun.evaluation.report.table import (
    Answered,
    answers_table,
    answers_to_markdown,
    before_after_table,
    plain_text,
    show_whole,
    to_markdown,
)
from grun.evaluation.report.widths import console
from grun.evaluation.scores import Results, needs_of_metrics, score
from grun.jobs.demos.parts import say, say_where, spread, training_facts
from grun.jobs.finetune import finetune
from grun.jobs.unlearn import unlearn
from grun.models.adaptations import NO_TOPICS, with_presets
from grun.models.loading.loaded import load
from grun.models.loading.pretrained import load_adapter
from grun.training.loss.recipe import recipe_of

BENCHMARK = "fictional"
SHARED = ("seed", "device", "batch_size", "benchmark_options")  # settings that every part is given
ADAPTATIONS = {"grun": "GRUN", "lora": "LoRA"}
OWN: dict[str, dict[str, Any]] = {"grun": {"topic_layer": NO_TOPICS}}  # the benchmark asks about names only
METRICS = ("probability", "rouge_l_recall", "exact_match", "gate_mean", "gate_auroc")
ROWS = 120  # of each split to measure, unless the settings say otherwise
EXAMPLES = {"forget": 4, "forget_paraphrased": 2, "retain": 1, "retain_heldout": 2, "general": 1}
KEPT = ("retain", "retain_heldout", "general")
TARGET = "target"
NEXT_FACT = 4  # rows; a fact is asked in three phrasings
LONGEST_ANSWER = 40  # tokens; the benchmark's answers have fewer


@keeps("the parts that are done are kept")
def fictional_demo(config: DemoConfig, run: RunDirectory) -> None:
    """Train a target model, make it forget with GRUN and with LoRA, measure all three, and show a table and answers.

    Every part is a run of its own below the output directory, so that an interrupted demo goes on where it stopped.

    Args:
        config: of the demo.
        run: its directory, not started yet.

    Raises:
        UserError: for wrong input.
        Interrupted: if the user stopped it.
    """
    data = load_benchmark(BENCHMARK, seed=config.seed, options=config.benchmark_options)
    for name in ADAPTATIONS:
        job = UnlearnConfig(objective=config.objective, adapt=name, steps=config.steps, benchmark=BENCHMARK)
        recipe_of(with_presets(job))  # refuses what unlearning would refuse, before the target model is trained
    run.start()
    started = time.monotonic()
    output, terminal = run.path, console()
    shared: dict[str, Any] = {name: getattr(config, name) for name in SHARED} | {"benchmark": BENCHMARK}
    people = sum(_people(data.splits[split]) for split in ("forget", "retain", "retain_heldout"))
    say(terminal, f"1/4  A small model learns facts about {people} invented people ...")
    target = str(finetune(FinetuneConfig(output=str(output / "target"), epochs=config.epochs, **shared)))
    adapted = {}
    for number, (name, label) in enumerate(ADAPTATIONS.items(), 2):
        forgotten = _people(data.splits[data.forget])
        say(terminal, f"{number}/4  It forgets {forgotten} of them: {config.objective} with {label} ...")
        job = UnlearnConfig(
            output=str(output / name),
            model=target,
            objective=config.objective,
            adapt=name,
            steps=config.steps,
            **OWN.get(name, {}),
            **shared,
        )
        adapted[f"{config.objective}, {label}"] = unlearn(job)
    say(terminal, "4/4  Questions to all three, also about people and in words that unlearning never saw ...")
    measured = _measure(config, data, target, adapted)
    results = {subject: score(evidence, METRICS) for subject, evidence in measured.items()}
    answers = _examples(measured)
    facts = {name: training_facts(output / name) for name in ADAPTATIONS}
    run.write_text("table.md", to_markdown(results))
    run.write_text("answers.md", answers_to_markdown(answers))
    run.write_json("metrics.json", {"splits": _values(results), "training": facts})
    run.mark_complete(time.monotonic() - started)
    show_whole(before_after_table(results))
    show_whole(answers_table(answers, title="Answers before and after"))
    for line in _summary(results, facts):
        terminal.print(plain_text(line), highlight=False)
    say_where(terminal, run)


def _people(rows: Iterable[Example]) -> int:
    return len({row.subject for row in rows})


def _measure(
    config: DemoConfig, data: Benchmark, target: str, adapted: Mapping[str, Path]
) -> dict[str, dict[str, Evidence]]:
    """Evidence by subject (the target first) and split, on evenly spaced rows of each split."""
    splits = {name: spread(data.splits[name], config.rows or ROWS) for name in data.evaluation}
    measured = {}
    for label, adapter in {TARGET: None, **adapted}.items():
        base = load(target, config)
        model = base.model if adapter is None else load_adapter(base.model, str(adapter))
        settings = MeasureSettings(base.template, needs_of_metrics(METRICS), max_new_tokens=LONGEST_ANSWER)
        subject = Subject(model, base.tokenizer, label)
        measured[label] = measure(subject, splits, settings, forget_split=data.forget)
    return measured


def _examples(measured: Mapping[str, Mapping[str, Evidence]]) -> list[Answered]:
    """Some questions of each kind with the answer of every subject: other people, and other facts about them."""
    found = []
    for split, count in EXAMPLES.items():
        rows = measured[TARGET][split].rows
        for k in range(min(count, len(rows))):
            i = (k * (len(rows) // count) + k * NEXT_FACT) % len(rows)
            example = rows[i].example
            answers = {subject: str(evidence[split].rows[i].generated) for subject, evidence in measured.items()}
            found.append(Answered(split, example.prompt, example.answer, answers))
    return found


def _values(results: Mapping[str, Results]) -> dict[str, Any]:
    """Values by split, metric and subject."""
    splits: dict[str, Any] = {}
    for subject, found in results.items():
        for split, scores in found.items():
            for metric, one in scores.items():
                splits.setdefault(split, {}).setdefault(metric, {})[subject] = one.value
    return splits


def _summary(results: Mapping[str, Results], facts: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """One line per adaptation: what was forgotten, what was kept, at what cost."""
    for (subject, found), fact in zip(list(results.items())[1:], facts.values(), strict=True):
        now = {split: float(scores["probability"].value or 0.0) for split, scores in found.items()}
        kept = {s: now[s] / float(results[TARGET][s]["probability"].value or 1.0) for s in KEPT}
        yield (
            f"{subject}: probability of what was to be forgotten {now['forget']:.3f} (in other words "
            f"{now['forget_paraphrased']:.3f}); kept of the rest: "
            + ", ".join(f"{share:.1%} of {split}" for split, share in kept.items())
            + f"; {fact['trainable_parameters']:,} parameters, {fact['seconds']:.0f} s."
        )
