"""`grun.attack`, and its result."""

from __future__ import annotations

__all__ = ["AttackResult", "attack"]

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from grun.api.documentation import with_settings
from grun.api.objects import ModelLike, RowsLike, Standing, as_it_was, named_model, named_rows
from grun.api.results import RunResult
from grun.api.settings import from_python, naming_parameters
from grun.core.config.attacking import AttackConfig
from grun.core.process.libraries import quiet_libraries


class AttackResult(RunResult):
    """What attacks found, with the model before unlearning and after it side by side."""

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Figures of all attacks, the worst case, and what was left out (`attacks.json`)."""
        return self._read("attacks.json")

    def value(self, attack: str, metric: str = "probability", subject: str | None = None) -> float | None:
        """One figure; None where it could not be computed (`metrics` says why).

        Args:
            attack: name of the attack, `plain`, `ordinary` or `worst_case`.
            metric: `gate_open`, `probability`, `rouge_l_recall`, `extraction_strength`, or `kept` of a question for damage.
            subject: `before`, `after` or `retain_only`; None for `after` where there is one.

        Raises:
            KeyError: if there is no such attack, metric or subject.
        """
        found = self.metrics["worst_case"] if attack == "worst_case" else self._of(attack)["figures"]
        own = found[metric]
        return own[subject or ("after" if "after" in own else "before")]["value"]

    def _of(self, attack: str) -> dict[str, Any]:
        own: dict[str, Any] = self.metrics["attacks"] | {name: self.metrics[name] for name in ("plain", "ordinary")}
        return own[attack]

    @property
    def table(self) -> str:
        """The table as Markdown."""
        return (self.path / "table.md").read_text(encoding="utf-8")

    def __str__(self) -> str:
        return self.table


@with_settings(AttackConfig)
@quiet_libraries()
def attack(
    model: ModelLike | None = None,
    forget: RowsLike = None,
    retain: RowsLike = None,
    *,
    adapter: str | Path | RunResult | None = None,
    retain_only: ModelLike | None = None,
    tokenizer: Any = None,
    show: bool = False,
    **settings: Any,
) -> AttackResult:
    """Ask in many ways for what was forgotten, and for ordinary things beside it.

    Args:
        model: hub id, path, loaded model, or pair of a loaded model and its tokenizer. A loaded `peft.PeftModel` is measured
            with its adapter and without. None with `address=...`, of a model whose target is not at hand.
        forget: rows that were to be forgotten, as `grun.unlearn` takes them.
        retain: ordinary rows, likewise; None for ordinary prompts that come with the package.
        adapter: directory of an adapter, or the result of `grun.unlearn`.
        retain_only: model that was trained without the rows to forget, as `model`.
        tokenizer: of a loaded model; None for the one in the folder that the model was loaded from.
        show: print the table.
        **settings: every other setting of `grun attack`, by its name.

    Raises:
        UserError: for wrong input; names the parameter.
    """
    from grun.jobs.attacks.attack import attack as job

    with naming_parameters():
        standing = Standing()
        values = {
            "model": "" if model is None else named_model(model, tokenizer, standing),
            "forget": named_rows(forget, "forget", standing),
            "retain": named_rows(retain, "retain", standing),
            "adapter": str(adapter.path if isinstance(adapter, RunResult) else adapter)
            if adapter is not None
            else None,
            "retain_only": None if retain_only is None else named_model(retain_only, None, standing),
            **settings,
        }
        config = from_python(AttackConfig, values, "grun.attack")
        with as_it_was(standing), _in_force(config) as folder:
            return AttackResult(job(config, adapter=folder, show=show))


@contextmanager
def _in_force(config: AttackConfig) -> Iterator[Path | None]:
    """A directory of the adapter with everything in force in the ledger that the settings name; None if they name none."""
    if config.ledger is None or config.adapter is not None or config.address is not None:  # the job refuses both
        yield None
        return
    from grun.requests.operations import export

    with TemporaryDirectory(prefix="grun-") as folder:
        yield export(config.ledger, str(Path(folder) / "adapter"))
