"""What an attack works with: rows, names, and the probes of every attack that the rows allow."""

from __future__ import annotations

__all__ = [
    "ORDINARY",
    "PLAIN",
    "Asked",
    "Prepared",
    "answered",
    "check_needs",
    "chosen_attacks",
    "load_material",
    "prepared",
    "spread",
]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from grun.core.config.attacking import AttackConfig
from grun.core.errors import UserError
from grun.core.records import Example
from grun.core.registry import Entry
from grun.data.benchmarks import load_benchmark
from grun.data.examples import read_examples
from grun.evaluation.attacks import Attack, AttackMaterial, Probe, attacks, missing_need
from grun.evaluation.attacks.asking import asked
from grun.evaluation.attacks.names import names_of
from grun.jobs.inputs.own_answers import with_own_answers
from grun.jobs.inputs.unlearning import ordinary_beside
from grun.models.encoding.encode import encode
from grun.models.loading.loaded import LoadedModel

NOT_SERVED = {
    "answer": "writes the beginning of the answer, which no --address takes",
    "calls": "says where prompts end and fills caches, which no --address takes",
    "weights": "needs the model itself, which no --address gives",
}
PLAIN, ORDINARY = "plain", "ordinary"  # the rows to forget and the ordinary ones, asked as they are


@dataclass(frozen=True)
class Asked:
    """The probes of one attack.

    Attributes:
        name: of the attack, or `PLAIN` or `ORDINARY`.
        measures: `leak` or `damage`.
        access: what an attacker must have, as registered.
        probes: those that fit into the model.
        left_out: number of those that do not.
        best: the highest value over a row's probes counts, not their mean.
    """

    name: str
    measures: str
    access: str
    probes: tuple[Probe, ...]
    left_out: int = 0
    best: bool = False


@dataclass(frozen=True)
class Prepared:
    """All that is asked, plain questions first.

    Attributes:
        asked: probes by name.
        skipped: reason why an attack is not asked, by its name.
    """

    asked: dict[str, Asked]
    skipped: dict[str, str]

    def only(self, kept: Mapping[str, Sequence[int]]) -> Prepared:
        """The same with these probes alone, by name; what has none left is skipped."""
        asked = {
            name: replace(
                one,
                probes=tuple(one.probes[i] for i in kept[name]),
                left_out=one.left_out + len(one.probes) - len(kept[name]),
            )
            for name, one in self.asked.items()
        }
        refused = {name: "the address refuses every probe" for name, one in asked.items() if not one.probes}
        return Prepared({name: one for name, one in asked.items() if one.probes}, self.skipped | refused)

    @property
    def splits(self) -> dict[str, tuple[Example, ...]]:
        """The rows of all probes that are asked as usual, by name."""
        return {
            name: tuple(probe.example for probe in one.probes)
            for name, one in self.asked.items()
            if one.access != "calls"
        }

    @property
    def called(self) -> list[Asked]:
        """The attacks whose asker makes the calls himself."""
        return [one for one in self.asked.values() if one.access == "calls"]


def chosen_attacks(config: AttackConfig) -> list[Entry[Attack]]:
    """The attacks that were asked for, or all of them.

    Raises:
        UserError: for an unknown name, with the nearest one.
    """
    names = [name.strip() for given in config.attacks for name in given.split(",")]
    usual = [entry for entry in attacks if not entry.info.get("on_request")]
    return [attacks.get(name) for name in dict.fromkeys(names)] or usual


def load_material(config: AttackConfig) -> AttackMaterial:
    """The rows to attack with, as many as were asked for; answers may be missing still.

    Names are found in all rows, also those that are not asked.

    Raises:
        UserError: for missing or contradictory settings, or rows that cannot be read.
    """
    if config.benchmark and (config.forget or config.retain):
        raise UserError("--benchmark and --forget/--retain were both given; take the rows from one of them.")
    unknown = _read(config, config.unknown)
    if config.benchmark:
        data = load_benchmark(
            config.benchmark, data_dir=config.data_dir, seed=config.seed, options=config.benchmark_options
        )
        forget, ordinary = list(data.splits[data.forget]), list(data.splits[data.retain])
        if data.holdout and not data.members and not config.unknown:
            unknown = list(data.splits[data.holdout])
    elif config.forget:
        forget, ordinary = _read(config, config.forget), _read(config, config.retain)
    else:
        raise UserError("--forget is missing: give a file of what was to be forgotten, or --benchmark.")
    if not config.retain and not config.benchmark:
        ordinary = ordinary_beside(forget, config.seed)
    _check_unknown(forget, unknown)
    numbers, names = spread(len(forget), config.rows), names_of(forget)
    return AttackMaterial(
        tuple(forget[i] for i in numbers),
        tuple(ordinary[i] for i in spread(len(ordinary), config.rows)),
        tuple(names[i] for i in numbers),
        config.seed,
        tuple(unknown[i] for i in spread(len(unknown), config.rows)),
        _unrelated(config, forget),
    )


