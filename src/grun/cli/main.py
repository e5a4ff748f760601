"""The command line: every command is a job with its configuration; wrong input is one line and exit code 2."""

from __future__ import annotations

__all__ = ["app", "main"]

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import grun
from grun.cli.calls import called
from grun.cli.documents import leaves_document, run_document
from grun.cli.failures import FAILED, kind_of, told
from grun.cli.help_pages import WIDEST, CommandList, settings_command
from grun.cli.options import command_for
from grun.cli.output import MessageHandler, add_output_options, current_output, new_output, say
from grun.cli.process.messages import quiet
from grun.cli.process.program import process
from grun.cli.process.signals import Listener, stopped
from grun.cli.requests import requests_app
from grun.core.choices import KINDS
from grun.core.config.attacking import AttackConfig
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
from grun.core.errors import UserError
from grun.core.process.environment import is_first_process
from grun.core.process.libraries import quiet_libraries
from grun.core.process.terminal import one_line
from grun.core.process.threads import automatic_threads, wait_passively

app = typer.Typer(
    help="Make a language model forget chosen data, without touching its weights.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    cls=CommandList,
    context_settings={"max_content_width": WIDEST},
)
PROGRAM = "grun"


def _job(name: str, module: str, after: str, *, within: str = "") -> Callable[[Any], Any]:
    """A job that is imported when it runs, so that `--help` does not wait for torch.

    Args:
        name: of the command.
        module: of the job, whose last name the function has; it returns its directory, or `within` it.
        after: words to say afterwards.
        within: name of what is returned, if it is not the directory itself.
    """

    def run(config: Any) -> Any:
        with current_output().reporting():
            with quiet_libraries():
                result = getattr(importlib.import_module(module), module.rpartition(".")[2])(config)
            if after and is_first_process():
                say(after.format(result=result, config=config))
        if not current_output().json:
            return None
        return run_document(name, result.parent if within else result)

    return run


def _function(name: str, product: str, after: str, **more: Any) -> Callable[[Any], Any]:
    """A function for Python as a job; `product` is what its result is asked for, to be named afterwards."""

    def run(config: Any) -> Any:
        with current_output().reporting():
            found = called(name, config, **more)
            if is_first_process():
                say(after.format(result=getattr(found, product), config=config))
        return run_document(name, found.path) if current_output().json else None

    return run


def _chat(config: Any) -> None:
    with quiet_libraries():
        chat = importlib.import_module("grun.jobs.demos.chat").chat
        chat(config, partial(current_output().document, one_of_several=True) if current_output().json else None)


def _add(name: str, config_class: type, job: Callable[[Any], Any], help: str) -> None:
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
    "attack",
    AttackConfig,
    _function(
        "attack",
        "path",
        "Everything is in {result}: attacks.json, probes.jsonl (every answer) and table.md.",
        show=True,
    ),
    "Ask in many ways for what was forgotten, and for ordinary things beside it, before and after.",
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
    _job("import", "grun.jobs.import_reference", "The adapter is in {result}.", within="adapter"),
    "Convert an adapter that the reference implementation of GRUN has trained.",
)
_add(
    "sweep",
    SweepConfig,
    _job("sweep", "grun.jobs.sweep", "Everything is in {result}: table.md, results.json, and every run."),
    "Compare objectives, adaptations, seeds or any other setting of unlearn: a grid of runs in parallel, resumable, and "
    "one table.",
)
_add(
    "chat",
    ChatConfig,
    _chat,
    "Ask the model and the unlearned model side by side, and see how far the gates open.",
)
_add(
    "demo",
    DemoConfig,
    _job("demo", "grun.jobs.demos.demo", ""),
    "See it work: a real model forgets a topic, and answers questions that unlearning never saw, before and after.",
)


app.add_typer(requests_app, name="request")


@app.command("compare")
def compare(
    runs: Annotated[
        list[str], typer.Argument(help="Directories of evaluations; the others are compared with the first.")
    ],
    metrics: Annotated[list[str] | None, typer.Option(help="Only these metrics. May be given several times.")] = None,
    splits: Annotated[list[str] | None, typer.Option(help="Only these splits. May be given several times.")] = None,
    output: Annotated[str | None, typer.Option(help="Folder to write comparison.json and comparison.md to.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
) -> Any:
    """Put evaluations side by side, with the differences and their 95 % bootstrap intervals."""
    compare_runs = importlib.import_module("grun.api.jobs").compare
    with current_output().answering(), importlib.import_module("grun.api.settings").naming_flags():
        found = compare_runs(runs, metrics=metrics or (), splits=splits or (), output=output, seed=seed, show=True)
    return {"command": "compare", "runs": runs, "output": output and Path(output).absolute(), "found": found.found}


@app.command(
    "lm-eval",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    help="Run lm-evaluation-harness with a model and its adapter: --model_args pretrained=MODEL,adapter=ADAPTER --tasks ...",
)
def lm_eval(context: typer.Context) -> None:
    """Pass everything on to the harness's own command line."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("grun lm-eval needs lm-evaluation-harness: pip install 'grun-llm[harness]'.")
    if current_output().json:
        raise UserError(
            "--json does not work with lm-eval, which prints its own table; it writes JSON to --output_path."
        )
    importlib.import_module("grun.evaluation.lm_eval_harness").run_harness(context.args)


@app.command("list")
def list_leaves() -> Any:
    """Show what can be chosen: objectives, adaptations, benchmarks, metrics and attacks."""
    document = leaves_document()
    with current_output().answering():
        for registry, found in document.items():
            typer.echo(f"{KINDS[registry].title} ({KINDS[registry].flag}):")
            width = max(map(len, found))
            for name, summary in found.items():
                typer.echo(f"  {name:<{width}}  {summary}")
    return document


def _version(wanted: bool) -> None:
    if wanted:
        if current_output().json:
            current_output().document({"version": grun.__version__})
        else:
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
        0, or 1 if runs of a sweep failed or a disk is full, 2 for wrong input, 3 for training that diverged, 128 and the
        number of the signal for an interruption (130 for Ctrl-C). Other errors are raised.
    """
    if arguments is None:
        return process(lambda: main(sys.argv[1:]), sys.argv[1:])
    given = list(arguments)
    quiet(MessageHandler())
    wait_passively()
    with new_output(given), automatic_threads():
        try:
            with Listener.listening():
                return _invoked(given)
        except KeyboardInterrupt as error:
            code = stopped(error)
            current_output().failure("interrupted", str(error), code)
            return code
        except Exception as error:
            if (said := told(error)) is None:
                current_output().failure(type(error).__name__, str(error), FAILED)
                raise
            return _failed(*said)


def _invoked(arguments: Sequence[str]) -> int:
    """Run a command as the option parser does, which would make signals and streams that fail its own affair."""
    command = typer.main.get_command(app)
    add_output_options(command)
    command._main_shell_completion({}, PROGRAM)  # ends the process if a shell asks
    try:
        with current_output().page(arguments), command.make_context(PROGRAM, list(arguments)) as context:
            result = command.invoke(context)
    except typer.Exit as end:
        return int(end.exit_code)
    if isinstance(result, int):
        return result
    if current_output().json and result is not None and is_first_process():
        current_output().document(result)
    return 0


def _failed(message: str, code: int) -> int:
    typer.echo("grun: " + one_line(message), err=True)
    current_output().failure(kind_of(code), message, code)
    return code
