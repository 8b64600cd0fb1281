"""Several examples from one conversation, so that every trained reply follows exactly the prompt it was sampled from.

Formats that rewrite history (reasoning is left out once the user speaks again) cannot show several replies as they were
sampled in one sequence. Each such reply gets an example that ends with it; replies whose sequences extend one another
share an example. Each text is encoded once, whatever the number of examples.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

from tinkerloop.messages import CheckedConversation
from tinkerloop.renderers.assembly import Encode, EncodeCache
from tinkerloop.renderers.core import RendererCore
from tinkerloop.renderers.rendered import Rendered, SpanTable
from tinkerloop.renderers.train_on_what import TokenWeights


def split_examples(
    renderer: RendererCore,
    conversation: CheckedConversation,
    weights: TokenWeights,
    replies: Sequence[int],
    encode: Encode,
) -> list[Rendered]:
    """Return examples that together train every one of `replies`.

    With replies 1 and 3, a format that keeps history gives one example, which ends with message 3; a format that
    leaves reasoning out of history gives two: messages 0-1 with reply 1 trained, and messages 0-3 with reply 3 trained.

    Args:
        weights: the weights of the whole conversation.
        replies: indices of the trained messages, ascending; all are the assistant's.
        encode: text -> ids; its results are cached while the examples are made.
    """
    encode = EncodeCache(encode).__getitem__
    examples: list[Rendered] = []
    for reply in replies:
        until_reply = replace(conversation, messages=conversation.messages[: reply + 1])
        reply_weight = [w if i == reply else 0.0 for i, w in enumerate(weights.of_message[: reply + 1])]
        example = renderer.example(until_reply, weights._replace(of_message=reply_weight), encode)
        if examples and example.tokens[: len(examples[-1])] == examples[-1].tokens:
            example = _joined(examples.pop(), example)
        examples.append(example)
    return examples


def _joined(shorter: Rendered, longer: Rendered) -> Rendered:
    """Return `longer` with the weights of `shorter`, whose tokens it begins with."""
    end = len(shorter)
    starts, labels, weights = longer.span_table
    rest = bisect_right(starts, end)  # the first span after `end`; the span before it may begin earlier
    span_table = SpanTable(
        [*shorter.span_table.starts, end, *starts[rest:]],
        shorter.span_table.labels + labels[rest - 1 :],
        shorter.span_table.weights + weights[rest - 1 :],
    )
    return replace(longer, span_table=span_table)
