"""Sweeps: the grid, the engines and their memory budget, real processes that are killed, and the table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import grun
from grun.cli.main import main
from grun.core.config.jobs import EvaluateConfig, SweepConfig, UnlearnConfig
from grun.core.config.schema import from_mapping, from_text
from grun.core.errors import RunsFailed, UserError
from grun.evaluation.report.sweep_table import Finished, sweep_table
from grun.jobs.engines import EngineSettings, Task, engines
from grun.jobs.inputs.sweep_grid import cells_of
from grun.jobs.sweep import sweep
from support.material import Material


def settings(material: Material, output: Path, **changes: Any) -> SweepConfig:
    shared: dict[str, Any] = {"model": material.model, "forget": material.forget, "retain": material.retain}
    shared |= {"steps": 4, "batch_size": 4, "device": "cpu", "template": "Q: {prompt}\nA: "}
    values: dict[str, Any] = {
        "output": str(output),
        "vary": {"objective": "npo,gd", "adapt": "lora"},
        "set": {name: str(value) for name, value in shared.items()},
        "evaluate": {"max_new_tokens": "4", "metrics": "probability"},
    }
    return SweepConfig(**(values | changes))


def test_the_grid_is_every_combination_after_the_targets(memorised: Material, tmp_path: Path) -> None:
    vary = {"adapt": "reft", "layers": "1,3;2", "seed": "0,1"}
    cells = cells_of(settings(memorised, tmp_path, vary=vary), tmp_path)
    assert [cell.folder.name for cell in cells] == [
        "target-0",
        "target-1",
        "adapt=reft,layers=1,3,seed=0",
        "adapt=reft,layers=1,3,seed=1",
        "adapt=reft,layers=2,seed=0",
        "adapt=reft,layers=2,seed=1",
    ]
    assert [cell.target for cell in cells[2:]] == ["target-0", "target-1"] * 2
    assert cells[3].unlearn is not None
    assert (cells[3].unlearn.layers, cells[3].unlearn.seed, cells[3].unlearn.template) == ("1,3", 1, "Q: {prompt}\nA: ")
    assert cells[3].evaluate.data == [f"forget={memorised.forget}", f"retain={memorised.retain}"]


def test_settings_may_name_what_is_varied(memorised: Material, tmp_path: Path) -> None:
    config = settings(memorised, tmp_path, vary={"seed": "3,4"})
    cells = cells_of(SweepConfig(**(asdict(config) | {"set": config.set | {"model": "target-{seed}/model"}})), tmp_path)
    assert [cell.unlearn.model for cell in cells if cell.unlearn] == ["target-3/model", "target-4/model"]


def test_lists_in_a_file_mean_the_same_as_on_the_command_line() -> None:
    config = from_mapping(SweepConfig, {"vary": {"seed": [0, 1], "layers": ["1,3"]}, "set": {"steps": 5}}, "sweep.yaml")
    assert config.vary == {"seed": "0;1;", "layers": "1,3;"}
    assert config.set == {"steps": "5"}


def test_text_is_read_by_the_type_of_its_field() -> None:
    text = {"steps": "5", "learning_rate": "4e-3", "calibrate": "true", "forget": "a.jsonl,b.jsonl", "layers": "1,3"}
    config = from_text(UnlearnConfig, text | {"trainer": "bf16=true,optim=sgd"}, "here")
    assert (config.steps, config.learning_rate, config.calibrate) == (5, 0.004, True)
    assert (config.forget, config.layers) == (["a.jsonl", "b.jsonl"], "1,3")
    assert config.trainer == {"bf16": "true", "optim": "sgd"}
    for wrong in ({"steps": "few"}, {"calibrate": "yes please"}, {"learning_rate": "slow"}, {"stepps": "3"}):
        with pytest.raises(UserError, match="here"):
            from_text(UnlearnConfig, wrong, "here")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vary": {}}, ("--vary", "missing")),
        ({"vary": {"objective": "npo,gdd"}}, ("objective=gdd", "Did you mean 'gd'")),
        ({"vary": {"adapt": "lora", "gate": "mlp"}}, ("adapt=lora,gate=mlp", "--gate")),
        ({"vary": {"output": "a,b"}}, ("output", "--output")),
        ({"vary": {"rank": "0,1"}}, ("--rank", "0")),
        ({"evaluate": {"max_row": "3"}}, ("--evaluate", "max_row", "max_rows")),
        ({"engine": "rey"}, ("engine", "rey", "ray")),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_before_anything_runs(
    memorised: Material, tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as refused:
        sweep(settings(memorised, tmp_path / "sweep", **changes))
    for word in words:
        assert word in str(refused.value)
    assert not (tmp_path / "sweep").exists()


def test_a_directory_with_something_else_is_left_alone(memorised: Material, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="something else than a sweep"):
        sweep(settings(memorised, tmp_path))


def task(name: str, code: str, folder: Path) -> Task:
    return Task(name, (sys.executable, "-c", code), folder / f"{name}.log", 1)


def test_processes_report_every_end_and_keep_to_their_number(tmp_path: Path) -> None:
    code = f"import time, pathlib; p = pathlib.Path({str(tmp_path)!r}); n = p / str(time.time_ns()); n.touch(); "
    code += "time.sleep(0.6); print(len(list(p.glob('1*')))); n.unlink()"
    tasks = [task(f"t{i}", code, tmp_path) for i in range(5)] + [task("broken", "raise SystemExit(7)", tmp_path)]
    outcomes = {one.task.name: one.code for one in engines.get("processes").target(tasks, EngineSettings(2, 64.0))}
    assert outcomes == {**{f"t{i}": 0 for i in range(5)}, "broken": 7}
    at_once = [int((tmp_path / f"t{i}.log").read_text()) for i in range(5)]
    assert max(at_once) == 2
    assert at_once[0] == 1, "the first runs alone, as nothing is known of its memory"


def test_processes_keep_to_the_memory_budget(tmp_path: Path) -> None:
    """Each takes 300 MiB: two would need more than the budget, so they run one after the other."""
    code = "import time; x = bytearray(300 * 2**20); print(time.time()); time.sleep(0.8); print(time.time())"
    tasks = [task(f"t{i}", code, tmp_path) for i in range(3)]
    assert all(one.code == 0 for one in engines.get("processes").target(tasks, EngineSettings(3, 0.5)))
    spans = sorted(tuple(map(float, (tmp_path / f"t{i}.log").read_text().split())) for i in range(3))
    assert all(later[0] >= earlier[1] for earlier, later in zip(spans, spans[1:], strict=False))


def test_the_youngest_is_stopped_and_started_again_when_memory_runs_out(tmp_path: Path) -> None:
    """The first is small, so two of the others are let in; they grow, and one has to wait."""
    small = "import time; time.sleep(0.5)"
    grows = "import time; print('start', flush=True); time.sleep(1); x = bytearray(300 * 2**20); time.sleep(1); print('end')"
    tasks = [task("small", small, tmp_path), task("a", grows, tmp_path), task("b", grows, tmp_path)]
    outcomes = [one.code for one in engines.get("processes").target(tasks, EngineSettings(2, 0.5))]
    assert outcomes == [0, 0, 0]
    said = [(tmp_path / f"{name}.log").read_text().split() for name in ("a", "b")]
    assert said == [["start", "end"], ["start", "start", "end"]]


def test_a_sweep_measures_every_run_once_and_grows(memorised: Material, tmp_path: Path) -> None:
    sweep(settings(memorised, tmp_path / "sweep"))
    record = tmp_path / "sweep" / "runs" / "objective=npo,adapt=lora" / "evaluation" / "run.json"
    before = record.stat().st_mtime_ns
    sweep(settings(memorised, tmp_path / "sweep", vary={"objective": "npo,gd,idk", "adapt": "lora"}))
    assert record.stat().st_mtime_ns == before, "a finished run was measured again"
    found = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert [one["varied"].get("objective") for one in found] == [None, "npo", "gd", "idk"]
    assert found[0]["scores"]["forget"]["probability"] > 0.5
    assert found[1]["facts"]["peak_memory_mib"]["host"] > 100
    assert found[1]["facts"]["seconds"] > 0
    for one in found:
        assert one["facts"]["versions"]["grun"] == grun.__version__
        assert one["facts"]["machine"]["cores"] > 0
    assert len((tmp_path / "sweep" / "table.md").read_text().splitlines()) == 6


def test_runs_of_an_older_version_are_done(memorised: Material, tmp_path: Path) -> None:
    config = settings(memorised, tmp_path / "sweep", vary={"adapt": "grun"})
    config = replace(config, set=config.set | {"layers": "1,3", "topic_layer": "none", "gate": "mlp"})
    sweep(config)
    for job, names in (("unlearn", ("gate_reads", "shut_for")), ("evaluation", ("quantize", "before"))):
        file = tmp_path / "sweep" / "runs" / "adapt=grun" / job / "settings.json"
        was = {name: value for name, value in json.loads(file.read_text()).items() if name not in names}
        file.write_text(json.dumps(was))
    with pytest.raises(UserError, match="--before was True, now False"):
        cells_of(config, tmp_path / "sweep")[1].is_done  # noqa: B018
    file.write_text(json.dumps(was | {"before": False}))
    assert all(cell.is_done for cell in cells_of(config, tmp_path / "sweep"))
    config = replace(config, set=config.set | {"gate_reads": "last"})
    with pytest.raises(UserError, match="--gate-reads was prompt, now last"):
        cells_of(config, tmp_path / "sweep")[1].is_done  # noqa: B018


def test_what_was_done_with_other_settings_or_data_is_not_taken_for_this(memorised: Material, tmp_path: Path) -> None:
    forget = tmp_path / "forget.jsonl"
    forget.write_text(memorised.forget.read_text())
    config = settings(memorised, tmp_path / "sweep", vary={"adapt": "lora"})
    config = replace(config, set=config.set | {"forget": str(forget)})
    sweep(config)
    sweep(config)
    with pytest.raises(UserError, match=r"adapt=lora was done with other settings \(--steps was 4, now 5\)"):
        sweep(replace(config, set=config.set | {"steps": "5"}))
    with pytest.raises(UserError, match=r"target-0 was done with other settings \(--max-new-tokens was 4, now 9\)"):
        sweep(replace(config, evaluate=config.evaluate | {"max_new_tokens": "9"}))
    forget.write_text("\n".join(forget.read_text().splitlines()[:5]))
    with pytest.raises(UserError, match="adapt=lora was done on other data"):
        sweep(config)


def test_a_run_that_fails_is_named_and_the_others_go_on(memorised: Material, tmp_path: Path) -> None:
    vary = {"adapt": "lora", "learning_rate": "1e-3,1e30"}
    with pytest.raises(RunsFailed, match=r"1 of 3 runs failed: adapt=lora,learning_rate=1e30"):
        sweep(settings(memorised, tmp_path / "sweep", vary=vary))
    log = (tmp_path / "sweep" / "runs" / "adapt=lora,learning_rate=1e30" / "output.log").read_text()
    assert "at step" in log
    assert len(json.loads((tmp_path / "sweep" / "results.json").read_text())) == 2


def test_a_killed_sweep_takes_its_runs_with_it_and_goes_on(memorised: Material, tmp_path: Path) -> None:
    config = settings(memorised, tmp_path / "sweep")
    shared = {**config.set, "steps": "300", "evaluate_every": "20"}
    flags = [part for name in shared for part in ("--set", f"{name}={shared[name]}")]
    command = ["sweep", "--output", config.output, "--vary", "objective=gd", "--vary", "adapt=lora", *flags]
    command += ["--evaluate", "metrics=probability"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "grun", *command], env=environment, stderr=subprocess.PIPE)
    checkpoints = tmp_path / "sweep" / "runs" / "objective=gd,adapt=lora" / "unlearn" / "checkpoints"
    wait_until(lambda: any(checkpoints.glob("checkpoint-*")))
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    gone, alive = psutil.wait_procs(workers, timeout=10)
    assert gone
    assert not alive, "runs went on without their sweep"
    assert main(command) == 0
    assert not checkpoints.exists()


def wait_until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_same_grid_on_a_ray_cluster(memorised: Material, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'grun-llm[ray]'")
    for engine in ("processes", "ray"):
        config = settings(memorised, tmp_path / engine, engine=engine, vary={"objective": "npo", "adapt": "lora"})
        sweep(config)
    tables = [json.loads((tmp_path / engine / "results.json").read_text()) for engine in ("processes", "ray")]
    assert tables[0][1]["scores"] == tables[1][1]["scores"]


def test_the_table_shows_means_over_seeds_relative_to_their_targets() -> None:
    def run(varied: dict[str, str], target: str, forget: float, retain: float, **facts: Any) -> Finished:
        return Finished(varied, target, {"forget": {"probability": forget}, "retain": {"probability": retain}}, facts)

    runs = [run({}, "target-0", 1.0, 0.8), run({}, "target-1", 0.9, 0.5)]
    runs += [
        run({"adapt": "lora", "seed": str(i)}, f"target-{i}", 0.1 * i, 0.4, trainable_parameters=1200, seconds=9.0 + i)
        for i in range(2)
    ]
    markdown, _ = sweep_table(runs)
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in markdown.splitlines()]
    assert lines[0][:4] == ["adapt", "forget: probability", "forget: ROUGE-L", "kept: retain"]
    assert lines[2][:4] == ["target", "0.950 ± 0.071", "–", "1"]
    assert lines[3] == ["lora", "0.050 ± 0.071", "–", "0.650 ± 0.212", "1,200", "10 ± 1", "–"]


def test_every_line_of_the_table_has_a_name() -> None:
    """Also where seeds alone are varied."""
    runs = [Finished({}, "t", {}, {}), *(Finished({"seed": str(seed)}, "t", {}, {}) for seed in range(2))]
    names = [line.split("|")[1].strip() for line in sweep_table(runs)[0].splitlines()]
    assert names == ["run", "---", "target", "unlearned"]


def test_results_can_be_measured_without_the_target(memorised: Material, tmp_path: Path) -> None:
    assert EvaluateConfig().before
    assert (
        main(
            ["evaluate", "--no-before", "--model", str(memorised.model), "--data", f"forget={memorised.forget}"]
            + ["--output", str(tmp_path / "e"), "--device", "cpu", "--max-new-tokens", "3"]
        )
        == 0
    )
    found = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert set(found["splits"]["forget"]["metrics"]["probability"]) == {"before"}, "nothing else is there to measure"


def test_more_threads_than_a_ray_machine_has_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    task = Task("t", (sys.executable, "-c", "pass"), tmp_path / "t.log", 10_000)
    with pytest.raises(
        UserError, match="--jobs is 1, for which every run takes 10000 threads, but the largest machine"
    ):
        list(engines.get("ray").target([task], EngineSettings(1, 1.0)))
