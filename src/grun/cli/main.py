"""The command line: every command is a job with its configuration; wrong input is one line and exit code 2."""

from __future__ import annotations

__all__ = ["app", "main"]

import importlib
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import grun
from grun.cli.calls import called
from grun.cli.help_pages import WIDEST, CommandList, settings_command
from grun.cli.options import command_for
from grun.cli.program import process
from grun.cli.requests import requests_app
from grun.cli.signals import Listener, stopped
from grun.core.choices import KINDS, declared, has_extensions
from grun.core.config.jobs import (
    ChatConfig,
    DemoConfig,
    EvaluateConfig,
    ExpandConfig,
    FinetuneConfig,
    SweepConfig,
    UnlearnConfig,
)
from grun.core.config.requests import CalibrateConfig, ImportConfig
from grun.core.errors import RunsFailed, TrainingDiverged, UserError

app = typer.Typer(
    help="Make a language model forget chosen data, without touching its weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    cls=CommandList,
    context_settings={"max_content_width": WIDEST},
)
FAILED, WRONG_INPUT, DIVERGED = 1, 2, 3
UsageError: Any = typer.BadParameter.__base__  # typer brings its own copy of click, whose names are private


def _job(module: str, name: str, after: str) -> Callable[[Any], None]:
    """A job that is imported when it runs, so that `--help` does not wait for torch."""

    def run(config: Any) -> None:
        job = getattr(importlib.import_module(module), name)
        result = job(config)
        if after and _is_first_process():
            typer.echo(after.format(result=result, config=config))

    return run


def _function(name: str, product: str, after: str, **more: Any) -> Callable[[Any], None]:
    """A function for Python as a job; `product` is what its result is asked for, to be named afterwards."""

    def run(config: Any) -> None:
        result = getattr(called(name, config, **more), product)
        if _is_first_process():
            typer.echo(after.format(result=result, config=config))

    return run


def _add(name: str, config_class: type, job: Callable[[Any], None], help: str) -> None:
    app.command(name, help=help, cls=settings_command(config_class))(command_for(config_class, job))


_add(
    "finetune",
    FinetuneConfig,
    _function("finetune", "model", "The model is in {result}. Make it forget: grun unlearn --model {result} ..."),
    "Make a target model: fine-tune a model, or train a small one and its tokenizer from scratch.",
)
_add(
    "unlearn",
    UnlearnConfig,
    _function(
        "unlearn",
        "adapter",
        "The result is in {result}. Measure it: grun evaluate --model {config.model} --adapter {result} ...",
    ),
    "Learn an adapter that makes a model forget the rows in --forget and keep those in --retain. The same command again "
    "resumes an interrupted run.",
)
_add(
    "expand",
    ExpandConfig,
    _function(
        "expand", "path", "The rows are in {result}. Read and correct them, then: grun unlearn --forget FILE ..."
    ),
    "Write rows about a topic from its name: questions, descriptions and neighbouring topics, to be read and corrected.",
)
_add(
    "evaluate",
    EvaluateConfig,
    _function(
        "evaluate",
        "path",
        "Everything is in {result}: metrics.json, rows.jsonl (every answer) and table.md.",
        show=True,
    ),
    "Measure a model before and after, on every split of a benchmark or of your own files.",
)
_add(
    "calibrate",
    CalibrateConfig,
    _function("calibrate", "adapter", "The adapter with its new thresholds is in {result}."),
    "Set the thresholds of gates so that at most a share of normal prompts opens any of them, with a guarantee.",
)
_add(
    "import",
    ImportConfig,
    _job("grun.jobs.import_reference", "import_reference", "The adapter is in {result}."),
    "Convert an adapter that the reference implementation of GRUN has trained.",
)
_add(
    "sweep",
    SweepConfig,
    _job("grun.jobs.sweep", "sweep", "Everything is in {result}: table.md, results.json, and every run."),
    "Compare objectives, adaptations, seeds or any other setting of unlearn: a grid of runs in parallel, resumable, and "
    "one table.",
)
_add(
    "chat",
    ChatConfig,
    _job("grun.jobs.chat", "chat", ""),
    "Ask the model and the unlearned model side by side, and see how far the gates open.",
)
_add(
    "demo",
    DemoConfig,
    _job("grun.jobs.demos.demo", "demo", ""),
    "See it work: a real model forgets a topic, and answers questions that unlearning never saw, before and after.",
)


