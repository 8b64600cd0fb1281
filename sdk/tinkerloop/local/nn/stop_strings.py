"""The text of sampled tokens, in which stop strings are searched."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from tinkerloop.errors import TinkerloopError
from tinkerloop.local.nn.token_sampling import Continuation
from tinkerloop.tokenizers.encoders import encoder_of

TextAfter = Callable[[int, Sequence[int]], str]
"""Function that returns the text of tokens that follow another token."""


def ends_in_stop(row: Continuation, text_after: TextAfter) -> bool:
    """Return True if the last token of a continuation completes one of its stop strings."""
    strings = row.request.stop_strings
    # Only the end of the text can hold a new match, because the rest was searched after earlier tokens. A character
    # takes at most 4 tokens, one for each of its UTF-8 bytes.
    tail = 4 * max(len(string) for string in strings) + 8
    before, *tokens = [int(row.request.prompt.tokens[-1]), *row.tokens][-tail - 1 :]
    text = text_after(before, tokens)
    return any(string in text for string in strings)


def text_decoder(tokenizer: PreTrainedTokenizerBase) -> TextAfter:
    """Return the function that decodes tokens of this tokenizer.

    `tokenizer.decode` is used only where no encoder is known. It decodes the tokens as a text of their own: many
    SentencePiece tokenizers strip its first space, and some tokenizers strip spaces before punctuation marks.
    """
    try:
        decode_bytes = encoder_of(tokenizer).decode_bytes
    except TinkerloopError:
        return lambda before, tokens: str(tokenizer.decode(list(tokens)))

    def text_after(before: int, tokens: Sequence[int]) -> str:
        start = len(decode_bytes([before]))
        return decode_bytes([before, *tokens])[start:].decode("utf-8", "replace")

    return text_after
