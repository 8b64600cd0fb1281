"""Places of a text in a sequence. Some tokenizers write a space before a text, which depends on its place.

Most SentencePiece tokenizers do this, so that a word has one token, at the start of a text too. The tokenizer reads the
text between two control tokens (such as <s>) by itself. In the settings of `tokenizer.json`:

| setting | before the first text | after a control token |
|---|---|---|
| normalizer `Prepend` (Llama 2, TinyLlama, Phi-3) | a space | a space |
| `Metaspace` with "always"; `ByteLevel` with `add_prefix_space` | a space, unless there is one | the same |
| `Metaspace` with "first" (Mistral 7B v0.3) | a space, unless there is one | none |
| all others (Gemma, most byte-level tokenizers) | none | none |

The second row gives "the" and " the" the same ids. They are decoded as "the".

If a text is divided, e.g. into a prompt and the reply to it, no space may be written between its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any


class Place(Enum):
    """The place of a text in a sequence."""

    START = "start"
    """Nothing is before the text."""
    AFTER_TOKEN = "after_token"
    """A control token, such as <|im_end|>, or an image is directly before the text."""
    INSIDE = "inside"
    """Other text is directly before the text."""


EncodeAt = Callable[[Place, str], list[int]]
"""Function that returns the token ids of a text at a place."""


def spec_at(place: Place, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of a `tokenizer.json` with which the whole string that is encoded is a text at a place."""
    sections = {name: _at(place, spec.get(name)) for name in ("normalizer", "pre_tokenizer")}
    return {**spec, **sections}


def _at(place: Place, step: Any) -> Any:
    """Return a step of a `tokenizer.json`, or all steps of a `Sequence`, without the spaces that it does not write."""
    if not isinstance(step, dict) or place is Place.START:
        return step
    if step["type"] == "Metaspace" and (place is Place.INSIDE or step.get("prepend_scheme") == "first"):
        return {**step, "prepend_scheme": "never"}
    if place is Place.INSIDE and step["type"] == "ByteLevel" and "add_prefix_space" in step:
        return {**step, "add_prefix_space": False}
    if place is Place.INSIDE and step["type"] == "Prepend":
        return {"type": "Sequence", "normalizers": []}
    lists = {key: [_at(place, inner) for inner in value] for key, value in step.items() if isinstance(value, list)}
    return {**step, **lists}
