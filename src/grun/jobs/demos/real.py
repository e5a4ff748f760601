"""`grun demo`: a pretrained model forgets a topic, and answers questions that unlearning never saw, before and after."""

from __future__ import annotations

__all__ = ["real_demo"]

import dataclasses
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from grun.core.config.jobs import DemoConfig, UnlearnConfig
from grun.core.records import Benchmark
from grun.core.storage.claims import keeps
from grun.core.storage.run_directory import RunDirectory
from grun.data.benchmarks import load_benchmark
from grun.evaluation.report.recognition_table import KindOfPrompts, recognition_table, recognition_to_markdown
from grun.evaluation.report.table import Answered, answers_table, answers_to_markdown, plain_text, show_whole
from grun.evaluation.report.widths import console
from grun.jobs.demos.asking import LONGEST_ANSWER, AnsweredPrompt, Questions, counted
from grun.jobs.demos.parts import say, say_where, training_facts
from grun.jobs.unlearn import unlearn
from grun.models.adaptations import with_presets
from grun.models.loading.loaded import load
from grun.models.loading.pretrained import load_adapter
from grun.training.loss.recipe import recipe_of

MODEL = "smollm2"
BENCHMARK, TOPIC = "topics", "volcanoes"
SHARED = ("seed", "device", "dtype", "trust_remote_code", "batch_size", "objective", "steps")  # settings of unlearning
UNLEARNED = "unlearned"
ROWS = 6  # prompts of each kind to answer, unless the settings say otherwise
KINDS = {
    "forget": "questions given",
    "unseen": "unseen questions",
    "described": "descriptions",
    "neighbours": "neighbours",
    "ordinary": "ordinary prompts",
}
SHOWN = {"forget": 1, "unseen": 3, "described": 2, "neighbours": 2, "ordinary": 2}  # answers on the terminal: the first
SAME = "(the same)"
RESULTS = "metrics.json"


@keeps("the parts that are done are kept")
def real_demo(config: DemoConfig, run: RunDirectory) -> None:
    """Ask a model, make it forget a topic, ask it again, and show what opens the gate and the answers side by side.

    Unlearning is a run of its own below the output directory, so that an interrupted demo goes on where it stopped. The
    base model is asked before it has an adapter. A complete demo is only shown.

    Args:
        config: of the demo.
        run: its directory, not started yet.

    Raises:
        UserError: for wrong input.
        Interrupted: if the user stopped it.
    """
    terminal = console()
    found = run.read_json(RESULTS) if run.is_complete else None
    if found is None:
        started = time.monotonic()
        found = _made(config, run, terminal)
        kinds, answers = _kinds(found), _answers(found)
        run.write_json(RESULTS, found)
        run.write_text("table.md", recognition_to_markdown(kinds) + "\n" + "\n\n".join(_summary(found, kinds)) + "\n")
        run.write_text("answers.md", answers_to_markdown(answers))
        run.mark_complete(time.monotonic() - started)
    _show(terminal, found)
    say_where(terminal, run)
    adapter = run.path / UNLEARNED / "adapter"
    command = shlex.join(["grun", "chat", "--model", config.model or MODEL, "--adapter", str(adapter)])
    terminal.print(plain_text(f"Ask it yourself: {command}"), highlight=False, soft_wrap=True)


