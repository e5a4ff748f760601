"""Adapters in lm-evaluation-harness: log-likelihoods of continuations of any length, against a direct computation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from grun.core.errors import UserError
from grun.models.encoding.batching import collate
from grun.models.encoding.encode import Encoded
from grun.models.forward import side_signals
from support.adapter_kit import attach
from support.tiny_models import tiny_model, tiny_tokenizer

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

import lm_eval  # noqa: E402
from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from grun.evaluation.lm_eval_harness import GrunLM  # noqa: E402

TOKENIZER = tiny_tokenizer()
CONTEXTS = ("Question: Who wrote the book? \nAnswer:", "The author lives", "Question: Where was Ada born? \nAnswer: ")
CONTINUATIONS = (" Ada", " Ada Lundgren wrote the book near the sea.", " In Malmö, in a small house.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    tiny_model().save_pretrained(folder / "target")
    TOKENIZER.save_pretrained(folder / "target")
    attach(tiny_model(), gate_layer=1).save_pretrained(folder / "run" / "adapter")
    return folder


@pytest.fixture(scope="module")
def adapted(folder: Path) -> GrunLM:
    return GrunLM(str(folder / "target"), adapter=str(folder / "run"), device="cpu", tokens_per_batch=100)


def asked(kind: str = "loglikelihood") -> list[Instance]:
    pairs = [(context, continuation) for context in CONTEXTS for continuation in CONTINUATIONS]
    return [Instance(request_type=kind, doc={}, arguments=pair, idx=i) for i, pair in enumerate(pairs)]


def directly(model: nn.Module, lm: HFLM, context: str, continuation: str) -> tuple[float, bool]:
    """One row, one forward call, the adapter told where the prompt ends."""
    spaces = len(context) - len(context.rstrip())
    context, continuation = context.rstrip(), context[len(context) - spaces :] + continuation
    prompt = lm.tok_encode(context)
    whole = lm.tok_encode(context + continuation)
    row = Encoded((*prompt, *whole[len(prompt) :]), len(prompt), 0)
    with torch.no_grad():
        found = side_signals(model, collate([row], 3), wanted=("logps", "logits"))
    greedy = bool((found.logits_NV.argmax(1) == found.targets_N).all())
    return float(found.logps_N.sum()), greedy


def test_multi_token_log_likelihoods_equal_a_direct_computation(folder: Path, adapted: GrunLM) -> None:
    model = adapted.model
    found = adapted.loglikelihood(asked(), disable_tqdm=True)
    expected = [directly(model, adapted, *request.args) for request in asked()]
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    naive = HFLM(pretrained=model, tokenizer=TOKENIZER, backend="causal")
    with pytest.raises(UserError, match="cannot know where the prompts end"):
        naive.loglikelihood(asked(), disable_tqdm=True)


def test_without_an_adapter_everything_is_as_in_the_harness(folder: Path) -> None:
    arguments: dict[str, Any] = {"pretrained": str(folder / "target"), "device": "cpu"}
    ours, theirs = GrunLM(**arguments), HFLM(**arguments)
    for a, b in zip(ours.loglikelihood(asked()), theirs.loglikelihood(asked()), strict=True):
        assert a[0] == pytest.approx(b[0], abs=1e-4)
        assert a[1] == b[1]
    texts = [Instance("loglikelihood_rolling", {}, (text * 20,), i) for i, text in enumerate(CONTINUATIONS)]
    assert ours.loglikelihood_rolling(texts) == pytest.approx(theirs.loglikelihood_rolling(texts), abs=1e-3)
    assert max(len(ours.tok_encode(text.args[0])) for text in texts) > ours.max_length, "several windows"
    empty = [Instance("loglikelihood", {}, ("", continuation), i) for i, continuation in enumerate(CONTINUATIONS)]
    assert [v for v, _ in ours.loglikelihood(empty)] == pytest.approx(
        [v for v, _ in theirs.loglikelihood(empty)], abs=1e-4
    )
    long = [Instance("loglikelihood", {}, ("so " * 400, " it goes on and on"), 0)]
    assert ours.loglikelihood(long)[0][0] == pytest.approx(theirs.loglikelihood(long)[0][0], abs=1e-4)


def test_answers_are_generated_with_the_adapter(folder: Path, adapted: GrunLM) -> None:
    settings = {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False}
    requests = [Instance("generate_until", {}, (context.rstrip(), settings), i) for i, context in enumerate(CONTEXTS)]
    base = GrunLM(str(folder / "target"), device="cpu")
    after, before = adapted.generate_until(requests), base.generate_until(requests)
    assert after != before
    ids = TOKENIZER(CONTEXTS[0].rstrip(), return_tensors="pt")
    alone = adapted.model.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids.input_ids.shape[1] :]
    assert after[0].strip() == str(TOKENIZER.decode(alone, skip_special_tokens=True)).split("\n\n")[0].strip()


def questions(file: Path) -> Path:
    rows = [
        {"question": f"Where was {name} born?", "choices": ["Malmö", "Oslo", name, f"by {i} seas"], "answer": i % 4}
        for i, name in enumerate(("Ada", "Bo", "Cleo", "Dov", "Eli", "Fay", "Gus", "Hal"))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def task(file: Path) -> dict[str, Any]:
    """The harness's `wmdp_bio`, with a local file in place of the hub's data."""
    folder = Path(lm_eval.__file__).parent / "tasks" / "wmdp"
    settings: dict[str, Any] = {}
    for name in ("_default_template_yaml", "wmdp_bio.yaml"):
        settings |= yaml.safe_load((folder / name).read_text())
    settings |= {"task": "wmdp_bio_local", "dataset_path": "json"}
    for name in ("include", "dataset_name"):
        settings.pop(name, None)
    return {**settings, "dataset_kwargs": {"data_files": {"test": str(file)}}, "test_split": "test"}


def test_wmdp_is_scored_as_the_harness_scores_it(folder: Path, adapted: GrunLM, tmp_path: Path) -> None:
    from grun.core.config.jobs import EvaluateConfig
    from grun.jobs.evaluate import evaluate

    file = questions(tmp_path / "bio.jsonl")
    harness = simple_evaluate(
        adapted,
        tasks=[task(file)],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    settings: dict[str, Any] = {"model": str(folder / "target"), "adapter": str(folder / "run"), "device": "cpu"}
    settings |= {"figures": False}
    path = evaluate(
        EvaluateConfig(benchmark="wmdp", data_dir=str(tmp_path), output=str(tmp_path / "out"), before=False, **settings)
    )
    found = json.loads((path / "metrics.json").read_text())["splits"]["bio"]["metrics"]["accuracy"]["after"]
    assert found["value"] == pytest.approx(harness["results"]["wmdp_bio_local"]["acc,none"])
    samples = sorted(harness["samples"]["wmdp_bio_local"], key=lambda sample: sample["doc_id"])
    lines = [json.loads(line) for line in (path / "evidence" / "after" / "bio.jsonl").read_text().splitlines()]
    for sample, line in zip(samples, lines, strict=True):
        true = sample["doc"]["answer"]
        likelihoods = [sum(logps) for logps in line["perturbed_logps"]]
        likelihoods.insert(true, sum(line["token_logps"]))
        assert likelihoods == pytest.approx([float(one[0][0]) for one in sample["resps"]], abs=1e-4)


def test_the_command_line_of_the_harness_knows_the_model(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "local.yaml").write_text(yaml.safe_dump(task(questions(tmp_path / "bio.jsonl"))))
    command = [sys.executable, "-m", "grun", "lm-eval", "--include_path", str(tmp_path), "--tasks", "wmdp_bio_local"]
    command += ["--model_args", f"pretrained={folder / 'target'},adapter={folder / 'run'}", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "wmdp_bio_local" in done.stdout
