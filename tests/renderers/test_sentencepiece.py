"""Chat formats with SentencePiece vocabularies: bytes as `<0x0A>`, `▁` for a space, and a space before some texts.

Control tokens are tokens such as <s> that structure a conversation.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.renderers.chats import CHECKS, SPACING, claims, sentencepiece_tokenizer
from tests.renderers.test_invariants import REWRITING
from tinkerloop.errors import RenderError
from tinkerloop.renderers import Part, Renderer, get_renderer
from tinkerloop.renderers.assembly import Assembler
from tinkerloop.renderers.pieces import scaffold, text
from tinkerloop.testing import check_renderer
from tinkerloop.tokenizers import encoder_of

FORMATS = ("mistral_v3", "gemma3", "gemma4", "template")
OF_MODELS = (("mistral_v3", "first"), ("gemma3", "never"), ("gemma4", "never"), ("template", "legacy"))
TEXT = "Das Café:\nüber 日本 Ġâ <0x0A>  the"
PHI3 = """\
{%- for message in messages -%}
    {{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' -}}
{%- endfor -%}
{{- '<|assistant|>\\n' if add_generation_prompt else '' -}}
"""
"""The form of Phi-3's template. Its tokenizer is believed to strip white space after control tokens."""
ZEPHYR = PHI3.replace("<|end|>", "</s>").replace("<|", "[|").replace("|>", "|]")
"""The form of Zephyr's template, in which the names of roles are no control tokens."""
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "the user"},
    {"role": "assistant", "content": "a café"},
    {"role": "user", "content": "a\nb "},
    {"role": "assistant", "content": TEXT},
]


def renderer(name: str, spacing: str, template: str | None = None, **flags: bool) -> Renderer:
    more = () if template is None else (template,)
    return get_renderer(name, sentencepiece_tokenizer(spacing, *more, **flags), tags_in_replies="text")


def prompt_and_reply(ours: Renderer) -> tuple[list[int], list[int]]:
    prompt = ours.build_generation_prompt(CHAT[:-1]).to_ints()
    whole = ours.build_supervised_example(CHAT).tokens
    assert whole[: len(prompt)] == prompt
    return prompt, whole[len(prompt) :]


@pytest.mark.parametrize(("name", "spacing"), OF_MODELS)
@pytest.mark.parametrize("check", CHECKS)
def test_every_format_has_the_property(name: str, spacing: str, check: str) -> None:
    ours = renderer(name, spacing, REWRITING if (name, check) == ("template", "extension_property_holds") else None)
    check_renderer(ours, examples=3, only=check, claims=claims(name))


@pytest.mark.parametrize("spacing", SPACING)
@pytest.mark.parametrize("name", FORMATS)
def test_a_reply_is_parsed_as_it_was_written(name: str, spacing: str) -> None:
    ours = renderer(name, spacing)
    message, termination = ours.parse_response(prompt_and_reply(ours)[1])
    assert (message["content"], termination) == (TEXT, "stop_sequence")


@pytest.mark.parametrize("spacing", SPACING)
@pytest.mark.parametrize("name", FORMATS)
def test_a_stream_of_single_ids_has_the_same_text(name: str, spacing: str) -> None:
    ours = renderer(name, spacing)
    parser = ours.parser()
    deltas = [delta for token in prompt_and_reply(ours)[1] for delta in parser.feed([token])]
    assert "".join(delta.text for delta in deltas if hasattr(delta, "text")) == TEXT
    assert parser.finish()[1].message["content"] == TEXT


@pytest.mark.parametrize("spacing", ["never", "first"])
@pytest.mark.parametrize("name", FORMATS)
def test_the_text_of_a_reply_is_what_the_tokenizer_decodes_there(name: str, spacing: str) -> None:
    ours = renderer(name, spacing)
    prompt, reply = prompt_and_reply(ours)
    before = ours.tokenizer.decode(prompt)
    assert ours.tokenizer.decode(prompt + reply) == before + ours.decode(reply)


def test_with_a_space_after_control_tokens_a_reply_is_what_the_tokenizer_decodes_for_it_alone() -> None:
    ours = renderer("template", "legacy", PHI3, rstrip=True)
    reply = prompt_and_reply(ours)[1]
    assert ours.tokenizer.decode(reply, skip_special_tokens=True) == TEXT
    assert ours.parse_response(reply).message["content"] == TEXT


