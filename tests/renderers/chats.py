"""Random conversations, a tokenizer and the official chat templates, for the tests of renderers.

Control tokens are tokens such as <|im_end|> that structure a conversation.
"""

from __future__ import annotations

import functools
import json
import os
import re
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
from tinkerloop.testing import RENDERER_CHECKS, FormatClaims, random_conversations
from tinkerloop.testing.format_claims import DECLARED_TOOLS as TOOLS
from tinkerloop.testing.message_strategies import CONTROL, TEXTS

MODELS = Path(os.environ.get("TINKERLOOP_MODELS") or Path(__file__).parents[2] / "../shared/models")
CHECKS = [check for check in RENDERER_CHECKS if check != "tokens_equal_the_template"]
"""The checks that need no chat template. `test_parity.py` compares with those of the models."""
NAMES = [name for name in get_registered_renderer_names() if name in presets()]

VISION = [name for name in NAMES if name.startswith(("qwen3_vl", "qwen3_5", "qwen3_8", "kimi_k25", "kimi_k26"))]
REASONING = {
    "reasoning",
    "reasoning_with_calls",
    "text_and_reasoning_with_calls",
    "reasoning_after_results",
}
CALLS = {"tools", "calls", "parallel_calls", "text_with_calls"}
UNCLAIMED = {
    r"role_colon": {*REASONING, *CALLS},
    r"gemma3": {*REASONING, *CALLS, "later_system"},
    r"granite3": {*REASONING, *CALLS},
    r"llama3": {*REASONING, "parallel_calls", "text_with_calls"},
    r"gpt_oss.*": {"parallel_calls", "later_system"},
    r"mistral_v3.*": {*REASONING, "text_with_calls", "later_system"},
    r"mistral_v7_tekken": {*REASONING, *CALLS},
    r"deepseek_r1_distill": {*REASONING, *CALLS, "later_system"} - {"reasoning"},
    r"deepseekv3_thinking": {"reasoning_after_results"},
    r"deepseekv3|gemma4|gemma4_e4b|llama4|mistral_v11|mistral_v13|qwen2_5|qwen3_coder|.*_disable_thinking": REASONING,
}
"""What the formats, given as regular expressions, cannot express. All others can express everything."""
SORTING = ("gemma4", "gemma4_e4b", "gemma4_thinking", "tml_v0")
"""The names of formats that sort the arguments of calls."""
TRIMMING = re.compile(r"gemma3|gemma4.*|glm4.*|glm5_3.*|llama3|mistral_v3|nemotron3.*|qwen3_[58].*")
"""The names of formats that trim the texts of replies."""
WITHOUT_NEWLINES = (
    "qwen3", "qwen3_disable_thinking", "qwen3_instruct", "qwen3_thinking", "qwen3_vl", "qwen3_vl_instruct", "template",
)  # fmt: skip
"""The names of formats that trim newlines, and no spaces, at the start of the texts of replies, or of reasoned ones."""

__all__ = ["CONTROL", "TEXTS", "TOOLS"]

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
    from tinkerloop.tokenizers.notations import byte_of_character

    characters = {byte: character for character, byte in byte_of_character().items()}
    spelled = functools.partial("".join)

    def byte_level(text: str) -> str:
        return spelled(characters[byte] for byte in text.encode())

    pairs = [("\n", "\n"), ("\n\n", "\n\n"), ("\n\n", "\n"), (" ", " "), (">", "\n"), ("t", "h"), ("th", "e")]
    pairs += [(" ", "t"), ("e", "r"), ("i", "n"), ("o", "n"), (" ", "a"), ("u", "s"), ("us", "er")]
    merges = [(byte_level(a), byte_level(b)) for a, b in pairs]
    vocab = byte_of_character().copy()
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


SPACING = ("never", "first", "always", "legacy")
"""How SentencePiece tokenizers write a space before a text (see `tokenizers/places.py`). "legacy" is a normalizer."""


@functools.cache
def sentencepiece_tokenizer(spacing: str, chat_template: str = A_TEMPLATE, **flags: bool) -> PreTrainedTokenizerFast:
    """Return a tokenizer like those of Llama 2, Mistral 7B and Gemma: BPE without splits, with bytes as `<0x0A>`.

    Args:
        flags: the flags of the control tokens, such as `rstrip`.
    """
    pairs = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "a"), ("▁", "▁"), ("e", "r"), ("c", "a"), ("f", "é")]
    pairs += [("ca", "fé"), ("u", "s"), ("us", "er")]
    characters = [*map(chr, range(0x21, 0x7F)), "▁", *"éüßĠĊâ"]
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *characters, *(a + b for a, b in pairs)]
    vocab = {token: i for i, token in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=pairs, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if spacing == "legacy":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=spacing, split=False)
    core.decoder = decoders.Sequence(steps)
    control = [token for token in CONTROL if "▁" not in token]  # in text, this character becomes a space
    core.add_tokens([AddedToken(token, special=True, **{"normalized": False, **flags}) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
        bos_token="<s>",
        eos_token="</s>",
    )


@functools.cache
def renderer(name: str) -> Renderer:
    """Return a renderer that trains tags in the text of replies as ordinary text, so that tests can quote tags."""
    return get_renderer(name, everyones_tokenizer(), tags_in_replies="text")


@functools.cache
def claims(name: str) -> FormatClaims:
    """Return what a format must express: everything but what `UNCLAIMED` lists."""
    unclaimed = next((rest for prefix, rest in UNCLAIMED.items() if re.fullmatch(prefix, name)), frozenset())
    return FormatClaims(
        **dict.fromkeys(unclaimed, False),
        roles=frozenset(renderer(name).roles),
        images=name in VISION,
        spaces=not TRIMMING.fullmatch(name),
        newlines=not TRIMMING.fullmatch(name) and name not in WITHOUT_NEWLINES,
        argument_order=name not in SORTING,
    )


def decode(tokens: list[int], tokenizer: Any = None) -> str:
    return (tokenizer or everyones_tokenizer()).decode(tokens, skip_special_tokens=False)


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


# ---- conversations

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


def conversations(
    *,
    tools: bool = True,
    reasoning: bool = True,
    parallel: bool = True,
    late_system: bool = False,
    text_with_calls: bool = True,
) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Return a strategy for conversations with or without tool calls, reasoning, parallel calls, and late systems."""
    return random_conversations(
        FormatClaims(
            calls=tools,
            reasoning=reasoning,
            reasoning_with_calls=reasoning,
            parallel_calls=parallel,
            text_with_calls=text_with_calls,
            text_and_reasoning_with_calls=text_with_calls,
            later_system=late_system,
        )
    )


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
