"""Hypothesis strategies for conversations: everything that a chat format claims to express.

    @given(messages=random_conversations(FormatClaims(reasoning=False)))
    def test_my_renderer(messages): ...

Texts have unusual spaces, combining characters, emoji and characters of several bytes. Tool calls have nested
arguments. Texts of `spellings(CONTROL)` spell the control tokens (such as <|im_end|>) of public chat formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from tinkerloop.extras import needs_extra
from tinkerloop.testing.format_claims import PNG, FormatClaims, fitted

with needs_extra("testing", "the check kit of renderers"):
    from hypothesis import strategies as st

CONTROL = sorted(
    """
    <|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <tool_call> </tool_call>
    <tool_response> </tool_response> <think> </think> <|begin_of_text|> <|end_of_text|> <|eom_id|> <|eot_id|>
    <|start_header_id|> <|end_header_id|> <|python_tag|> <｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜User｜>
    <｜Assistant｜> <｜tool▁calls▁begin｜> <｜tool▁calls▁end｜> <｜tool▁call▁begin｜> <｜tool▁call▁end｜> <｜tool▁sep｜>
    <｜tool▁output▁begin｜> <｜tool▁output▁end｜> <|im_user|> <|im_assistant|> <|im_system|> <|im_middle|> [BOS] [EOS]
    <|tool_calls_section_begin|> <|tool_calls_section_end|> <|tool_call_begin|> <|tool_call_end|>
    <|tool_call_argument_begin|> <|media_begin|> <|media_content|> <|media_end|> <|media_pad|> <|start|> <|end|>
    <|message|> <|channel|> <|return|> <|call|> <|constrain|> [gMASK] <sop> <|system|> <|user|> <|assistant|>
    <|observation|> <arg_key> </arg_key> <arg_value> </arg_value> <|fim_prefix|> <|reserved_7|>
    """.split()  # noqa: SIM905
)
# Further tokens are added at the end, because golden files of the tests contain the ids of the tokens above.
CONTROL += """
    ｜DSML｜ <｜System｜> <|message_user|> <|message_model|> <|message_system|> <|message_tool|> <|content_text|>
    <|content_thinking|> <|content_xml|> <|content_invoke_tool_json|> <|content_invoke_tool_text|> <|end_message|>
    <|content_model_end_sampling|> <bos> <eos> <start_of_turn> <end_of_turn> <s> </s> [INST] [/INST] [SYSTEM_PROMPT]
    [/SYSTEM_PROMPT] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] [CALL_ID] [ARGS] [TOOL_RESULTS] [TOOL_CONTENT]
    [/TOOL_RESULTS] [THINK] [/THINK] <|turn> <turn|> <|think|> <|channel> <channel|> <|tool> <tool|> <|tool_call>
    <tool_call|> <|tool_response> <tool_response|> <|"|> <|header_start|> <|header_end|> <|eot|> <|eom|>
    <|python_start|> <|python_end|> <|start_of_role|> <|end_of_role|>
""".split()  # noqa: SIM905
"""Control tokens of public chat formats, and some of no format."""

BEGINNINGS = ("<|begin_of_text|>", "<｜begin▁of▁sentence｜>", "[BOS]", "[gMASK]", "<sop>", "<bos>", "<s>")
"""The tokens that begin a sequence in public chat formats."""

_WORDS = (
    "the", "other", "user", "42", "naïve", "你好", "e\u0301", "👩\u200d👧", "don't", ">", "<", "a\u200bb", "\r",
)  # fmt: skip
_SPACES = ("", " ", "  ", "\n", "\n\n", " \n", "\t", "\n\n\n")
# One draw gives a word with the spaces around it: three draws, or a recursive strategy for values, take twice as long.
_SPACED_WORDS = [before + word + after for before in _SPACES for after in _SPACES for word in _WORDS]
TEXTS = st.lists(st.sampled_from(_SPACED_WORDS), max_size=4).map("".join)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2)


_LEAVES = st.none() | st.booleans() | st.integers(-9, 99) | st.sampled_from(["", "3", "naïve", " pad ", "x\ny", "None"])
VALUES = _LEAVES | _nested(_LEAVES | _nested(_LEAVES))
NAME_PAIRS = st.sampled_from([["get_weather", "search"], ["search", "search"]])
ARGUMENTS = st.dictionaries(st.sampled_from(["city", "n", "options", "größe"]), VALUES, max_size=3)


def spellings(control: Sequence[str]) -> st.SearchStrategy[str]:
    """Return a strategy for texts that spell one of these control tokens, or nearly so."""
    return st.sampled_from([spelled for token in control for spelled in (token, f"{token}\n", f"<{token}", token[1:])])


@st.composite
def random_conversations(
    draw: st.DrawFn,
    claims: FormatClaims | None = None,
    *,
    text: st.SearchStrategy[str] = TEXTS,
    final: Literal["assistant"] | None = "assistant",
    max_turns: int = 3,
    images: bool = False,
) -> list[dict[str, Any]]:
    """Draw a conversation of OpenAI-style messages that a format claims to express.

    It has an optional system message, then turns of a user message, tool calls with results, and an answer.

    Args:
        claims: what the format can express; None: everything.
        text: the texts of contents and reasoning.
        final: "assistant": the conversation ends with a reply; None: it may end anywhere.
        max_turns: the largest number of messages of users.
        images: the first message of a user has an image, and others may have one. Their contents are lists of parts.

    Raises:
        ValueError: `final` is neither "assistant" nor None. It is raised when a conversation is drawn.
    """
    if final not in ("assistant", None):
        raise ValueError(f"final must be 'assistant' or None, got {final!r}: to end elsewhere, cut what None draws")
    can = claims or FormatClaims()
    messages: list[dict[str, Any]] = []
    if "system" in can.roles and can.system and draw(st.booleans()):
        messages.append({"role": "system", "content": draw(text)})
    for turn in range(draw(st.integers(1, max_turns))):
        if can.later_system and turn and draw(st.integers(0, 3)) == 0:
            messages.append({"role": "system", "content": draw(text)})
        messages.append({"role": "user", "content": draw(text)})
        for _ in range(draw(st.integers(0, 2)) if can.calls else 0):
            count = draw(st.integers(1, 2)) if can.parallel_calls else 1
            calls = [
                {
                    "id": f"functions.{name}:{i}",
                    "type": "function",
                    "function": {"name": name, "arguments": draw(ARGUMENTS)},
                }
                for i, name in enumerate(draw(NAME_PAIRS)[:count])
            ]
            message = {"role": "assistant", "content": draw(text), "tool_calls": calls}
            if can.reasoning_with_calls and draw(st.booleans()):
                message["reasoning_content"] = draw(text)
            messages.append(message)
            for call in calls:
                messages.append({"role": "tool", "content": draw(text), "tool_call_id": call["id"]})
        message = {"role": "assistant", "content": draw(text)}
        if can.reasoning and draw(st.booleans()):
            message["reasoning_content"] = draw(text)
        messages.append(message)
    messages = fitted(messages, can)
    asked = [message for message in messages if message["role"] == "user"] if images else []
    for i, message in enumerate(asked):
        if i == 0 or draw(st.booleans()):
            texts = [{"type": "text", "text": message["content"]}, {"type": "text", "text": draw(text)}]
            message["content"] = [texts[0], {"type": "image", "image": PNG}, *texts[1 : draw(st.integers(1, 2))]]
    return messages if final else messages[: draw(st.integers(1, len(messages)))]
