"""One conversation as as few examples as train every chosen reply on exactly what it was sampled from.

Formats that rewrite history (reasoning is left out once the user speaks again) cannot show several replies as they were
sampled in one sequence. Each such reply gets an example that ends with it; replies whose sequences extend one another
share one. Text is encoded once, however many examples it is in.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

from tinkerloop.messages import CheckedConversation
from tinkerloop.renderers.assembly import Encode, Kept
from tinkerloop.renderers.core import RendererCore
from tinkerloop.renderers.rendered import Marks, Rendered
from tinkerloop.renderers.train_on_what import TokenWeights


def split_examples(
    renderer: RendererCore,
    conversation: CheckedConversation,
    weights: TokenWeights,
    replies: Sequence[int],
    encode: Encode,
) -> list[Rendered]:
    """Examples that together train each of `replies`, given as message indices, in order."""
    encode = Kept(encode).__getitem__
    examples: list[Rendered] = []
    for reply in replies:
        cut = replace(conversation, messages=conversation.messages[: reply + 1])
        only = [w if i == reply else 0.0 for i, w in enumerate(weights.of_message[: reply + 1])]
        example = renderer.example(cut, weights._replace(of_message=only), encode)
        if examples and example.tokens[: len(examples[-1])] == examples[-1].tokens:
            example = _joined(examples.pop(), example)
        examples.append(example)
    return examples


def _joined(shorter: Rendered, longer: Rendered) -> Rendered:
    """`longer`, with the weights of `shorter`, which it begins with."""
    end = len(shorter)
    starts, kinds, weights = longer.marks
    rest = bisect_right(starts, end)  # the spans that begin after it; the one before them may begin earlier
    marks = Marks(
        [*shorter.marks.starts, end, *starts[rest:]],
        shorter.marks.kinds + kinds[rest - 1 :],
        shorter.marks.weights + weights[rest - 1 :],
    )
    return replace(longer, marks=marks)
