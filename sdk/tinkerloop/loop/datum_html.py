"""Datums as HTML, for notebooks: token ids, with the positions that are trained shaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tinkerloop._lazy import tinker
from tinkerloop.datum_values import read_tensor
from tinkerloop.renderers.token_html import text_html

SHOWN = 8
"""The number of datums of a micro-batch that are shown."""


def datums_html(datums: Sequence[tinker.Datum]) -> str:
    """Return the first datums as HTML, each folded. A page that shows them needs `TOKEN_STYLE`.

    The span at position i has the id of input token i. It is shaded if the weight at position i is not 0: the model is
    trained to predict the token after it.
    """
    shown = "".join(map(_datum, range(SHOWN), datums))
    return shown + (f"<p>… and {len(datums) - SHOWN:,} more datums</p>" if len(datums) > SHOWN else "")


def _datum(index: int, datum: tinker.Datum) -> str:
    weights = datum.loss_fn_inputs.get("weights")
    values = None if weights is None else read_tensor("weights", weights)
    is_trained = [True] * datum.model_input.length if values is None else _trained(values)
    spans = "".join(
        f'<span class="{"trained" if trained else ""}">{text_html(text)} </span>'
        for text, trained in zip(_inputs(datum), is_trained, strict=True)
        if text
    )
    head = f"datum {index}: {datum.model_input.length:,} tokens, {sum(is_trained):,} trained"
    return f'<details><summary>{head}</summary><pre class="tinkerloop">{spans}</pre></details>'


def _trained(weights: np.ndarray) -> list[bool]:
    """Return for each position whether it has a weight; weights are (N,) or (N, K)."""
    return [bool(np.any(weight != 0)) for weight in weights]


def _inputs(datum: tinker.Datum) -> Iterator[str]:
    """Yield a text for each input position. All positions of an image but its first have none."""
    for chunk in datum.model_input.chunks:
        if isinstance(chunk, tinker.EncodedTextChunk):
            yield from map(str, chunk.tokens)
        else:
            yield f"[{chunk.type}, {chunk.length:,} tokens]"
            yield from [""] * (chunk.length - 1)
