"""What ids mean to a format that reads a reply."""

from __future__ import annotations

from collections.abc import Mapping

from tinkerloop.renderers.parsing.grammar import Grammar
from tinkerloop.tokenizers.encoders import Encoder


class Vocabulary(dict[int, str]):
    """The text of every id that is ordinary and spells whole characters, worked out on first use.

    `KeyError` for the rest: the control tokens of the grammar, which `control` has by name, and tokens that hold a
    piece of a character, whose text depends on their neighbours.
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
