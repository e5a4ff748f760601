"""Provenance: versions, the commit of the package's own files, and the machine; it never stops anything."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import grun
from grun.core import provenance as module
from grun.core.provenance import PROVENANCE, provenance

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
SHOW = "import json; from grun.core.provenance import provenance; print(json.dumps(provenance()))"


def git(folder: Path, *arguments: str) -> str:
    settings = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *settings, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def committed(folder: Path) -> str:
    """Make a repository of a folder; its commit."""
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "first")
    return git(folder, "rev-parse", "HEAD")


def copied(target: Path) -> Path:
    shutil.copytree(Path(grun.__file__).parent, target, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def shown(package: Path, cwd: Path, **environment: str) -> dict:
    """The provenance in a process that runs a copy of the package."""
    settings = {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", SHOW], env=settings, cwd=cwd, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def test_versions_and_machine_are_there() -> None:
    found = json.loads(json.dumps(provenance()))
    assert {"grun", "python", "torch", "transformers", "peft", "accelerate"} <= found["versions"].keys()
    assert found["versions"]["grun"] == grun.__version__
    assert found["machine"]["cores"] == os.cpu_count()
    assert found["machine"]["memory_gib"] > 0
    assert found["machine"]["platform"]
    assert found["machine"]["processor"]
    assert found["machine"]["accelerators"] is not None
    assert found.keys() <= set(PROVENANCE)


def test_a_record_may_be_changed_without_changing_the_next() -> None:
    first = provenance()
    first["versions"]["grun"] = first["machine"]["cores"] = None
    assert provenance() != first


@needs_git
def test_the_commit_is_that_of_the_package(tmp_path: Path) -> None:
    package = copied(tmp_path / "checkout" / "src" / "grun")
    commit = committed(tmp_path / "checkout")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    committed(tmp_path / "other")
    index = (tmp_path / "checkout" / ".git" / "index").read_bytes()
    elsewhere = str(tmp_path / "other" / ".git")
    assert shown(package, tmp_path / "other", GIT_DIR=elsewhere)["commit"] == {"id": commit, "changed": False}
    assert (tmp_path / "checkout" / ".git" / "index").read_bytes() == index
    (tmp_path / "checkout" / "notes.md").touch()
    assert not shown(package, tmp_path)["commit"]["changed"], "only the package's own files count"
    (package / "training" / "objectives" / "margin.py").touch()
    assert shown(package, tmp_path)["commit"] == {"id": commit, "changed": True}


@needs_git
def test_the_repository_around_an_installed_package_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    (tmp_path / ".gitignore").write_text("environment\n")
    committed(tmp_path)
    ignored, untracked = (copied(tmp_path / name / "grun") for name in ("environment", "libraries"))
    for package in (ignored, untracked):
        assert "commit" not in shown(package, tmp_path)


def test_without_git_or_a_repository_there_is_no_commit(tmp_path: Path) -> None:
    package = copied(tmp_path / "grun")
    (tmp_path / "empty").mkdir()
    assert "commit" not in shown(package, tmp_path)
    assert shown(package, tmp_path, PATH=str(tmp_path / "empty"))["versions"]["grun"] == grun.__version__


def test_git_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(*arguments: str) -> str:
        asked.append(arguments[0])
        return "# branch.oid 0123abcd\n# branch.head main\n1 .M N... grun/__init__.py\n"

    monkeypatch.setattr(module, "_git", answer)
    module._commit.cache_clear()
    try:
        assert [provenance()["commit"] for _ in range(3)] == [{"id": "0123abcd", "changed": True}] * 3
        assert asked == ["ls-files", "status"]
    finally:
        module._commit.cache_clear()


def test_accelerators_are_named_once_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
    assert provenance()["machine"]["accelerators"] == ["GPU 0", "GPU 1"]
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: SimpleNamespace(type="mps"))
    assert provenance()["machine"]["accelerators"] == ["mps", "mps"]

    def broken() -> bool:
        raise RuntimeError("the driver is too old")

    monkeypatch.setattr(torch.accelerator, "is_available", broken)
    assert "accelerators" not in provenance()["machine"]
    monkeypatch.delitem(sys.modules, "torch")
    assert "accelerators" not in provenance()["machine"]