@pytest.mark.parametrize("spacing", ["first", "always", "legacy"])
def test_the_tokenizers_space_is_no_text_of_the_conversation(spacing: str) -> None:
    ours = renderer("template", spacing, PHI3)
    tokens = ours.build_generation_prompt(CHAT[:1]).to_ints()
    assert ours.decode(tokens) == "<|user|>\nthe user<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize("template", [PHI3, ZEPHYR], ids=["control tokens", "text"])
@pytest.mark.parametrize("flags", [{}, {"rstrip": True}, {"lstrip": True}, {"lstrip": True, "rstrip": True}], ids=str)
@pytest.mark.parametrize("spacing", SPACING)
def test_ids_are_those_of_apply_chat_template(spacing: str, flags: dict[str, bool], template: str) -> None:
    ours = renderer("template", spacing, template, **flags)
    for count in (1, 3):
        official = ours.tokenizer.apply_chat_template(CHAT[:count], add_generation_prompt=True, return_dict=False)
        assert ours.build_generation_prompt(CHAT[:count]).to_ints() == official
    official = ours.tokenizer.apply_chat_template(CHAT, return_dict=False)
    example = ours.build_supervised_example(CHAT).tokens
    assert example == official[: len(example)]
    assert len(official) - len(example) <= 2  # the newline after the last stop token


def test_only_the_first_text_of_a_sequence_gets_a_space_with_first() -> None:
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '</s>' }}{% endfor %}"
    tokens = renderer("template", "first", template).build_supervised_example(CHAT[:2]).tokens
    spelled = sentencepiece_tokenizer("first").convert_ids_to_tokens(tokens)
    assert spelled[0] == "▁"
    assert spelled[spelled.index("</s>") + 1] == "a"


@pytest.mark.parametrize("spacing", SPACING)
def test_the_text_after_a_header_keeps_its_tokens(spacing: str) -> None:
    ours = renderer("template", spacing, ZEPHYR)
    example = ours.build_supervised_example([{"role": "user", "content": "the end"}, *CHAT[1:2]], "all_messages")
    texts = {
        span.message: ours.decode(example.tokens[span.start : span.stop])
        for span in example.spans
        if span.part is Part.TEXT
    }
    assert texts == {0: "the end", 1: "a café"}


def test_the_tokenizers_space_is_not_counted_as_text_before_a_boundary() -> None:
    ours = Assembler(encoder_of(sentencepiece_tokenizer("legacy")), [], "test")
    made = ours.assemble([(0, text(" ")), (0, scaffold(" b and more"))])
    assert [(ours.decode(made.tokens[span.start : span.stop]), span.part) for span in made.spans] == [
        ("  ", Part.TEXT),  # the tokenizer's space, and that of the text
        (" b and more", Part.SCAFFOLD),
    ]


def test_white_space_of_a_reply_after_its_prompt_is_kept() -> None:
    """The prompt was encoded before the reply was sampled, so its last token cannot strip it."""
    ours = renderer("template", "never", PHI3, rstrip=True)
    chat = [{"role": "user", "content": "\n the"}, {"role": "assistant", "content": "\n the"}]
    assert ours.decode(ours.build_supervised_example(chat).tokens) == "<|user|>the<|end|><|assistant|>\n the<|end|>"


@pytest.mark.parametrize("flags", [{"normalized": True}, {"single_word": True}], ids=str)
def test_a_tokenizer_that_reads_beyond_control_tokens_is_rejected(flags: dict[str, bool]) -> None:
    template = PHI3.replace("message.content +", "message.content + '_' +")
    with pytest.raises(RenderError, match="does not encode the text between two control tokens by itself"):
        renderer("template", "legacy", template, **flags)


def test_with_always_a_single_space_at_the_start_of_a_text_is_lost() -> None:
    """The tokenizer gives "the" and " the" the same ids."""
    ours = renderer("template", "always", PHI3, rstrip=True)
    message = ours.parse_response(ours.tokenizer.encode(" the<|end|>")).message
    assert ours.tokenizer.encode(" the") == ours.tokenizer.encode("the")
    assert message["content"] == "the"
