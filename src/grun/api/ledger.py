"""`grun.Ledger`: a ledger of removal requests for one base model."""

from __future__ import annotations

__all__ = ["Ledger"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grun.api.documentation import with_settings
from grun.api.objects import ModelLike, RowsLike, Standing, as_it_was, named_model, named_rows
from grun.api.results import html_table, number
from grun.api.settings import from_python, naming_parameters
from grun.core.config.requests import CalibrateRequestsConfig, LedgerConfig, RequestConfig
from grun.core.errors import UserError
from grun.core.process.libraries import quiet_libraries

if TYPE_CHECKING:
    from grun.requests.ledger_record import LedgerCalibration, Request
    from grun.requests.verification import Verification


class Ledger:
    """Removal requests of one base model: added, suspended, resumed, withdrawn, calibrated, verified and exported.

    Nothing is kept in memory: every method reads the directory as it is now, so several processes may use one ledger.

    Args:
        path: directory of the ledger, made by the first `add`; to read, also a hub id.
        model: the base model, as `grun.unlearn` takes it. A loaded model must have the weights of the folder or hub id that
            it was loaded from: a ledger outlives the process. Only methods that run the model need it.
        tokenizer: of a loaded model.
    """

    def __init__(self, path: str | Path, model: ModelLike | None = None, *, tokenizer: Any = None) -> None:
        if not str(path):
            raise UserError("path is empty, expected the directory of the ledger.")
        with naming_parameters():
            LedgerConfig(ledger=str(path))
        self._name = str(path)
        self.path = Path(path)
        self._model, self._tokenizer = model, tokenizer

    @property
    def requests(self) -> dict[str, Request]:
        """All requests by id, in the order in which they were added; none where there is no ledger yet.

        Raises:
            UserError: for a ledger that is damaged, or of a newer version.
        """
        from grun.requests.ledger import LedgerState

        with naming_parameters():
            return dict(LedgerState.read_or_new(self.path).requests)

    @property
    def active(self) -> list[str]:
        """Ids of the requests in force."""
        return [id for id, request in self.requests.items() if request.state == "active"]

    @with_settings(RequestConfig)
    @quiet_libraries()
    def add(
        self,
        forget: RowsLike = None,
        retain: RowsLike = None,
        *,
        neighbours: RowsLike = None,
        id: str | None = None,
        why: str = "",
        **settings: Any,
    ) -> Request:
        """Learn an adapter for the rows of a new request and put it into force beside all others.

        Args:
            forget: rows to forget, as `grun.unlearn` takes them.
            retain: rows to keep, likewise; None for ordinary prompts that come with the package.
            neighbours: prompts about close topics that must stay, likewise; answers are not needed.
            id: of the request; None for the next number.
            why: in your own words.
            **settings: every other setting of `grun request add`, by its name.

        Raises:
            UserError: for wrong input, another base model than the ledger's, or rows that a request was made for already.
        """
        from grun.requests.operations import add

        with naming_parameters():
            standing = Standing()
            values = {
                "model": self._named_model(standing),
                "ledger": self._name,
                "forget": named_rows(forget, "forget", standing),
                "retain": named_rows(retain, "retain", standing),
                "neighbours": named_rows(neighbours, "neighbours", standing),
                "id": id,
                "why": why,
                **settings,
            }
            config = from_python(RequestConfig, values, "grun.Ledger.add")
            with as_it_was(standing):
                added = add(config)
        return self.requests[added]

    def suspend(self, id: str) -> Request:
        """Take a request out of force, for a while."""
        return self._change(id, "suspend")

    def resume(self, id: str) -> Request:
        """Put a suspended request back into force."""
        return self._change(id, "resume")

    def withdraw(self, id: str) -> Request:
        """Take a request back for good."""
        return self._change(id, "withdraw")

    @with_settings(CalibrateRequestsConfig)
    @quiet_libraries()
    def calibrate(
        self, normal: RowsLike, *, forget: RowsLike = None, paraphrases: RowsLike = None, **settings: Any
    ) -> LedgerCalibration:
        """Set all thresholds so that at most a share `alpha` of normal prompts opens any gate, with a guarantee.

        Args:
            normal: normal prompts that unlearning has not seen, as `grun.calibrate` takes them.
            forget: prompts to open for: how many do is reported.
            paraphrases: prompts to forget in other words, as `grun.calibrate` takes them.
            **settings: every other setting of `grun request calibrate`, by its name.

        Returns:
            The guarantee, for which requests it holds, and `record`, the whole entry of the ledger with shares and intervals.

        Raises:
            UserError: for too few prompts, another base model, if no request is active, or both bounds cannot be kept.
        """
        from grun.requests.operations import calibrate_active

        with naming_parameters():
            standing = Standing()
            values = {
                "model": self._named_model(standing),
                "ledger": self._name,
                "normal": named_rows(normal, "normal", standing),
                "forget": named_rows(forget, "forget", standing),
                "paraphrases": named_rows(paraphrases, "paraphrases", standing),
                **settings,
            }
            config = from_python(CalibrateRequestsConfig, values, "grun.Ledger.calibrate")
            with as_it_was(standing):
                return calibrate_active(config)

    @quiet_libraries()
    def verify(
        self, data: Mapping[str, RowsLike] | None = None, *, device: str = "auto", trust_remote_code: bool = False
    ) -> dict[str, Verification]:
        """Check adapters against their checksums, rows against fingerprints, and measure that it is still forgotten.

        Args:
            data: rows by request, where the ledger has not kept them.
            device: to run on.
            trust_remote_code: run model code that comes with a hub repository.

        Returns:
            One record per request that was not withdrawn, by id.

        Raises:
            UserError: for another base model, an unknown request, or rows that cannot be read.
        """
        from grun.requests.verification import verify

        with naming_parameters():
            from_python(LedgerConfig, {"device": device}, "grun.Ledger.verify")
            standing = Standing()
            model = None if self._model is None else self._named_model(standing)
            sources = {id: named_rows(rows, f"data[{id}]", standing) for id, rows in (data or {}).items()}
            with as_it_was(standing):
                return verify(self._name, model, sources, device=device, trust_remote_code=trust_remote_code)

    @quiet_libraries()
    def export(self, output: str | Path, *, scale: float | None = None, reference_scale: bool = False) -> Path:
        """Write everything in force as one adapter directory, which `PeftModel.from_pretrained` loads.

        Args:
            output: directory to write.
            scale: factor of all edits; None for 1.
            reference_scale: take 0.6 n + 0.6 for n requests, as the reference implementation does.

        Raises:
            UserError: if nothing is in force, or an adapter is damaged.
        """
        from grun.requests.operations import export

        with naming_parameters():
            from_python(LedgerConfig, {"output": output, "scale": scale}, "grun.Ledger.export")
            return export(self._name, str(output), scale, reference_scale)

    def _named_model(self, standing: Standing) -> str:
        if self._model is None:
            raise UserError("model is missing: make the ledger with it, grun.Ledger(path, model).")
        return named_model(self._model, self._tokenizer, standing)

    def _change(self, id: str, what: str) -> Request:
        from grun.requests.ledger import change

        with naming_parameters():
            from_python(LedgerConfig, {"id": id}, "grun.Ledger")
            return change(self._name, id, what)

    def __repr__(self) -> str:
        return f"grun.Ledger({str(self.path)!r}: {len(self.active)} of {len(self.requests)} requests in force)"

    def _repr_html_(self) -> str:
        return html_table(("id", "state", "since", "rows", "forget probability", "why"), self._rows(), repr(self))

    def _rows(self) -> Sequence[Sequence[str]]:
        return [
            (
                request.id,
                request.state,
                request.history[-1]["when"],
                str(request.data["rows"]),
                number(request.metrics["in_force"]["new"]["probability"]),
                request.why,
            )
            for request in self.requests.values()
        ]
