"""Nothing of the user's is ever deleted or replaced: not by --overwrite, not by a resumed run, an export or a table."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import pytest

from grun.cli.main import main
from grun.core.config.jobs import DemoConfig, EvaluateConfig, ExpandConfig, FinetuneConfig, JobConfig, UnlearnConfig
from grun.core.config.requests import CalibrateConfig, ImportConfig
from grun.core.config.schema import without_none
from grun.core.errors import UserError
from grun.core.storage import replacing, run_directory
from grun.core.storage.atomic_files import atomic_directory, write_text
from grun.core.storage.claims import claimed
from grun.core.storage.directories.written import LIST, end
from grun.core.storage.run_directory import RunDirectory
from support.material import Material, write_rows

EARLIER = Path(__file__).parents[1] / "golden" / "earlier"
NEW = {"settings.json", "run.json", LIST}
CONFIG = UnlearnConfig(model="m", objective="gd")


def tree(folder: Path) -> dict[str, bytes | str]:
    """Every file below a folder with its content, links with their targets."""
    return {
        str(file.relative_to(folder)): os.readlink(file) if file.is_symlink() else file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_symlink() or file.is_file()
    }


def overwritten(where: Path, config: JobConfig = CONFIG, command: str = "unlearn") -> RunDirectory:
    with claimed(where):
        run = RunDirectory.open(where, config, command, overwrite=True)
        run.start()
    return run


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A finished run with all kinds of files, written as jobs write them."""
    run = RunDirectory.open(tmp_path / "run", UnlearnConfig(model="m"), "unlearn")
    run.start()
    with atomic_directory(run.path / "adapter") as folder:
        (folder / "adapter_config.json").write_text("{}")
        (folder / "README.md").write_text("card")
    with atomic_directory(run.path / "topic") as folder:
        write_text(folder / "forget.jsonl", "{}\n")
    for name in (
        "checkpoint-5/trainer_state.json",
        "checkpoint-5/optimizer.pt",
        "checkpoint-5/adapter_model.safetensors",
    ):
        (run.path / "checkpoints" / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / "checkpoints" / name).write_text("{}")
    (run.path / "tensorboard").mkdir()
    (run.path / "tensorboard" / "events.out.tfevents.1.host.2.0").write_text("")
    (run.path / ".adapter.abcd1234").mkdir()  # of a killed process
    (run.path / ".adapter.abcd1234" / "adapter_model.safetensors").write_text("half")
    (run.path / ".metrics.json.77.tmp").write_text("{")
    run.write_json("metrics.json", {})
    end(run.path)
    return run.path


def test_what_a_run_wrote_is_replaced(written: Path) -> None:
    overwritten(written)
    assert {file.name for file in written.iterdir()} == NEW
    assert json.loads((written / "settings.json").read_text())["objective"] == "gd"


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        ".hidden",
        "table.md",
        "adapter/notes.md",
        "adapter/deep/er/weights.bin",
        "topic/more.jsonl",
        "checkpoints/best.pt",
        "checkpoints/checkpoint-5/notes.txt",
        "checkpoints/checkpoint-5-mine/optimizer.pt",
        "checkpoints/mine/trainer_state.json",
        "tensorboard/notes.txt",
        "evaluation/run.json",
        "unlearn/adapter/adapter_config.json",
    ],
)
def test_a_file_of_the_user_is_named_and_nothing_is_deleted(written: Path, name: str) -> None:
    (written / name).parent.mkdir(parents=True, exist_ok=True)
    (written / name).write_text("years of work")
    before = tree(written)
    with pytest.raises(UserError, match=f"'{name}', which grun did not write"):
        overwritten(written)
    assert tree(written) == before


@pytest.mark.parametrize("name", ["metrics.json", "settings.json", "adapter/README.md", "topic/forget.jsonl"])
def test_a_file_that_was_changed_is_named_and_nothing_is_deleted(written: Path, name: str) -> None:
    (written / name).write_text("corrected")
    before = tree(written)
    with pytest.raises(UserError, match=f"'{name}', which was changed since"):
        overwritten(written)
    assert tree(written) == before


def test_a_file_that_appears_while_the_model_is_loaded_is_seen(written: Path) -> None:
    run = RunDirectory.open(written, CONFIG, "unlearn", overwrite=True)
    (written / "thesis.tex").write_text("years of work")
    before = tree(written)
    with pytest.raises(UserError, match="thesis.tex"):
        run.start()
    assert tree(written) == before


