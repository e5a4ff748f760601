"""What the directories of all jobs hold: names of files, and the runs inside a run."""

from __future__ import annotations

__all__ = ["CHECKPOINTS", "CONFIG", "FEATURES", "LAYOUTS", "LOCK", "RECORD", "TRAINER_STATE", "Layout"]

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

RECORD = "run.json"
CONFIG = "settings.json"
CHECKPOINTS = "checkpoints"
FEATURES = "gate_features.safetensors"  # that gates read of the forget prompts, with --keep-features
TRAINER_STATE = "trainer_state.json"  # the file of a checkpoint that is written last
LOCK = ".grun-lock"

_ADAPTER = r"adapter_config\.json|adapter_model\.(safetensors|bin)|base_model\.json|README\.md"
_MODEL = (
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template|"
    r"preprocessor_config|processor_config|model\.safetensors\.index|pytorch_model\.bin\.index)\.json|"
    r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)|(tokenizer|spiece|sentencepiece\.bpe)\.model|"
    r"(merges|vocab)\.txt|chat_template\.jinja|additional_chat_templates/[\w.-]+\.jinja|"
    r"(configuration|modeling|tokenization)_\w+\.py"
)
_TRAINER = (
    r"(training_args|optimizer|scheduler|scaler)(_\d+)?\.(pt|bin)|rng_state(_\d+)?\.pth|(trainer_state|checksums)\.json|latest|"
    r"zero_to_fp32\.py|(global_step\d+|(pytorch_model_fsdp|optimizer)_\d+)/[\w.-]+|\.tmp\w{6}"
)
# Written by the trainer and its reporters, which keep no list
_OF_THE_TRAINER = (
    rf"{CHECKPOINTS}/checkpoint-\d+/({_ADAPTER}|{_MODEL}|{_TRAINER})|tensorboard/([^/]+/)*events\.out\.tfevents\.[^/]+"
)
# Of killed processes: a file, or a folder with whatever is in it
_UNFINISHED = r"([^/]+/)*(\.[^/]+\.\d+\.tmp|\.[^/]+\.[a-z0-9_]{8}(\.tmp)?(\.old)?/.+)"
_ROWS = r"(forget|described|neighbours)\.jsonl"
_COMMON = rf"{re.escape(RECORD)}|{re.escape(CONFIG)}"


@dataclass(frozen=True)
class Layout:
    """What the directory of one job holds. Names are regular expressions of paths below it.

    Attributes:
        files: files that the job writes; earlier versions kept no list of them.
        rows: those among them that people are told to correct.
        runs: runs inside, and the command of each.
    """

    files: str
    rows: str = r"(?!)"
    runs: Mapping[str, str] = field(default_factory=dict)

    def is_known(self, name: str) -> bool:
        """True if the job writes a file of that name."""
        return re.fullmatch(f"{_COMMON}|{self.files}", name) is not None

    def holds_rows(self, name: str) -> bool:
        """True if people are told to correct this file."""
        return re.fullmatch(self.rows, name) is not None

    def run_at(self, name: str) -> str | None:
        """The command of the run in a folder; None if the job puts none there."""
        return next((command for pattern, command in self.runs.items() if re.fullmatch(pattern, name)), None)

    @staticmethod
    def is_unlisted(name: str) -> bool:
        """True for the files of a trainer and for what a killed process left, which no list names."""
        return re.fullmatch(f"{_OF_THE_TRAINER}|{_UNFINISHED}", name) is not None


LAYOUTS: Mapping[str, Layout] = {
    "unlearn": Layout(
        r"(gates|log|metrics|alternatives)\.json|"
        rf"{re.escape(FEATURES)}|topic/({_ROWS}|expansion\.json)|adapter/({_ADAPTER})|model/({_MODEL})",
        rows=rf"topic/{_ROWS}",
    ),
    "finetune": Layout(rf"(log|metrics)\.json|model/({_MODEL})"),
    "evaluate": Layout(
        r"(metrics|samples)\.json|rows\.jsonl|table\.md|figures/(forget_utility|gates|truth_ratio)\.(png|svg)|"
        r"evidence/(before|after)/[^/]+\.jsonl"
    ),
    "attack": Layout(r"attacks\.json|probes\.jsonl|table\.md|evidence/(before|after|retain_only)/[^/]+\.jsonl"),
    "calibrate": Layout(rf"calibration\.json|adapter/({_ADAPTER})"),
    "import": Layout(rf"adapter/({_ADAPTER})"),
    "expand": Layout(rf"metrics\.json|{_ROWS}", rows=_ROWS),
    "demo": Layout(
        r"metrics\.json|table\.md|answers\.md",
        runs={"target": "finetune", "grun|lora|unlearned": "unlearn"},
    ),
    "sweep": Layout(
        r"sweep\.json|results\.json|table\.md|runs/[^/]+/((unlearn|evaluate)\.json|output\.log)",
        runs={"runs/[^/]+/unlearn": "unlearn", "runs/[^/]+/evaluation": "evaluate"},
    ),
    "compare": Layout(r"comparison\.(json|md)"),
}
