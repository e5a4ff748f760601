"""The tokens of a tokenizer as bytes, so that text can be put together from any token ids, also of half a character."""

from __future__ import annotations

__all__ = ["token_bytes"]

import re
from functools import cache
from typing import Any

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACES = ("▁", "Ġ")


@cache
def _byte_of_letter() -> dict[str, int]:
    """The bytes that letters stand for in byte-level vocabularies: printable Latin-1 characters for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def token_bytes(tokenizer: Any) -> list[bytes]:
    """The bytes of every token by its id; a zero byte for special tokens, none for unknown text and ids without a token."""
    special = set(tokenizer.all_special_ids) | {int(i) for i, t in _added(tokenizer).items() if t.special}
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    byte_level = _is_byte_level(tokenizer)
    word_pieces = any(str(token).startswith("##") for token in tokens[-1000:])
    found = []
    for number, token in enumerate(tokens):
        if token is None or number == tokenizer.unk_token_id:
            found.append(b"")
        elif number in special:
            found.append(b"\0")
        else:
            found.append(_bytes(str(token), byte_level, word_pieces))
    return found


def _added(tokenizer: Any) -> dict[int, Any]:
    return dict(getattr(tokenizer, "added_tokens_decoder", {}))


def _is_byte_level(tokenizer: Any) -> bool:
    """Whether letters of tokens stand for bytes, as in GPT-2's vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return "ByteLevel" in f"{backend.decoder!r}{backend.pre_tokenizer!r}"
    return hasattr(tokenizer, "byte_decoder")


def _bytes(token: str, byte_level: bool, word_pieces: bool) -> bytes:
    known = _byte_of_letter()
    if byte_level and all(letter in known for letter in token):
        return bytes(known[letter] for letter in token)
    if (hexadecimal := BYTE.fullmatch(token)) is not None:
        return bytes([int(hexadecimal.group(1), 16)])
    if word_pieces:
        return token.removeprefix("##").encode() if token.startswith("##") else f" {token}".encode()
    for space in SPACES:
        token = token.replace(space, " ")
    return token.encode()