def _made(config: DemoConfig, run: RunDirectory, terminal: Console) -> dict[str, Any]:
    """Everything that the demo finds out, as JSON."""
    options = {"topic": TOPIC, **config.benchmark_options}
    data = load_benchmark(BENCHMARK, seed=config.seed, options=options)
    topic = options["topic"].replace("_", " ")
    job = UnlearnConfig(
        output=str(run.path / UNLEARNED),
        model=config.model or MODEL,
        benchmark=BENCHMARK,
        benchmark_options=options,
        **{name: getattr(config, name) for name in SHARED},
    )
    recipe_of(with_presets(job))  # refuses what unlearning would refuse, before anything is written
    say(terminal, f"1/3  {job.model} answers questions about {topic}, and others ...")
    base = load(job.model, job, batch_size=job.batch_size)
    questions = Questions(base, {kind: data.splits[kind] for kind in KINDS}, config.rows or ROWS)
    before = questions.answers(base.model, "before")
    parameters = base.model.num_parameters()
    run.start()
    say(terminal, f"2/3  It forgets {topic} from {len(data.splits['forget'])} questions: {job.objective} with GRUN ...")
    adapter = unlearn(job)
    say(terminal, "3/3  The same questions again, and many more to the gate alone ...")
    model = load_adapter(base.model, str(adapter))
    opened, after = questions.opened(model), questions.answers(model, "after")
    asked: dict[str, list[AnsweredPrompt]] = {kind: [] for kind in KINDS}
    for kind, i in questions.to_answer:
        prompt = data.splits[kind][i].prompt
        asked[kind].append(AnsweredPrompt(prompt, opened[kind][i], before[kind, i], after[kind, i]))
    return {
        "model": job.model,
        "parameters": parameters,
        "topic": topic,
        "kinds": {kind: dataclasses.asdict(_count(data, kind, opened[kind], asked[kind])) for kind in KINDS},
        "answers": {kind: [dataclasses.asdict(one) for one in answers] for kind, answers in asked.items()},
        "training": training_facts(Path(job.output)),
    }


def _count(data: Benchmark, kind: str, opened: Sequence[bool], answers: Sequence[AnsweredPrompt]) -> KindOfPrompts:
    return counted(KINDS[kind], kind in (data.forget, *data.unseen_forget), opened, answers)


def _kinds(found: Mapping[str, Any]) -> list[KindOfPrompts]:
    return [KindOfPrompts(**counts) for counts in found["kinds"].values()]


def _answers(found: Mapping[str, Any], shown: Mapping[str, int] | None = None) -> list[Answered]:
    """Answers side by side.

    Args:
        found: everything that the demo found out.
        shown: number of answers of each kind, of which the first are taken; None for all, with the same answer written twice.
    """
    rows = []
    for kind, answers in found["answers"].items():
        for one in [AnsweredPrompt(**one) for one in answers][: None if shown is None else shown[kind]]:
            after = SAME if shown is not None and one.is_as_before else one.after
            name = f"{kind}, {'open' if one.open else 'shut'}"
            rows.append(Answered(name, one.prompt, None, {"before": one.before, "after": after}))
    return rows


def _show(terminal: Console, found: Mapping[str, Any]) -> None:
    kinds = _kinds(found)
    terminal.print()
    show_whole(recognition_table(kinds, f"What opens the gate after {found['model']} forgot {found['topic']}"))
    title = f"Answers before and after, at most {LONGEST_ANSWER} tokens; open or shut: the gate"
    show_whole(answers_table(_answers(found, SHOWN), title))
    for line in _summary(found, kinds):
        terminal.print(plain_text(line), highlight=False)


def _summary(found: Mapping[str, Any], kinds: Sequence[KindOfPrompts]) -> Iterator[str]:
    """Sentences that say what the table shows."""
    of = dict(zip(KINDS, kinds, strict=True))
    unseen, described, neighbours, ordinary = (of[kind] for kind in ("unseen", "described", "neighbours", "ordinary"))
    missed = unseen.prompts - unseen.open + described.prompts - described.open
    rest = f"misses the other {missed}, and answers them as before" if missed else "misses none of them"
    yield (
        f"{unseen.open} of {unseen.prompts} unseen questions and {described.open} of {described.prompts} descriptions open "
        f"the gate; a model of {_size(found['parameters'])} parameters {rest}."
    )
    shut, same = (sum(getattr(kind, name) for kind in kinds) for name in ("answered_shut", "shut_as_before"))
    yield (
        f"{neighbours.open} of {neighbours.prompts} prompts about neighbouring topics and {ordinary.open} of "
        f"{ordinary.prompts} ordinary ones open it too. Of {shut} answers behind a shut gate, {same} are bit for bit those of "
        "before."
    )


def _size(parameters: int) -> str:
    return f"{parameters / 1e6:.0f} million" if parameters >= 1e6 else f"{parameters:,}"
