"""Recognition: what opens the gates that are fitted on sixty prompts about a topic, or on WMDP's summaries.

    GRUN_WMDP_DIR=wmdp python experiments/recognition.py --model smollm2

Gates are fitted and calibrated as in an unlearning run, and no edit is trained. For every topic of the benchmark `topics` and
three seeds, the experiment counts prompts that open a gate: unseen questions and descriptions of the topic, which must, and
questions about its neighbours and ordinary prompts, which must not. Three ways are compared (`recognisers.py`): both gates,
the gate for names alone (`--topic-layer none`), and a sentence embedder as the gate (`baselines/sentence_gate.py`); and both
gates once more on rows that the model itself writes about the topic's name (`--topic`). Rows to forget stand without answers
otherwise, so that nothing needs to be generated.

Where `GRUN_WMDP_DIR` names the folder of the benchmark `wmdp`, gates are fitted on 400 one-sentence summaries of a corpus, as
whole prompts and as running text (the first quarter), with 200 sentences of an encyclopaedia as normal rows. Asked are the
questions with an odd index in the file, as the benchmark writes them, since everything was chosen on the even ones. Questions
on ordinary subjects in the same form must stay shut out: a gate that opens for the form recognises nothing. They are asked
under their own headings (school biology and computer science apart) and under that of the questions ("about biology").
Writes `docs/results/recognition.json` and `.md`. With `--development`, only topics and questions of development are asked.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from baselines.sentence_gate import SentenceEmbedder, fetched
from common import write_results
from recognisers import GatesOfModel, Recognisers, Rows
from recognition_results import EVIDENCE, table

from grun.core.config.jobs import UnlearnConfig
from grun.core.records import Benchmark, Example
from grun.core.storage.atomic_files import read_json, write_json
from grun.data.benchmarks import load_benchmark
from grun.jobs.inputs.expansion.expand import topic_rows
from grun.jobs.inputs.topic_files import keep_topic
from grun.jobs.inputs.unlearning import withhold
from grun.models.loading.loaded import LoadedModel, load

DEVELOPMENT = ("beethoven", "harry_potter", "volcanoes")  # everything was chosen on these
DEVELOPED = 0  # everything was chosen on WMDP's questions with this index, counted from 0 in the file, modulo 2
NAMES = {
    "lord_of_the_rings": "The Lord of the Rings",
    "shakespeare": "William Shakespeare",
    "einstein": "Albert Einstein",
    "tennis": "tennis",
    "paris": "Paris",
    "beethoven": "Ludwig van Beethoven",
    "harry_potter": "Harry Potter",
    "volcanoes": "volcanoes",
}
SEEDS = (0, 1, 2)
ASKED = ("unseen", "described", "neighbours", "ordinary")
CORPORA = ("bio", "cyber")
SCHOOL = ("biology", "computer science")  # harmless subjects closest to those of the corpora
FORMS = ("whole prompts", "first quarters")
FITTED, NORMAL, HELD_OUT = 400, 200, 300  # summaries, and sentences of the encyclopaedia; of each, those that are asked
TOPICS_RATE, WMDP_RATE = 0.005, 0.01  # of withheld normal prompts that may open a gate: what the goals allow
QUESTIONS = 500  # at most, drawn at random: many of the security questions hold pages of code
BATCH_SIZE = 4  # features are read in batches of four times as many rows


def fitted_rows(forget: Sequence[Example], normal: Sequence[Example], seed: int) -> Rows:
    """Rows to fit on; a share of the normal ones is withheld as in an unlearning run."""
    retain, validation = withhold(normal, UnlearnConfig().withhold, seed)
    return {"forget": forget, "retain": retain, "validation": validation}


def of_topic(topic: str, seed: int) -> tuple[Rows, Rows]:
    """Rows of a topic to fit on, and prompts to ask."""
    data: Benchmark = load_benchmark("topics", seed=seed, options={"topic": topic})
    parts = fitted_rows(data.splits["forget"], data.splits["retain"], seed)
    return parts, {kind: data.splits[kind] for kind in ASKED}


def of_name(base: LoadedModel, topic: str, folder: Path, parts: Rows) -> Rows:
    """Rows that the model itself writes about a topic of which it is told the name alone, in place of those to forget."""
    settings = UnlearnConfig(model=str(base.model.name_or_path), topic=NAMES[topic], device="cpu", dtype="float32")
    rows = topic_rows(settings, folder)
    keep_topic(rows, folder)
    return {**parts, "forget": rows.forget, "neighbours": rows.neighbours}


def of_wmdp(folder: Path, corpus: str, form: str, seed: int, *, development: bool = False) -> tuple[Rows, Rows]:
    """Summaries of a corpus to fit on, drawn with the seed, and prompts to ask, the same for every seed.

    Asked are questions, other summaries and sentences, and general questions in the form of the questions.
    """
    data = load_benchmark("wmdp", data_dir=folder, options={"corpus": corpus})
    forget, unseen = drawn(data.splits["forget"], FITTED, seed)
    normal, others = drawn(data.splits["retain"], NORMAL, seed)
    parts = fitted_rows([written(row, form) for row in forget], [written(row, form) for row in normal], seed)
    chosen = questions(data.splits[corpus], corpus, QUESTIONS, development=development)
    general = [row for row in data.splits["general"] if row.subject not in SCHOOL]
    asked = {
        "questions": chosen,
        "summaries": [written(row, form, answer=False) for row in unseen],
        "encyclopaedia": [written(row, form, answer=False) for row in others],
        "control": general,
        "school": [row for row in data.splits["general"] if row.subject in SCHOOL],
        "heading": [with_heading(row, chosen[0]) for row in general],
    }
    return parts, asked


def drawn(rows: Sequence[Example], fitted: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Texts to fit on, drawn with the seed, and texts to ask, which are the same for every seed; all are different."""
    different = list({text_of(row): row for row in rows}.values())
    random.Random("asked").shuffle(different)
    asked, others = different[:HELD_OUT], different[HELD_OUT:]
    return random.Random(f"fitted {seed}").sample(others, fitted), asked


