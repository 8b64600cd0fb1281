"""The text of each token id, for a parser."""

from __future__ import annotations

from collections.abc import Mapping

from tinkerloop.renderers.parsing.grammar import Grammar
from tinkerloop.tokenizers.encoders import Encoder


class TokenTexts(dict[int, str]):
    """Ordinary token id -> text, decoded on first use.

    Raises `KeyError` for control tokens of the grammar, whose names are in `control`, and for tokens that hold only a
    part of a character, whose text depends on their neighbours.
    """

    def __init__(self, grammar: Grammar, encoder: Encoder, ids: Mapping[str, int]):
        super().__init__()
        self.control = {ids[name]: name for name in grammar.control}
        self.decode_bytes = encoder.decode_bytes

    def __missing__(self, token_id: int) -> str:
        if token_id in self.control:
            raise KeyError(token_id)
        try:
            text = self[token_id] = self.decode_bytes([token_id]).decode()
        except UnicodeDecodeError:
            raise KeyError(token_id) from None
        return text
