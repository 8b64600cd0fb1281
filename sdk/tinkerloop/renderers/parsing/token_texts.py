"""`TokenTexts`: the text of each ordinary token id, for parsers."""

from __future__ import annotations

from collections.abc import Mapping

from tinkerloop.renderers.parsing.grammar import Grammar
from tinkerloop.tokenizers.encoders import Encoder


class TokenTexts(dict[int, str]):
    """Mapping from ordinary token id to text. A text is decoded when it is first looked up.

    A lookup raises `KeyError` for control tokens of the grammar (such as `<|im_end|>`); their names are in `control`.
    It also raises `KeyError` for tokens that hold an incomplete UTF-8 sequence, because their text depends on the
    neighbouring tokens. `ids` are the ids of the control tokens that the tokenizer has.

    `spaced` are the ids after which the tokenizer writes a space before a text (see `tokenizers.places`).
    """

    def __init__(self, grammar: Grammar, encoder: Encoder, ids: Mapping[str, int]):
        super().__init__()
        self.control = {ids[name]: name for name in grammar.control if name in ids}
        self.decode_bytes = encoder.decode_bytes
        self.spaced: frozenset[int] = getattr(encoder, "spaced", frozenset())

    def __missing__(self, token_id: int) -> str:
        if token_id in self.control:
            raise KeyError(token_id)
        try:
            text = self[token_id] = self.decode_bytes([token_id]).decode()
        except UnicodeDecodeError:
            raise KeyError(token_id) from None
        return text

    def bytes_after_token(self, ids: list[int]) -> bytes:
        """Return the bytes of ids that follow a control token, without the space that the tokenizer writes there."""
        spelled = self.decode_bytes(ids)
        return spelled if ids[0] in self.spaced else spelled.removeprefix(b" ")