def test_a_copied_directory_is_still_known(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path / "copy", copy_function=shutil.copyfile)  # with new times
    overwritten(tmp_path / "copy")
    assert {file.name for file in (tmp_path / "copy").iterdir()} == NEW


@pytest.mark.parametrize("name", ["link", "adapter/link", "checkpoints/checkpoint-7"])
def test_links_inside_are_never_followed(written: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "optimizer.pt").write_text("years of work")
    (written / name).symlink_to(outside)
    with pytest.raises(UserError, match="did not write"):
        overwritten(written)
    RunDirectory(written, {}, {}).last_checkpoint()
    RunDirectory(written, {}, {}).mark_complete(1.0)
    assert (outside / "optimizer.pt").read_text() == "years of work"


def test_an_output_that_is_a_link_keeps_being_one(written: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(written)
    overwritten(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert {file.name for file in written.iterdir()} == NEW
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a link to"):
        overwritten(tmp_path / "dangling")


@pytest.mark.parametrize(("place", "output"), [(".", "."), (".", "../run"), ("adapter", "..")])
def test_the_working_directory_is_never_emptied(
    written: Path, monkeypatch: pytest.MonkeyPatch, place: str, output: str
) -> None:
    monkeypatch.chdir(written / place)
    before = tree(written)
    with pytest.raises(UserError, match="the working directory"):
        RunDirectory.open(output, CONFIG, "unlearn", overwrite=True)
    assert tree(written) == before


@pytest.mark.parametrize("variable", ["HOME", "GRUN_CACHE_DIR"])
def test_the_home_and_the_cache_are_never_emptied(
    written: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(written / "adapter"))
    with pytest.raises(UserError, match="home directory|GRUN_CACHE_DIR"):
        overwritten(written)


CONFIGS = {
    "unlearn": UnlearnConfig,
    "finetune": FinetuneConfig,
    "evaluate": EvaluateConfig,
    "calibrate": CalibrateConfig,
    "import": ImportConfig,
    "expand": ExpandConfig,
    "demo": DemoConfig,
}
TEXTS = [
    pytest.param(command, config, f.name, id=f"{command}-{f.name}")
    for command, config in CONFIGS.items()
    for f in dataclasses.fields(config)
    # Values of these are chosen from a few.
    if f.name not in ("output", "dtype", "alternatives", "questions", "quantize", "device", "split")
    if (get_origin(kind := without_none(get_type_hints(config)[f.name])) or kind) in (str, list, dict)
]


@pytest.mark.parametrize(("command", "config", "name"), TEXTS)
@pytest.mark.parametrize("way", ["plain", "link"])
def test_no_input_is_ever_deleted(
    written: Path, tmp_path: Path, command: str, config: type, name: str, way: str
) -> None:
    path = written / "adapter"
    if way == "link":
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"
    kind = without_none(get_type_hints(config)[name])
    value: Any = {str: str(path), list: [f"forget:x={path}", str(path)], dict: {"a": str(path)}}[
        get_origin(kind) or kind
    ]
    before = tree(written)
    with pytest.raises(UserError, match="which the command reads"):
        RunDirectory.open(written, config(**{name: value}), command, overwrite=True)
    assert tree(written) == before


def test_the_settings_file_of_a_command_is_an_input(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(finished)
    settings = ["--config", str(finished / "settings.json"), "--steps", "3", "--output", str(finished)]
    assert main(["unlearn", *settings, "--overwrite"]) == 2
    assert "settings.json', which the command reads" in capsys.readouterr().err
    assert tree(finished) == before


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("unlearned", "unlearn"),
        ("interrupted", "unlearn"),
        ("evaluation", "evaluate"),
        ("evaluation_interrupted", "evaluate"),
        ("calibrated", "calibrate"),
    ],
)
def test_runs_of_an_earlier_version_are_replaced_file_by_file(tmp_path: Path, name: str, command: str) -> None:
    shutil.copytree(EARLIER / name, tmp_path / "run")
    config = CONFIGS[command](seed=17)
    (tmp_path / "run" / "mine.txt").write_text("years of work")
    before = tree(tmp_path / "run")
    with pytest.raises(UserError, match=r"mine\.txt"):
        overwritten(tmp_path / "run", config, command)
    assert tree(tmp_path / "run") == before
    (tmp_path / "run" / "mine.txt").unlink()
    overwritten(tmp_path / "run", config, command)
    assert {file.name for file in (tmp_path / "run").iterdir()} == NEW


def test_a_resumed_run_of_an_earlier_version_knows_its_old_files(tmp_path: Path) -> None:
    shutil.copytree(EARLIER / "interrupted", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    run = RunDirectory(tmp_path / "run", record, {})
    run.start()
    run.write_json("metrics.json", {})
    end(run.path)
    overwritten(tmp_path / "run")
    assert {file.name for file in (tmp_path / "run").iterdir()} == NEW


def test_corrected_rows_of_an_earlier_version_are_kept(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path / "run", ExpandConfig(), "expand")
    run.start()
    run.write_text("forget.jsonl", "{}\n")
    run.mark_complete(1.0)
    end(run.path)
    (run.path / LIST).unlink()
    os.utime(run.path / "forget.jsonl", (2e9, 2e9))
    with pytest.raises(UserError, match="forget.jsonl', which was changed"):
        overwritten(run.path, ExpandConfig(seed=1), "expand")


@pytest.mark.parametrize("name", ["target/notes.txt", "lora/adapter/notes.txt", "grun/notes.txt", "other/notes.txt"])
def test_runs_inside_a_run_are_looked_through(tmp_path: Path, name: str) -> None:
    outer = RunDirectory.open(tmp_path / "demo", DemoConfig(), "demo")
    outer.start()
    for part, command in {"target": "finetune", "grun": "unlearn", "lora": "unlearn"}.items():
        inner = RunDirectory.open(outer.path / part, CONFIGS[command](), command)
        inner.start()
        with atomic_directory(inner.path / ("model" if part == "target" else "adapter")) as folder:
            (folder / "README.md").write_text("card")
        end(inner.path)
    end(outer.path)
    (outer.path / name).parent.mkdir(exist_ok=True)
    (outer.path / name).write_text("years of work")
    before = tree(outer.path)
    with pytest.raises(UserError, match=name):
        overwritten(outer.path, DemoConfig(seed=1), "demo")
    assert tree(outer.path) == before
    (outer.path / name).unlink()
    with claimed(outer.path / "grun"), pytest.raises(UserError, match="another process .*below"):
        overwritten(outer.path, DemoConfig(seed=1), "demo")
    overwritten(outer.path, DemoConfig(seed=1), "demo")
    assert {file.name for file in outer.path.iterdir() if file.is_file()} == NEW
    assert not (outer.path / "lora").exists()


def test_a_kill_in_the_middle_of_the_deletion_is_no_obstacle(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, files = written.parent / "whole", len(tree(written))
    shutil.copytree(written, whole)
    for count in range(files + 1):
        shutil.rmtree(written)
        shutil.copytree(whole, written)

        def dying(files: list[Path], root: Path, count: int = count) -> None:
            replacing.delete(files[:count], root)
            raise KeyboardInterrupt

        monkeypatch.setattr(run_directory, "delete", dying)
        with pytest.raises(KeyboardInterrupt):
            overwritten(written, EvaluateConfig(), "evaluate")
        monkeypatch.undo()
        assert len(tree(written)) == files - count
        overwritten(written, EvaluateConfig(seed=2), "evaluate")
        assert {file.name for file in written.iterdir()} == NEW


def test_completing_a_run_keeps_what_the_trainer_did_not_write(written: Path) -> None:
    (written / "checkpoints" / "checkpoint-5" / "notes.txt").write_text("years of work")
    (written / "checkpoints" / "checkpoint-mine").mkdir()
    (written / "checkpoints" / "checkpoint-mine" / "notes.txt").write_text("years of work")
    (written / "checkpoints" / "checkpoint-9").mkdir()
    (written / "checkpoints" / "checkpoint-9" / "notes.txt").write_text("years of work")
    run = RunDirectory(written, {}, {})
    run.mark_complete(1.0)
    assert set(tree(written / "checkpoints")) == {f"checkpoint-{name}/notes.txt" for name in ("5", "mine", "9")}


def test_a_replaced_folder_keeps_what_somebody_else_put_there(written: Path) -> None:
    (written / "adapter" / "notes.md").write_text("years of work")
    with atomic_directory(written / "adapter") as folder:
        (folder / "adapter_config.json").write_text("new")
    assert (written / "adapter" / "notes.md").read_text() == "years of work"
    assert (written / "adapter" / "adapter_config.json").read_text() == "new"


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.fixture
def unlearn(material: Material, tmp_path: Path) -> Callable[..., list[str]]:
    def arguments(output: Path, *more: str) -> list[str]:
        files = ["--model", str(material.model), "--forget", str(material.forget), "--retain", str(material.retain)]
        small = ["--adapt", "lora", "--objective", "gd", "--steps", "1", "--batch-size", "4", "--device", "cpu"]
        return ["unlearn", *files, *small, "--output", str(output), *more]

    return arguments


@pytest.fixture
def finished(
    once: dict[str, Path], unlearn: Callable[..., list[str]], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A copy of a run that the real command has finished."""
    if "run" not in once:
        once["run"] = tmp_path_factory.mktemp("finished") / "run"
        assert main(unlearn(once["run"])) == 0
    shutil.copytree(once["run"], tmp_path / "run")
    return tmp_path / "run"


def test_the_real_command_replaces_its_own_files_only(
    finished: Path, unlearn: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "adapter" / "notes.md").write_text("years of work")
    before = tree(finished)
    assert main(unlearn(finished, "--seed", "1", "--overwrite")) == 2
    said = capsys.readouterr().err
    assert "adapter/notes.md" in said
    assert "Traceback" not in said
    assert tree(finished) == before
    (finished / "adapter" / "notes.md").unlink()
    assert main(unlearn(finished, "--seed", "1", "--overwrite")) == 0
    assert json.loads((finished / "settings.json").read_text())["seed"] == 1


def test_comparisons_replace_only_comparisons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def compare(output: Path) -> int:
        runs = [str(EARLIER / "evaluation"), str(EARLIER / "evaluation_first")]
        return main(["compare", *runs, "--output", str(output)])

    (tmp_path / "comparison.md").write_text("years of work")
    assert compare(tmp_path) == 2
    assert (tmp_path / "comparison.md").read_text() == "years of work"
    assert compare(tmp_path / "new") == compare(tmp_path / "new") == 0
    (tmp_path / "new" / "notes.txt").write_text("kept")
    assert compare(tmp_path / "new") == 0
    (tmp_path / "new" / "comparison.md").write_text("years of work")
    assert compare(tmp_path / "new") == 2
    assert (tmp_path / "new" / "comparison.md").read_text() == "years of work"
    assert "comparison.md" in capsys.readouterr().err
    shutil.copytree(EARLIER / "comparison", tmp_path / "earlier")
    assert compare(tmp_path / "earlier") == 0


def test_an_export_replaces_only_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(EARLIER / "ledger", tmp_path / "ledger")

    def export(output: Path) -> int:
        return main(["request", "export", str(output), "--ledger", str(tmp_path / "ledger")])

    foreign = tmp_path / "foreign"
    shutil.copytree(EARLIER / "unlearned" / "adapter", foreign)
    (foreign / "README.md").unlink()
    before = tree(foreign)
    assert export(foreign) == 2
    assert tree(foreign) == before
    assert export(tmp_path / "new") == export(tmp_path / "new") == 0
    (tmp_path / "new" / "README.md").write_text("my card")
    assert export(tmp_path / "new") == 2
    assert (tmp_path / "new" / "README.md").read_text() == "my card"
    (tmp_path / "new" / "README.md").unlink()
    (tmp_path / "new" / "adapter_config.json").write_text("{}")
    assert export(tmp_path / "new") == 2
    shutil.copytree(EARLIER / "exported_both", tmp_path / "earlier")
    assert export(tmp_path / "earlier") == 0
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]
    assert "Traceback" not in capsys.readouterr().err


def test_tables_of_a_sweep_that_were_changed_are_kept(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from grun.jobs.sweep import _prepare  # everything before the runs

    config: Any = dataclasses.make_dataclass("Config", ["vary", "set", "evaluate"])({}, {}, {})
    for name in ("table.md", "results.json"):
        output = tmp_path / name
        output.mkdir()
        _prepare(output, config)
        write_text(output / name, "ours")
        _prepare(output, config)
        (output / name).write_text("corrected")
        with pytest.raises(UserError, match="was changed since"):
            _prepare(output, config)
        end(output)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "sweep.json").write_text('{"method": "bayes"}')
    with pytest.raises(UserError, match="something else than a sweep"):
        _prepare(tmp_path / "foreign", config)


def test_corrected_rows_are_not_written_again(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed after the rows were written and before the run was complete; then somebody has corrected them."""
    command = ["expand", "--topic", "Lund", "--model", str(material.model), "--force-topic", "--device", "cpu"]
    output = tmp_path / "rows"
    assert main([*command, "--output", str(output)]) == 0
    record = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps(record | {"complete": False}))
    write_rows(output / "forget.jsonl", [{"question": "Who?", "answer": "Me."}])
    before = (output / "forget.jsonl").read_bytes()
    assert main([*command, "--output", str(output)]) == 2
    assert "forget.jsonl' was changed since" in capsys.readouterr().err
    assert (output / "forget.jsonl").read_bytes() == before
