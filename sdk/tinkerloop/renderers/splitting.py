"""Splitting of one conversation into examples, so that every trained reply follows the prompt of its sampling.

Some formats rewrite history; for example, they leave reasoning out once the next user message follows. In such a
format, one sequence cannot contain several replies as they were sampled. Therefore each trained reply gets an example
that ends with this reply. Two replies share an example if the tokens of the shorter example are a prefix of the tokens
of the longer one. Each text is encoded only once for all examples.
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
    """Return examples that together train all of `replies`.

    For example, let messages 1 and 3 be trained. A format that keeps history gives one example, which ends with
    message 3. A format that leaves reasoning out of history gives two: messages 0-1, in which message 1 is trained, and
    messages 0-3, in which only message 3 is trained.

    Args:
        weights: the weights for the whole conversation.
        replies: the indices of the trained messages in ascending order; all are assistant messages.
        encode: converts text to token ids. Its results are cached during this call.
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
    """Return `longer` with the spans and weights of `shorter` at its start.

    The tokens of `shorter` must be a prefix of the tokens of `longer`.
    """
    end = len(shorter)
    starts, labels, weights = longer.span_table
    rest = bisect_right(starts, end)  # the first span that begins after `end`; the span before it contains `end`
    span_table = SpanTable(
        [*shorter.span_table.starts, end, *starts[rest:]],
        shorter.span_table.labels + labels[rest - 1 :],
        shorter.span_table.weights + weights[rest - 1 :],
    )
    return replace(longer, span_table=span_table)
