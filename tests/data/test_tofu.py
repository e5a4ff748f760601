"""TOFU's splits against its own full set, and what is said when a file is missing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from grun.core.errors import UserError
from grun.data.benchmarks import load_benchmark
from grun.data.benchmarks.tofu import RETAIN_OF, tofu

DATA = os.environ.get("GRUN_TOFU_DIR")
needs_data = pytest.mark.skipif(not DATA, reason="GRUN_TOFU_DIR does not name a folder with the TOFU files")


def full_rows() -> list[tuple[str, str]]:
    lines = (Path(DATA or "") / "full.json").read_text(encoding="utf-8").split("\n")
    items = [json.loads(line) for line in lines if line.strip()]
    return [(item["question"].strip(), item["answer"].strip()) for item in items]


@needs_data
@pytest.mark.parametrize("forget", sorted(RETAIN_OF))
def test_splits_are_a_partition_of_the_full_set_with_the_right_authors(forget: str) -> None:
    data = tofu(data_dir=DATA, forget=forget)
    place = {row: number for number, row in enumerate(full_rows())}
    found = []
    for name in data.full:
        for row in data.splits[name]:
            number = place[(row.prompt, row.answer)]
            assert row.subject == f"author {number // 20:03d}"
            found.append(number)
    assert sorted(found) == list(range(4000))


@needs_data
def test_roles_of_the_splits() -> None:
    data = tofu(data_dir=DATA)
    assert (data.forget, data.retain) == ("forget", "retain")
    assert data.full == ("forget", "retain", "retain_withheld")
    assert data.unseen == ("retain_withheld", "real_authors", "world_facts")
    assert data.evaluation == ("forget", "retain", "retain_withheld", "real_authors", "world_facts")


@needs_data
def test_the_last_quarter_of_the_retain_authors_is_withheld() -> None:
    data = tofu(data_dir=DATA, retain_rows=400)
    given, withheld = data.splits["retain"], data.splits["retain_withheld"]
    assert (len(given), len(withheld)) == (300, 100)
    assert {row.subject for row in given} == {f"author {n:03d}" for n in range(15)}
    assert {row.subject for row in withheld} == {f"author {n:03d}" for n in range(15, 20)}


@needs_data
def test_paraphrases_and_wrong_answers_are_joined_in() -> None:
    data = tofu(data_dir=DATA, retain_rows=400)
    for name in ("forget", "retain", "retain_withheld"):
        assert all(len(row.paraphrased_prompts) == 1 and row.paraphrased_answer for row in data.splits[name])
        assert {len(row.perturbed_answers) for row in data.splits[name]} == {5}
    assert {len(row.perturbed_answers) for row in data.splits["real_authors"]} == {3}
    assert (len(data.splits["real_authors"]), len(data.splits["world_facts"])) == (100, 117)


@needs_data
def test_nothing_withheld_means_no_such_split() -> None:
    data = load_benchmark("tofu", data_dir=DATA, options={"withheld_share": "0", "retain_rows": "40"})
    assert "retain_withheld" not in (*data.splits, *data.full, *data.evaluation, *data.unseen)
    assert len(data.splits["retain"]) == 40


@needs_data
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"retain_rows": "30"}, "multiple of 20"),
        ({"retain_rows": "0"}, "multiple of 20"),
        ({"retain_rows": "4000"}, "up to 3800"),
        ({"withheld_share": "1.0"}, "withheld_share"),
        ({"withheld_share": "-0.1"}, "withheld_share"),
        ({"forget": "forget5"}, "Did you mean 'forget05'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_benchmark("tofu", data_dir=DATA, options=options)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"retain95\.json"):
        tofu(data_dir=tmp_path)
    (tmp_path / "retain95.json").write_text('{"question": "q?", "answer": "a"}\n' * 40)
    with pytest.raises(UserError, match=r"retain_perturbed\.json"):
        tofu(data_dir=tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        tofu(data_dir=tmp_path / "nowhere")


def test_without_a_folder_an_unreachable_hub_points_to_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def unreachable(name: str, config: str) -> None:
        asked.append((name, config))
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"no network.*--data-dir"):
        tofu()
    assert asked == [("locuslab/TOFU", "retain95")]