app.add_typer(requests_app, name="request")


@app.command("compare")
def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Directories of evaluations; the others are compared with the first.")
    ],
    metrics: Annotated[list[str] | None, typer.Option(help="Only these metrics. May be given several times.")] = None,
    splits: Annotated[list[str] | None, typer.Option(help="Only these splits. May be given several times.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write comparison.json and comparison.md to.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
) -> None:
    """Put evaluations side by side, with the differences and their 95 % bootstrap intervals."""
    compare_runs = importlib.import_module("grun.api.jobs").compare
    with importlib.import_module("grun.api.settings").naming_flags():
        compare_runs(runs, metrics=metrics or (), splits=splits or (), output=output, seed=seed, show=True)


@app.command(
    "lm-eval",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    help="Run lm-evaluation-harness with a model and its adapter: --model_args pretrained=MODEL,adapter=ADAPTER --tasks ...",
)
def lm_eval(context: typer.Context) -> None:
    """Pass everything on to the harness's own command line."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("grun lm-eval needs lm-evaluation-harness: pip install 'grun-llm[harness]'.")
    importlib.import_module("grun.evaluation.lm_eval_harness").run_harness(context.args)


@app.command("list")
def list_leaves() -> None:
    """Show what can be chosen: objectives, adaptations, benchmarks and metrics."""
    for registry, kind in KINDS.items():
        typer.echo(f"{kind.title} ({kind.flag}):")
        found = declared(registry)
        if has_extensions(registry):  # their docstrings are known once they are imported
            entries = getattr(importlib.import_module(kind.package), registry)
            found = {entry.name: entry.summary for entry in entries}
        width = max(map(len, found))
        for name, summary in found.items():
            typer.echo(f"  {name:<{width}}  {summary}")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"grun {grun.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the command line without the program's name; None for that of the process, which is then this command's
            alone (see `process`).

    Returns:
        0, or 1 if runs of a sweep failed, 2 for wrong input, 3 for training that diverged, 128 and the number of the signal
        for an interruption (130 for Ctrl-C). Other errors are raised.
    """
    if arguments is None:
        return process(lambda: main(sys.argv[1:]))
    _quiet()
    try:
        with Listener.listening():
            return _invoked(arguments)
    except KeyboardInterrupt as error:
        return stopped(error)
    except UserError as error:
        return _failed(str(error), WRONG_INPUT)
    except UsageError as error:
        return _failed(error.format_message(), WRONG_INPUT)
    except (TrainingDiverged, RunsFailed) as error:
        return _failed(str(error), DIVERGED if isinstance(error, TrainingDiverged) else FAILED)


def _invoked(arguments: Sequence[str]) -> int:
    """Run a command as the option parser does, which would make signals and streams that fail its own affair."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("grun", list(arguments)) as context:
            return int(command.invoke(context) or 0)
    except typer.Exit as end:
        return int(end.exit_code)


def _is_first_process() -> bool:
    """True in the first process of `accelerate launch` or `torchrun`, and in a process without them."""
    return os.environ.get("RANK", "0") == "0"


def _failed(message: str, code: int) -> int:
    typer.echo("grun: " + " ".join(message.split()), err=True)
    return code


def _quiet() -> None:
    """Show own messages as plain lines on standard error, and no messages of libraries about themselves."""
    logger = logging.getLogger("grun")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("grun: %(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if _is_first_process() else logging.ERROR)
    logger.propagate = False
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports every cast and every missing kernel
    for name in ("TRANSFORMERS_VERBOSITY", "HF_DATASETS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|transformers|peft")
