"""Random conversations, a tokenizer and the official chat templates, for the tests of renderers.

Control tokens are tokens such as <|im_end|> that structure a conversation.
"""

from __future__ import annotations

import functools
import json
import os
import unicodedata
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tinkerloop.renderers import Renderer, get_registered_renderer_names, get_renderer
from tinkerloop.renderers.pieces import SEAM
from tinkerloop.renderers.registry import presets

MODELS = Path(os.environ.get("TINKERLOOP_MODELS") or Path(__file__).parents[2] / "../shared/models")
NAMES = [name for name in get_registered_renderer_names() if name in presets()]

# All control tokens of all chat formats, and some of no format. Tests try to forge each of them in texts.
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
# Further tokens are added at the end, because the golden files contain the ids of the tokens above.
CONTROL += """
    ｜DSML｜ <｜System｜> <|message_user|> <|message_model|> <|message_system|> <|message_tool|> <|content_text|>
    <|content_thinking|> <|content_xml|> <|content_invoke_tool_json|> <|content_invoke_tool_text|> <|end_message|>
    <|content_model_end_sampling|>
""".split()  # noqa: SIM905


# A chat template that belongs to no real model, for the renderer `template`, which accepts any template.
A_TEMPLATE = """\
{%- for tool in tools or [] -%}
    {{- '<|im_start|>tool\\n' + (tool | tojson) + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.reasoning_content and message.reasoning_content.strip('\\n') -%}
        {{- '<think>' + message.reasoning_content.strip('\\n') + '</think>' + message.content.lstrip('\\n') -}}
    {%- else -%}
        {{- message.content -}}
    {%- endif -%}
    {%- for call in message.tool_calls or [] -%}
        {{- '\\n' if message.content or not loop.first else '' -}}
        {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' -}}
        {{- (call.function.arguments | tojson) + '}\\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' -}}
"""


@functools.cache
def everyones_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with all control tokens in `CONTROL`."""
    return tokenizer_with(CONTROL, A_TEMPLATE, eos_token="<|endoftext|>")


def tokenizer_with(control: Iterable[str], chat_template: Any = A_TEMPLATE, **special: str) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with these control tokens, and with the merges that can join adjacent texts.

    Args:
        special: tokens by the names of transformers, such as `eos_token`.
    """
    from tinkerloop.tokenizers.tiny_tokenizer import _byte_characters

    characters = _byte_characters()
    spelled = functools.partial("".join)

    def byte_level(text: str) -> str:
        return spelled(characters[byte] for byte in text.encode())

    pairs = [("\n", "\n"), ("\n\n", "\n\n"), ("\n\n", "\n"), (" ", " "), (">", "\n"), ("t", "h"), ("th", "e")]
    pairs += [(" ", "t"), ("e", "r"), ("i", "n"), ("o", "n"), (" ", "a"), ("u", "s"), ("us", "er")]
    merges = [(byte_level(a), byte_level(b)) for a, b in pairs]
    vocab = {character: i for i, character in enumerate(characters)}
    for a, b in merges:
        vocab.setdefault(a + b, len(vocab))
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    core.normalizer = normalizers.NFC()
    words = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    for i, token in enumerate(control):
        core.add_tokens([AddedToken(token, normalized=False, special=bool(i % 2))])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, chat_template=chat_template, clean_up_tokenization_spaces=False, **special
    )


@functools.cache
def renderer(name: str) -> Renderer:
    """Return a renderer that trains tags in the text of replies as ordinary text, so that tests can quote tags."""
    return get_renderer(name, everyones_tokenizer(), tags_in_replies="text")


def decode(tokens: list[int], tokenizer: Any = None) -> str:
    return (tokenizer or everyones_tokenizer()).decode(tokens, skip_special_tokens=False)


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


# ---- conversations

WORDS = st.sampled_from(
    ["the", "other", "user", "42", "naïve", "你好", "e\u0301", "👩\u200d👧", "don't", ">", "<", "a\u200bb", "\r"]
)
SPACES = st.sampled_from(["", " ", "  ", "\n", "\n\n", " \n", "\t", "\n\n\n"])
TEXTS = st.lists(st.tuples(SPACES, WORDS, SPACES), max_size=4).map(lambda w: "".join("".join(x) for x in w))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.sampled_from(["", "3", "naïve", " pad ", "x\ny", "None"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=3,
)
NAME_PAIRS = st.sampled_from([["get_weather", "search"], ["search", "search"]])
ARGUMENTS = st.dictionaries(st.sampled_from(["city", "n", "options", "größe"]), VALUES, max_size=3)
TOOLS = [
    {
        "name": name,
        "description": "Looks up the wéather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where"},
                "n": {"type": "integer"},
                "unit": {"type": "string", "enum": ["C", "F"]},
            },
            "required": ["city"],
        },
    }
    for name in ("get_weather", "search")
]

