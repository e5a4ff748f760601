"""`grun request ...`: the commands of a ledger of removal requests."""

from __future__ import annotations

__all__ = ["requests_app"]

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from grun.cli.calls import given_settings
from grun.cli.documents import request_entry
from grun.cli.help_pages import CommandList, settings_command
from grun.cli.options import command_for
from grun.cli.output import current_output, say
from grun.core.config.requests import CalibrateRequestsConfig, LedgerConfig, RequestConfig
from grun.core.errors import Interrupted, RunsFailed, UserError
from grun.core.process.terminal import one_line, printable_json

requests_app = typer.Typer(
    help="Keep a ledger of removal requests: add, list, show, suspend, resume, withdraw, calibrate, verify, export.",
    no_args_is_help=True,
    rich_markup_mode=None,
    cls=CommandList,
)
NOT_ASKED = ("output", "overwrite", "adapt")  # a ledger has directories of its own, and gated adapters only
LedgerOption = Annotated[str, typer.Option("--ledger", help="Directory of the ledger (to read, also a hub id).")]
Id = Annotated[str, typer.Argument(help="Id of the request.")]


def _late(name: str, module: str) -> Any:
    """A function or class that is imported when it is used, so that `--help` does not wait for torch."""
    return getattr(importlib.import_module(module), name)


@contextmanager
def _ledger(path: str, model: str | None = None) -> Iterator[Any]:
    """The ledger as Python has it; errors inside name flags, and say how it is when a signal stopped the command."""
    try:
        with _late("naming_flags", "grun.api.settings")():
            yield _late("Ledger", "grun.api.ledger")(path, model)
    except KeyboardInterrupt as error:
        said = (
            f"stopped; the ledger is whole, and `grun request list --ledger {path}` shows whether anything was changed."
        )
        raise Interrupted.saying(error, said) from error


def _settings(config: Any, method: Callable[..., Any]) -> dict[str, Any]:
    """Settings of a job but for those that the ledger itself was made with."""
    return {name: value for name, value in given_settings(config, method).items() if name not in ("ledger", "model")}


def _say_export(ledger: str) -> None:
    say(f"Adapters exported before stay as they are; for the new state: grun request export DIR --ledger {ledger}")


def _add(config: RequestConfig) -> Any:
    if not config.ledger:
        raise UserError("--ledger is missing: give the directory of the ledger, which is made if it is not there yet.")
    with _ledger(config.ledger, config.model) as ledger:
        added = ledger.add(**_settings(config, ledger.add))
    say(f"Request {added.id} is in force. See it: grun request show {added.id} --ledger {config.ledger}")
    _say_export(config.ledger)
    return {"command": "request add", "ledger": config.ledger, **request_entry(added)}


requests_app.command(
    "add",
    help="Learn an adapter for the rows in FILES and put it into force beside all others.",
    cls=settings_command(RequestConfig),
)(command_for(RequestConfig, _add, without=NOT_ASKED, files="forget"))


def _calibrate(config: CalibrateRequestsConfig) -> Any:
    if not config.ledger:
        raise UserError("--ledger is missing: give the directory of the ledger.")
    with _ledger(config.ledger, config.model) as ledger:
        found = ledger.calibrate(**_settings(config, ledger.calibrate))
    _say_export(config.ledger)
    return {"command": "request calibrate", "ledger": config.ledger, **found.record}


requests_app.command(
    "calibrate",
    help="Set all thresholds so that at most a share of normal prompts opens a gate, with a guarantee.",
    cls=settings_command(CalibrateRequestsConfig),
)(command_for(CalibrateRequestsConfig, _calibrate, without=("adapter", "output", "overwrite")))