def _unrelated(config: AttackConfig, forget: Sequence[Example]) -> tuple[Example, ...]:
    """Ordinary rows that come with the package, if an attack that was asked for uses them."""
    if not any("unrelated" in entry.info.get("uses", ()) for entry in chosen_attacks(config)):
        return ()
    rows = ordinary_beside(forget, config.seed)
    return tuple(rows[i] for i in spread(len(rows), config.rows))


def _read(config: AttackConfig, sources: Sequence[str]) -> list[Example]:
    return [row for source in sources for row in read_examples(source, columns=config.columns)]


def _check_unknown(forget: Sequence[Example], unknown: Sequence[Example]) -> None:
    """Refuse rows that are both forgotten and unknown."""
    forgotten = {row.prompt.strip().casefold(): row.source for row in forget}
    for row in unknown:
        other = forgotten.get(row.prompt.strip().casefold())
        if other is not None:
            raise UserError(
                f"--unknown: {row.source or 'a row'} asks the same as {other or 'a row'} of --forget ('{row.prompt[:60]}'); "
                "expected rows of what no model was taught. Leave it out of one of them."
            )


def check_needs(config: AttackConfig, chosen: Sequence[Entry[Attack]], material: AttackMaterial) -> dict[str, str]:
    """Reasons why attacks cannot be asked with these rows, by name.

    Raises:
        UserError: for an attack that was asked for by name.
    """
    reasons = {}
    for entry in chosen:
        missing = missing_need(entry.info["needs"], material)
        if missing is not None:
            reasons[entry.name] = f"needs {missing}, and no row that is attacked has that"
        elif config.address is not None and entry.info["access"] in NOT_SERVED:
            reasons[entry.name] = NOT_SERVED[entry.info["access"]]
        if entry.name in reasons and config.attacks:
            raise UserError(f"--attacks: '{entry.name}' {reasons[entry.name]}.")
    return reasons


def prepared(
    config: AttackConfig, chosen: Sequence[Entry[Attack]], material: AttackMaterial, base: LoadedModel | None
) -> Prepared:
    """The probes of all attacks that are possible, those left out that do not fit into the model.

    Args:
        config: of the job.
        chosen: the attacks.
        material: the rows, with answers.
        base: the model before unlearning; None if it is not known.

    Raises:
        UserError: for an attack that was asked for by name and that the rows do not allow, or a row that is too long as it is.
    """
    skipped = check_needs(config, chosen, material)
    found = {
        PLAIN: Asked(PLAIN, "leak", "prompt", _as_they_are(material.forget, base)),
        ORDINARY: Asked(ORDINARY, "damage", "prompt", _as_they_are(material.ordinary, base)),
    }
    for entry in (one for one in chosen if one.name not in skipped and one.info["access"] != "weights"):
        probes = entry.target(material)
        fitting, reason = _fitting(probes, base)
        if fitting:
            measures, access = entry.info["measures"], entry.info["access"]
            found[entry.name] = Asked(entry.name, measures, access, fitting, len(probes) - len(fitting))
        else:
            skipped[entry.name] = reason or "no row gives a probe"
    return Prepared({name: one for name, one in found.items() if one.probes}, skipped)


def answered(material: AttackMaterial, base: LoadedModel | None) -> AttackMaterial:
    """The material with answers to all rows.

    Args:
        material: the rows.
        base: the model before unlearning, whose own answers stand where rows have none; None if it is not known: then ordinary
            rows without answers are left out.

    Raises:
        UserError: if a row to forget has none, and there is no model to ask.
    """
    if base is not None:
        sides = (material.forget, material.ordinary, material.unknown, material.unrelated)
        forget, ordinary, unknown, unrelated = (tuple(with_own_answers(base, rows)) for rows in sides)
        return replace(material, forget=forget, ordinary=ordinary, unknown=unknown, unrelated=unrelated)
    lacking = next((row for row in material.forget if not row.answer), None)
    if lacking is not None:
        raise UserError(f"{lacking.source or '--forget'}: the row has no answer; give one, or --model to answer it.")
    return replace(material, ordinary=tuple(row for row in material.ordinary if row.answer))


def _as_they_are(rows: Sequence[Example], base: LoadedModel | None) -> tuple[Probe, ...]:
    if base is not None:
        for row in rows:
            encode(row, base.tokenizer, base.template, base.max_length)
    return tuple(Probe(asked(row), i) for i, row in enumerate(rows))


def _fitting(probes: Sequence[Probe], base: LoadedModel | None) -> tuple[tuple[Probe, ...], str]:
    """The probes that the model can be asked, and why the first of the others cannot; all of them where it is not known."""
    if base is None:
        return tuple(probes), ""
    fitting, reason = [], ""
    for probe in probes:
        try:
            encode(probe.example, base.tokenizer, base.template, base.max_length)
        except UserError as error:
            reason = reason or str(error)
        else:
            fitting.append(probe)
    return tuple(fitting), reason


def spread(count: int, wanted: int) -> list[int]:
    """At most so many numbers below `count`, at equal distances."""
    return [i * count // wanted for i in range(wanted)] if wanted < count else list(range(count))
