"""A cache that cannot be used costs time and one warning; what is damaged in it counts as absent. Rights follow the umask."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grun.cli.main import main
from grun.core.process.environment import cache_directory
from grun.core.storage import cache
from grun.core.storage.cache import keep, read_kept
from support.material import Material


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_said", set())


def command(material: Material, output: Path, *more: str) -> list[str]:
    rows = ["--forget", str(material.forget), "--retain", str(material.retain)]
    small = ["--steps", "1", "--batch-size", "4", "--device", "cpu", "--objective", "gd"]
    return ["unlearn", "--model", str(material.model), *rows, *small, "--output", str(output), *more]


GATED = ("--layers", "1,3", "--topic-layer", "none")


def as_a_file(where: Path) -> Path:
    where.write_text("")
    return where


def inside_a_file(where: Path) -> Path:
    where.write_text("")
    return where / "cache"


def in_proc(where: Path) -> Path:
    return Path("/proc/grun/cache")


def a_dangling_link(where: Path) -> Path:
    where.symlink_to(where.parent / "nowhere" / "deep")
    return where


WAYS = [as_a_file, inside_a_file, in_proc, a_dangling_link]


@pytest.mark.parametrize("way", WAYS)
def test_a_cache_that_cannot_be_written_is_named_once(
    material: Material,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    way: Callable[[Path], Path],
) -> None:
    where = way(tmp_path / "bad")
    monkeypatch.setenv("GRUN_CACHE_DIR", str(where))
    assert main(command(material, tmp_path / "run", *GATED)) == 0
    said = capsys.readouterr().err
    assert said.count(f"The cache {where} cannot be written") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize("way", WAYS[:2])
def test_a_cache_folder_that_was_asked_for_is_checked_before_the_work(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str], way: Callable[[Path], Path]
) -> None:
    where = way(tmp_path / "bad")
    assert main(command(material, tmp_path / "run", "--cache-dir", str(where))) == 2
    assert f"--cache-dir '{where}'" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


DAMAGES = [b"", b"[]", b"null", b'{"a": 1}', b"\xff\xfe\x00", b"[" * 100_000, b'["only one"]', b"{}\n" * 8]


def test_damaged_files_count_as_absent(material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "prefix"
    evaluation = ["evaluate", "--model", str(material.model), "--data", f"forget={material.forget}", "--device", "cpu"]
    evaluation += ["--max-new-tokens", "2", "--no-figures"]

    def both(name: str) -> tuple[bytes, bytes]:
        job = command(material, tmp_path / f"run-{name}", *GATED, "--cache-dir", str(folder))
        assert main(job) == 0
        assert main([*evaluation, "--output", str(tmp_path / f"evaluation-{name}")]) == 0
        assert "Traceback" not in capsys.readouterr().err
        adapter = tmp_path / f"run-{name}" / "adapter" / "adapter_model.safetensors"
        return adapter.read_bytes(), (tmp_path / f"evaluation-{name}" / "rows.jsonl").read_bytes()

    first = both("first")
    files = [file for where in (cache_directory(), folder) for file in where.rglob("*") if file.is_file()]
    kinds = {file.relative_to(tmp_path).parts[1] for file in files}
    assert {"digests.json", "evidence"} <= kinds
    assert [file for file in files if file.suffix == ".safetensors"]
    for number, content in enumerate(DAMAGES[::2]):
        for file in files:
            if file.name != "lock":
                file.write_bytes(content)
        assert both(str(number)) == first


@pytest.mark.parametrize("content", DAMAGES)
def test_any_damage_is_absence(tmp_path: Path, content: bytes) -> None:
    from grun.evaluation.measuring.evidence_store import _read
    from grun.models.gates.topics.background import _kept
    from grun.training.forward_engines.prefix.store import _parts_in

    file = tmp_path / "kept"
    file.write_bytes(content)
    assert read_kept(file, _parts_in) is None
    assert read_kept(file, lambda it: _kept(it, 3, 4, 5)) is None
    assert content == b"" or read_kept(file, lambda it: _read(it, "forget", [])) is None


def test_a_full_cache_is_no_obstacle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    logging.getLogger("grun").propagate = True
    for _ in range(3):
        keep(tmp_path / "a" / "b", full)
    assert len({id(record) for record in caplog.records if "No space left on device" in record.getMessage()}) == 1
    assert list((tmp_path / "a").iterdir()) == []


@pytest.fixture(params=[0o022, 0o002, 0o077])
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_all_that_is_written_has_the_rights_that_the_umask_leaves(
    material: Material, tmp_path: Path, mask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grun.core.storage.run_directory import RunDirectory

    seen: dict[str, int] = {}

    def look(run: RunDirectory, seconds: float) -> None:
        """What is there at the end, checkpoints too."""
        for file in run.path.rglob("*"):
            seen[str(file.relative_to(run.path))] = stat.S_IMODE(file.stat().st_mode)

    monkeypatch.setattr(RunDirectory, "mark_complete", look)
    for adapt in ("grun", "full") if mask == 0o022 else ("lora",):
        more = GATED if adapt == "grun" else ("--adapt", adapt)
        assert main(command(material, tmp_path / adapt, *more, "--evaluate-every", "1")) == 0
        assert any(name.endswith("optimizer.pt") for name in seen)
        for name, mode in seen.items():
            whole = 0o777 if (tmp_path / adapt / name).is_dir() else 0o666
            assert mode == whole & ~mask, name
        seen.clear()
    for file in cache_directory().rglob("*"):
        assert stat.S_IMODE(file.stat().st_mode) == (0o777 if file.is_dir() else 0o666) & ~mask, file


def test_an_export_has_the_rights_that_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    earlier = Path(__file__).parents[1] / "golden" / "earlier"
    assert main(["request", "export", str(tmp_path / "out"), "--ledger", str(earlier / "ledger")]) == 0
    for file in (tmp_path / "out", *(tmp_path / "out").iterdir()):
        assert stat.S_IMODE(file.stat().st_mode) == (0o777 if file.is_dir() else 0o666) & ~mask, file