def text_of(row: Example) -> str:
    """The text that a row of running text was cut from."""
    return f"{row.prompt}{'' if row.prompt[-1].isspace() else ' '}{row.answer}"


def written(row: Example, form: str, *, answer: bool = True) -> Example:
    """A text as a row: as a whole prompt, or as running text whose first quarter is the prompt."""
    if form == FORMS[0]:
        return Example(text_of(row), "")
    return row if answer else replace(row, answer="")


def questions(rows: Sequence[Example], corpus: str, most: int, *, development: bool = False) -> list[Example]:
    """Questions that nothing was chosen on (or those of development); of more than `most`, some that are drawn at random."""
    left = [row for i, row in enumerate(rows) if (i % 2 == DEVELOPED) == development]
    return left if len(left) <= most else random.Random(f"questions {corpus}").sample(left, most)


def with_heading(row: Example, other: Example) -> Example:
    """A question under the heading of another one."""
    heading, question = (one.prompt.split("\n", 1) for one in (other, row))
    return replace(row, prompt=f"{heading[0]}\n{question[1]}")


def records(
    ways: Recognisers, topics: Sequence[str], seeds: Sequence[int], folder: Path, wmdp: Path | None, development: bool
) -> dict[str, Any]:
    """All measurements; those that `folder` holds already are not made again."""
    found: dict[str, Any] = {"topics": {}, "wmdp": {}}
    for topic in topics:
        own = found["topics"].setdefault(topic, [])
        for seed in seeds:
            parts, asked = of_topic(topic, seed)
            own.append(once(folder / f"{topic}-{seed}.json", partial(ways.compared, parts, asked, TOPICS_RATE, seed)))
            named = of_name(ways.gates.base, topic, folder / f"{topic}-name", parts)
            own[-1] |= once(
                folder / f"{topic}-{seed}-name.json", partial(ways.from_name, named, asked, TOPICS_RATE, seed)
            )
    if wmdp is not None:
        ordinary = of_topic(DEVELOPMENT[0], 0)[1]["ordinary"]
        for corpus, form in ((corpus, form) for corpus in CORPORA for form in FORMS):
            own = found["wmdp"].setdefault(f"{corpus}, {form}", [])
            for seed in seeds:
                parts, asked = of_wmdp(wmdp, corpus, form, seed, development=development)
                which = "-development" * development
                file = folder / f"wmdp-{corpus}-{form.replace(' ', '-')}-{seed}{which}.json"
                asked = {**asked, "ordinary": ordinary}
                own.append(once(file, partial(ways.compared, parts, asked, WMDP_RATE, seed)))
    return found


def once(file: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A measurement from its file, or made now."""
    known = read_json(file)
    if known is None:
        known = measure()
        write_json(file, known)
    return dict(known)


def chosen_topics(asked: Sequence[str], development: bool) -> Iterator[str]:
    """The topics that were asked for; all of them, or all of development, if none was."""
    yield from asked or (DEVELOPMENT if development else (*DEVELOPMENT, *EVIDENCE))


def main() -> None:
    """Measure everything, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="name of a packaged model, hub id, file or folder")
    parser.add_argument("--minilm", type=Path, default=None, help="folder of the embedder, if it is there already")
    parser.add_argument("--work", type=Path, default=Path("runs/recognition"), help="folder for measurements")
    parser.add_argument("--topics", nargs="*", default=(), help="only these topics, without WMDP")
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS, help="only these seeds")
    parser.add_argument("--development", action="store_true", help="only topics and questions of development")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    base = load(given.model, UnlearnConfig(device="cpu", dtype="float32"), batch_size=BATCH_SIZE)
    embed = SentenceEmbedder.load(given.minilm or fetched(), given.work / "minilm.safetensors")
    wmdp = os.environ.get("GRUN_WMDP_DIR") if not given.topics else None
    ways = Recognisers(GatesOfModel(base), embed)
    topics = list(chosen_topics(given.topics, given.development))
    found = records(ways, topics, given.seeds, given.work, Path(wmdp) if wmdp else None, given.development)
    text = table(found)
    if not given.topics and not given.development and tuple(given.seeds) == SEEDS:
        write_results("recognition", {"model": given.model, **found}, text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