@requests_app.command("list")
def list_requests(ledger: LedgerOption) -> Any:
    """Show every request and its state."""
    LedgerConfig(ledger=ledger)
    found = _late("LedgerState", "grun.requests.ledger").read(ledger, hub=True)
    plain_text = _late("plain_text", "grun.evaluation.report.table")
    table = Table("id", "state", "since", "objective", "rows", "forgotten", "why")
    for request in found.requests.values():
        forgotten = f"{request.forget_probability_before:.3f} to {request.forget_probability:.3f}"
        rows = str(request.rows)
        cells = (request.id, request.state, request.since[:10], request.objective, rows, forgotten, request.why)
        table.add_row(*map(plain_text, cells))
    with current_output().answering():
        _late("show_whole", "grun.evaluation.report.table")(table)
    if promise := found.calibration:
        words = "at most {alpha:g} of normal prompts open a gate, with confidence {sure:g}, in {dtype}"
        said = words.format(alpha=promise.alpha, sure=1 - promise.delta, dtype=promise.dtype)
        if promise.miss_bound is not None and not promise.missing(found.active):
            said += f"; at most {promise.miss_bound:.3g} of prompts to forget in other words open none"
        say(f"Calibrated {promise.when[:10]}: {said}.")
    _late("say_uncovered", "grun.requests.ledger")(found)
    return [request_entry(request) for request in found.requests.values()]


@requests_app.command("show")
def show(id: Id, ledger: LedgerOption) -> Any:
    """Show the whole record of a request, as JSON."""
    LedgerConfig(ledger=ledger, id=id)
    request = _late("LedgerState", "grun.requests.ledger").read(ledger, hub=True).get(id)
    with current_output().answering():
        typer.echo(printable_json(dataclasses.asdict(request)))
    return request


@requests_app.command("suspend")
def suspend(id: Id, ledger: LedgerOption) -> Any:
    """Take a request out of force for now; `resume` puts it back."""
    return _changed(ledger, id, "suspend")


@requests_app.command("resume")
def resume(id: Id, ledger: LedgerOption) -> Any:
    """Put a suspended request back into force."""
    return _changed(ledger, id, "resume")


@requests_app.command("withdraw")
def withdraw(id: Id, ledger: LedgerOption) -> Any:
    """Take a request out of force for good; its record stays in the ledger."""
    return _changed(ledger, id, "withdraw")


@requests_app.command("export")
def export(
    output: Annotated[str, typer.Argument(help="Directory to write the adapter to.")],
    ledger: LedgerOption,
    scale: Annotated[float | None, typer.Option(help="Factor of all edits. Default: 1.")] = None,
    reference_scale: Annotated[
        bool,
        typer.Option("--reference-scale", help="Take the factor 0.6 n + 0.6 for n requests, as the reference does."),
    ] = False,
) -> Any:
    """Write everything in force as one adapter, for `PeftModel.from_pretrained` and every command with --adapter."""
    if scale is not None and reference_scale:
        raise UserError("--scale and --reference-scale were both given; choose one of them.")
    with _ledger(ledger) as opened:
        written = opened.export(output, scale=scale, reference_scale=reference_scale)
    say(f"The adapter is in {written}.")
    return {"command": "request export", "ledger": ledger, "adapter": Path(written).absolute()}


@requests_app.command("verify")
def verify(
    ledger: LedgerOption,
    model: Annotated[str | None, typer.Option(help="Base model, to compare with the ledger's.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="The rows of a request, as ID=FILE. May be given several times.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device to run on.")] = "auto",
    trust_remote_code: Annotated[bool, typer.Option(help="Run model code that comes with a hub repository.")] = False,
) -> Any:
    """Check adapters against their checksums and data against fingerprints, and measure whether it is still forgotten."""
    LedgerConfig(data=data or [])
    sources: dict[str, list[str]] = {}
    for text in data or ():
        id, equals, file = text.partition("=")
        if not equals or not file:
            raise UserError(f"--data is '{text}', expected ID=FILE.")
        sources.setdefault(id, []).append(file)
    with _ledger(ledger, model) as opened:
        found = opened.verify(sources, device=device, trust_remote_code=trust_remote_code)
    with current_output().answering():
        for one in found.values():
            typer.echo(one_line(f"{one.id}: {one}"))
        if not found:
            typer.echo("There is nothing to verify: every request is withdrawn.")
    document = {"command": "request verify", "ledger": ledger, "requests": list(found.values())}
    wrong = sum(not one.ok for one in found.values())
    if wrong:
        current_output().kept.update(document)
        raise RunsFailed(f"{wrong} of {len(found)} requests in --ledger '{Path(ledger)}' are not as they should be.")
    return document


def _changed(ledger: str, id: str, what: str) -> Any:
    with _ledger(ledger) as opened:
        changed = getattr(opened, what)(id)
    say(f"Request {id} is {changed.state}.")
    _say_export(ledger)
    return {"command": f"request {what}", "ledger": ledger, **request_entry(changed)}
