"""A small Llama and its tokenizer, made from scratch, for target models that fit a laptop."""

from __future__ import annotations

__all__ = ["check_shape", "learn_tokenizer", "small_llama"]

import re
from collections.abc import Iterable

import psutil
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from grun.core.errors import UserError

BYTES_IN_TRAINING = 16  # per parameter: weight, gradient and two moments, float32
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
LONGEST_TEXT, LONGEST_WORD = 200_000, 1000  # characters that a vocabulary is learnt from


def _bounded(text: str) -> str:
    """The beginning of a text, its words cut apart: learning takes time with the square of the length of a word."""
    return re.sub(rf"\S{{{LONGEST_WORD}}}", r"\g<0> ", text[:LONGEST_TEXT]) if len(text) > LONGEST_WORD else text


def learn_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int | None = None) -> PreTrainedTokenizerBase:
    """A byte-level byte-pair tokenizer learnt from `texts`; it encodes any text, and every digit is a token.

    Args:
        texts: the texts that the vocabulary is learnt from.
        vocab_size: largest number of tokens, including three special ones (padding, beginning, end) and 256 bytes.
        max_length: longest input that the tokenizer is meant for, in tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(_bounded, texts), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )


def small_llama(
    tokenizer: PreTrainedTokenizerBase, *, hidden_size: int, layers: int, heads: int, context: int, seed: int
) -> LlamaForCausalLM:
    """A Llama with random weights (float32) and tied embeddings for `tokenizer`.

    Raises:
        UserError: as `check_shape` does.
    """
    check_shape(hidden_size=hidden_size, layers=layers, heads=heads, vocab_size=len(tokenizer))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=_feed_forward(hidden_size),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def check_shape(*, hidden_size: int, layers: int, heads: int, vocab_size: int) -> None:
    """Refuse a model that cannot be made, or that cannot be trained in the memory of this machine.

    Args:
        hidden_size, layers, heads: of the model.
        vocab_size: number of tokens; 0 where they are not known yet.

    Raises:
        UserError: if the hidden size cannot be divided among the heads into parts of even width (rotary position
            embeddings rotate pairs), or for too many parameters.
    """
    if hidden_size % (2 * heads):
        raise UserError(f"--hidden-size is {hidden_size}, expected a multiple of {2 * heads} (twice --heads).")
    per_layer = hidden_size * (4 * hidden_size + 3 * _feed_forward(hidden_size))
    parameters = vocab_size * hidden_size + layers * per_layer
    needed, there = parameters * BYTES_IN_TRAINING, psutil.virtual_memory().available
    if needed > there:
        tokens = f" and {vocab_size:,} tokens (--vocab-size)" if vocab_size else ""
        raise UserError(
            f"--hidden-size {hidden_size}, --layers {layers}{tokens} are a model of "
            f"{parameters / 1e6:,.0f} million parameters, which needs {needed / 2**30:,.0f} GiB to be trained; "
            f"{there / 2**30:,.0f} GiB are free here. Choose smaller ones."
        )


def _feed_forward(hidden_size: int) -> int:
    """Width of the gated feed-forward layers: 8/3 of the hidden size, as in Llama, rounded up to a multiple of 16."""
    return -(-hidden_size * 8 // 48) * 16
