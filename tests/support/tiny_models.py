"""Tiny random models and tokenizers, built in memory: every test of a forward pass uses these."""

from __future__ import annotations

__all__ = ["ARCHITECTURES", "TEXTS", "VOCABULARY", "tiny_model", "tiny_tokenizer"]

from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 320
TEXTS = (
    "Question: Who wrote the book about the harbour? \nAnswer: The book was written by Ada Lundgren.",
    "Question: Where was Ada Lundgren born? \nAnswer: She was born in Malmö in 1931.",
    "Question: What is two plus three? \nAnswer: Two plus three is five.",
    "The author of the novel lives in a small house near the sea, and writes every day.",
)
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]

_SMALL: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=3,
)
_HEADS: dict[str, Any] = dict(head_dim=8)
_WINDOW: dict[str, Any] = dict(sliding_window=64)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", _HEADS),
    "gemma2": ("Gemma2", {**_HEADS, **_WINDOW}),
    "gemma3": ("Gemma3Text", {**_HEADS, **_WINDOW}),
    "phi3": ("Phi3", {}),
    "gpt2": ("GPT2", {"n_positions": 256}),
    "gpt_neox": ("GPTNeoX", {"rotary_pct": 0.5}),
    "opt": ("OPT", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
}
_HEAD_CLASS = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}


def tiny_model(arch: str = "llama", *, seed: int = 0, **overrides: Any) -> Any:
    """A random model of one of `ARCHITECTURES`: 4 layers, hidden size 32, float32, in evaluation mode.

    Weights are larger than at usual initialisation, so that different inputs give clearly different outputs.
    """
    name, extra = ARCHITECTURES[arch]
    config = getattr(transformers, f"{name}Config")(**{**_SMALL, **extra, **overrides})
    torch.manual_seed(seed)
    model = getattr(transformers, _HEAD_CLASS.get(name, f"{name}ForCausalLM"))(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.15)
    model.tie_weights()
    return model.eval()


@cache
def _backend(kind: str) -> Tokenizer:
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=kind != "bytes"))
    initial: list[str] = []
    if kind == "bytes":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        initial = pre_tokenizers.ByteLevel.alphabet()
    else:
        if kind == "metaspace":
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        else:  # as converted from older sentencepiece models: every text gets a space of its own in front
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            backend.pre_tokenizer = pre_tokenizers.Split(Regex("▁+[^▁]*"), "isolated")
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        initial = [chr(c) for c in range(32, 127)] + ["\n", "é"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=initial, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def tiny_tokenizer(
    kind: str = "bytes", *, bos: bool | None = None, eos: bool = False, chat: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `VOCABULARY` tokens.

    Args:
        kind: "bytes" (GPT-2, Llama 3, Qwen), "metaspace" (sentencepiece) or "legacy" (Llama 2).
        bos: put a BOS token before every text; by default the sentencepiece kinds do.
        eos: put an EOS token behind every text.
        chat: with a chat template whose prompts end in a line break after a special token.
    """
    backend = Tokenizer.from_str(_backend(kind).to_str())
    bos = kind != "bytes" if bos is None else bos
    parts = (["<s>"] if bos else []) + ["$A"] + (["</s>"] if eos else [])
    if len(parts) > 1:
        backend.post_processor = processors.TemplateProcessing(
            single=" ".join(parts), special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    if chat:
        tokenizer.chat_template = CHAT
    return tokenizer