NOTED = {"description": st.sampled_from(["a dé", " b "]), "nullable": st.booleans()}
SCHEMAS = st.deferred(
    lambda: st.one_of(
        st.fixed_dictionaries(
            {"type": st.just("string")},
            optional=NOTED | {"enum": st.just(["C", "F"]), "default": st.sampled_from(["x", ""])},
        ),
        st.fixed_dictionaries(
            {"type": st.sampled_from(["number", "integer", "boolean", ["string", "null"], ["object", "object"]])},
            optional=NOTED | {"default": st.sampled_from([1, True, None])},
        ),
        st.fixed_dictionaries({"type": st.just("array")}, optional=NOTED | {"items": SCHEMAS}),
        st.fixed_dictionaries(
            {"type": st.just("object")},
            optional={"properties": PROPERTIES, "required": st.just(["x"]), "additionalProperties": st.booleans()},
        ),
        st.fixed_dictionaries({"oneOf": st.lists(SCHEMAS, min_size=1, max_size=2)}, optional=NOTED),
        st.fixed_dictionaries({"anyOf": st.lists(SCHEMAS, min_size=1, max_size=2)}),
        st.just({}),
    )
)
PROPERTIES = st.dictionaries(st.sampled_from("xyz"), SCHEMAS, max_size=2)
DECLARATIONS = st.fixed_dictionaries(
    {"name": st.just("f"), "description": st.sampled_from(["does", " x ", ""])},
    optional={
        "parameters": st.fixed_dictionaries(
            {"type": st.just("object"), "properties": PROPERTIES}, optional={"required": st.just(["x"])}
        ),
        "strict": st.booleans(),
    },
)


@st.composite
def conversations(
    draw: st.DrawFn,
    *,
    system: bool = True,
    tools: bool = True,
    reasoning: bool = True,
    parallel: bool = True,
    late_system: bool = False,
    text: st.SearchStrategy[str] = TEXTS,
    final: str | None = "assistant",
    max_turns: int = 3,
) -> list[dict[str, Any]]:
    """Draw a conversation of OpenAI-style messages.

    It has an optional system message, then turns of a user message, tool calls with results, and an answer.
    """
    messages: list[dict[str, Any]] = []
    if system and draw(st.booleans()):
        messages.append({"role": "system", "content": draw(text)})
    for turn in range(draw(st.integers(1, max_turns))):
        if late_system and turn and draw(st.integers(0, 3)) == 0:
            messages.append({"role": "system", "content": draw(text)})
        messages.append({"role": "user", "content": draw(text)})
        for _ in range(draw(st.integers(0, 2)) if tools else 0):
            count = draw(st.integers(1, 2)) if parallel else 1
            calls = [
                {
                    "id": f"functions.{name}:{i}",
                    "type": "function",
                    "function": {"name": name, "arguments": draw(ARGUMENTS)},
                }
                for i, name in enumerate(draw(NAME_PAIRS)[:count])
            ]
            message = {"role": "assistant", "content": draw(text), "tool_calls": calls}
            if reasoning and draw(st.booleans()):
                message["reasoning_content"] = draw(text)
            messages.append(message)
            for call in calls:
                messages.append({"role": "tool", "content": draw(text), "tool_call_id": call["id"]})
        message = {"role": "assistant", "content": draw(text)}
        if reasoning and draw(st.booleans()):
            message["reasoning_content"] = draw(text)
        messages.append(message)
    if final is None:
        return messages[: draw(st.integers(1, len(messages)))]
    return messages


# ---- official templates


def template_of(path: str) -> str:
    file = MODELS / path
    if not file.is_file():
        pytest.skip(f"no {path} in TINKERLOOP_MODELS")
    return file.read_text()


def official(
    template: str, messages: list[dict[str, Any]], tools: Any = None, *, sort_tools: bool = False, **kwargs: Any
) -> str:
    """Return the text that transformers renders with the official chat template."""
    wrapped = [{"type": "function", "function": tool} for tool in tools] if tools else None
    wrapped = json.loads(json.dumps(wrapped, sort_keys=True)) if sort_tools else wrapped
    return everyones_tokenizer().apply_chat_template(
        messages, tools=wrapped, chat_template=template, tokenize=False, **kwargs
    )


def ids_with_seams(ours: Renderer, conversation: Any, text: str, tokenizer: Any) -> list[int]:
    """Return token ids of a template's text, which is encoded in separate pieces, split where each reply starts."""
    at, ids = 0, []
    for _, piece in ours.pieces(conversation):
        if piece is SEAM:
            ids.append(at)
        at += len(piece.text)
    cuts = [0, *ids, len(text)]
    encoded = [tokenizer.encode(text[a:b], add_special_tokens=False) for a, b in pairwise(cuts)]
    return [token for part in encoded for token in part]


def stringified(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a copy of the messages whose tool arguments are JSON strings, as in OpenAI's API."""
    copied = json.loads(json.dumps(messages))
    for message in copied:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return copied
