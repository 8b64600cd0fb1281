"""Renderings equal the official templates, token for token, on generated conversations.

These tests need the templates (see `chats.MODELS`); `test_goldens` checks fixed conversations without them.
`pytest -m soak` runs 500 conversations for each template, and uses the real tokenizers if they are available. `differs`
lists the intended differences from the templates. The table in sdk/tinkerloop/renderers/README.md gives their reasons,
and `test_differences` checks the table.
"""

from __future__ import annotations

import contextlib
import copy
import time
import zlib
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.renderers.chats import (
    DECLARATIONS,
    MODELS,
    TOOLS,
    conversations,
    decode,
    everyones_tokenizer,
    ids_with_seams,
    nfc,
    official,
    stringified,
    template_of,
)
from tinkerloop.errors import RenderError
from tinkerloop.renderers import Options, get_renderer
from tinkerloop.renderers.families.gpt_oss import GptOssOptions
from tinkerloop.renderers.families.llama3 import Llama3Options
from tinkerloop.renderers.kimi_declarations import typescript_declarations
from tinkerloop.renderers.template import TemplateOptions
from tinkerloop.tokenizers import get_tokenizer

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A renderer, the template with the same text, the template's variables, and the conversations it accepts."""

    name: str
    template: str
    variables: dict[str, Any] = field(default_factory=dict)
    chats: dict[str, Any] = field(default_factory=dict)
    options: Options | None = None
    tokenizer: str | None = None
    ends_with: str = ""
    """The separator that the template writes even after the last turn of a finished conversation."""
    tools: bool = True

    def __str__(self) -> str:
        return self.name


PLAIN = {"reasoning": False}
LATE = {"late_system": True}
ONE_CALL = {"parallel": False}
DATED = ("granite3", "mistral_v7_tekken", "mistral_v11", "mistral_v13")
"""Formats without the default system message of their template, most of which contain the date."""
WITHOUT_TEXT = {"text_with_calls": False}
CHATML = {"ends_with": "\n"}
MISTRAL = {"bos_token": "<s>", "eos_token": "</s>"}
TODAY = time.strftime("%Y-%m-%d")  # needed by the gpt-oss template
CASES = [
    Case("qwen2_5", "../templates/hf_qwen2.5-0.5b-instruct.jinja", {}, LATE | PLAIN, tokenizer="qwen3", **CHATML),
    Case("qwen3_coder", "../templates/ik_Qwen3-Coder.jinja", {}, LATE | PLAIN, tokenizer="qwen3", **CHATML),
    Case("qwen3", "qwen3/chat_template.jinja", chats=LATE, tokenizer="qwen3", **CHATML),
    Case(
        "qwen3_disable_thinking",
        "qwen3/chat_template.jinja",
        {"enable_thinking": False},
        LATE | PLAIN,
        tokenizer="qwen3",
        **CHATML,
    ),
    Case("qwen3_thinking", "qwen3-thinking-2507/chat_template.jinja", chats=LATE, tokenizer="qwen3", **CHATML),
    Case("qwen3_instruct", "qwen3-instruct-2507/chat_template.jinja", {}, LATE | PLAIN, tokenizer="qwen3", **CHATML),
    Case("qwen3_vl_instruct", "qwen3-vl/chat_template.jinja", chats=PLAIN, tokenizer="qwen3", **CHATML),
    Case("qwen3_5", "qwen3.5/chat_template.jinja", **CHATML),
    Case("qwen3_5_disable_thinking", "qwen3.5/chat_template.jinja", {"enable_thinking": False}, PLAIN, **CHATML),
    Case(
        "deepseek_r1_distill",
        "../templates/hf_deepseek-r1-distill-qwen-7b.jinja",
        {"bos_token": "<｜begin▁of▁sentence｜>"},
        {"tools": False},
        tokenizer="deepseek-v3.1",
        tools=False,
    ),
    Case(
        "deepseekv3",
        "deepseek-v3.1/chat_template.jinja",
        {"bos_token": "<｜begin▁of▁sentence｜>"},
        LATE | PLAIN,
        tokenizer="deepseek-v3.1",
        tools=False,
    ),
    Case(
        "deepseekv3_thinking",
        "deepseek-v3.1/chat_template.jinja",
        {"bos_token": "<｜begin▁of▁sentence｜>", "thinking": True},
        LATE | PLAIN,
        tokenizer="deepseek-v3.1",
        tools=False,
    ),
    Case(
        "llama3",
        "llama3.1/chat_template.jinja",
        {"bos_token": "<|begin_of_text|>"},
        PLAIN | ONE_CALL,
        Llama3Options("26 Jul 2024"),
        "llama3.1",
    ),
    Case("mistral_v3", "../templates/hf_mistral-7b-instruct-v0.3.jinja", MISTRAL, PLAIN | WITHOUT_TEXT),
    Case(
        "mistral_v3_tekken", "../templates/ik_mistralai-Mistral-Nemo-Instruct-2407.jinja", MISTRAL, PLAIN | WITHOUT_TEXT
    ),
    Case(
        "mistral_v7_tekken",
        "../templates/axo_mistral_v7_tekken.jinja",
        MISTRAL,
        LATE | PLAIN | {"tools": False},
        tools=False,
    ),
    Case("mistral_v11", "../templates/ik_Mistral-Small-3.2-24B-Instruct-2506.jinja", MISTRAL, PLAIN | WITHOUT_TEXT),
    Case("mistral_v13", "../templates/ik_mistralai-Ministral-3-14B-Reasoning-2512.jinja", MISTRAL, PLAIN),
    Case("mistral_v13_reasoning", "../templates/ik_mistralai-Ministral-3-14B-Reasoning-2512.jinja", MISTRAL),
    Case("kimi_k2", "kimi-k2-thinking/chat_template.jinja", chats=LATE, tokenizer="kimi-k2.6"),
    Case("kimi_k26", "kimi-k2.6/chat_template.jinja", chats=LATE, tokenizer="kimi-k2.6"),
    Case(
        "kimi_k26_disable_thinking",
        "kimi-k2.6/chat_template.jinja",
        {"thinking": False},
        LATE | PLAIN,
        tokenizer="kimi-k2.6",
    ),
    Case(
        "kimi_k26_preserve_thinking",
        "kimi-k2.6/chat_template.jinja",
        {"preserve_thinking": True},
        LATE,
        tokenizer="kimi-k2.6",
    ),
    Case("glm4_5", "../templates/ik_GLM-4.6.jinja", chats=LATE),
    Case("glm4_5_disable_thinking", "../templates/ik_GLM-4.6.jinja", {"enable_thinking": False}, LATE | PLAIN),
    Case("glm4_7", "../templates/ik_GLM-4.7-Flash.jinja", chats=LATE),
    Case("glm4_7_disable_thinking", "../templates/ik_GLM-4.7-Flash.jinja", {"enable_thinking": False}, LATE | PLAIN),
    Case("glm4_7_preserve_thinking", "../templates/ik_GLM-4.7-Flash.jinja", {"clear_thinking": False}, LATE),
    Case("nemotron3", "nemotron-3/nano.jinja", chats=LATE, **CHATML),
    Case("nemotron3_disable_thinking", "nemotron-3/nano.jinja", {"enable_thinking": False}, PLAIN, **CHATML),
    Case("nemotron3_preserve_thinking", "nemotron-3/nano.jinja", {"truncate_history_thinking": False}, **CHATML),
    Case("nemotron3_low_thinking", "nemotron-3/super.jinja", {"low_effort": True}, **CHATML),
    Case("nemotron3_ultra", "nemotron-3/ultra.jinja", **CHATML),
    Case("nemotron3_ultra_medium_thinking", "nemotron-3/ultra.jinja", {"medium_effort": True}, **CHATML),
    Case(
        "gemma3",
        "../templates/hf_gemma-3-4b-it.jinja",
        {"bos_token": "<bos>"},
        PLAIN | {"tools": False},
        tools=False,
        **CHATML,
    ),
    Case("gemma4", "../templates/axo_gemma4.jinja", {"bos_token": "<bos>"}, LATE | PLAIN | WITHOUT_TEXT, **CHATML),
    Case("gemma4_e4b", "../templates/axo_gemma4.jinja", {"bos_token": "<bos>"}, LATE | PLAIN | WITHOUT_TEXT, **CHATML),
    Case(
        "gemma4_thinking",
        "../templates/ik_google-gemma-4-31B-it.jinja",
        {"bos_token": "<bos>", "enable_thinking": True},
        LATE | WITHOUT_TEXT,
        **CHATML,
    ),
    Case(
        "granite3",
        "../templates/hf_granite-3.1-8b-instruct.jinja",
        {},
        LATE | PLAIN | {"tools": False},
        tools=False,
        **CHATML,
    ),
    Case("llama4", "../templates/axo_llama4.jinja", {"bos_token": "<|begin_of_text|>"}, LATE | PLAIN),
    Case(
        "gpt_oss_medium_reasoning",
        "gpt-oss/chat_template.jinja",
        chats=ONE_CALL,
        options=GptOssOptions("medium", TODAY),
        tokenizer="gpt-oss",
    ),
]


def render_officially(case: Case, messages: Messages, tools: Any, *, prompting: bool) -> str:
    """Return the text that the publisher's `apply_chat_template` gives.

    Kimi's tokenizer class sorts the keys of the tools. Since K2.5, it also passes the tools as TypeScript;
    `test_kimi_declarations` checks this text. To the last reply of GLM, the token is added that ends it. The templates
    of Gemma 4 E2B and E4B differ from those of larger models only by the empty block at the end of prompts.
    """
    variables = case.variables
    if case.name.startswith("kimi") and tools:
        variables = variables | ({} if case.name == "kimi_k2" else {"tools_ts_str": typescript_declarations(tools)})
    template = template_of(case.template)
    written = official(
        template, messages, tools, sort_tools=case.name.startswith("kimi"), add_generation_prompt=prompting, **variables
    )
    if case.name == "gemma4_e4b":
        return written.removesuffix("<|channel>thought\n<channel|>")
    if case.name.startswith("glm4") and not prompting and messages[-1]["role"] == "assistant":
        # The token of the next role ends a reply. After the last reply the template does not write it.
        return written + ("<|observation|>" if messages[-1].get("tool_calls") else "<|user|>")
    return written


def last_answer(messages: Messages) -> int:
    """Return the index of the last reply without tool calls before the trained reply; -1 if there is none."""
    answers = (i for i, m in enumerate(messages[:-1]) if m["role"] == "assistant" and "tool_calls" not in m)
    return max(answers, default=-1)


def differs(case: Case, messages: Messages) -> bool:
    """Return True if our text for this finished conversation differs from the template's on purpose."""
    reasoning = messages[-1].get("reasoning_content") or ""
    if case.name.startswith("kimi") and "preserve" not in case.name:
        # The template empties the reasoning of the trained reply, and of the tool calls before it.
        return any(m.get("reasoning_content") for m in messages[last_answer(messages) + 1 :])
    if case.name == "deepseek_r1_distill":
        return True  # the document has no reasoning block, which the template's prompt opens
    if case.name == "deepseekv3_thinking":
        # After a user message, the template's prompt opens a reasoning block, but its document closes it at once.
        return next(m["role"] for m in reversed(messages[:-1]) if m["role"] != "system") == "user"
    if case.name.startswith(("glm4_7", "nemotron3")) and "disable" not in case.name:
        # The document does not continue the prompt, which opens a reasoning block.
        return not (reasoning if case.name.startswith("glm4_7") else reasoning.strip())
    if case.name == "gemma4":
        return messages[-2]["role"] != "tool"  # the document has no reasoning block, which the template's prompt has
    if case.name == "gemma4_thinking":
        return bool(reasoning)  # the template drops the reasoning of replies without calls
    if case.name.startswith("gpt_oss"):
        # The template drops the reasoning of tool calls before the trained answer.
        led = messages[last_answer(messages) + 1 :]
        return any(m.get("tool_calls") and (m["content"] or m.get("reasoning_content")) for m in led)
    return False


def fitted(case: Case, messages: Messages) -> tuple[Messages, Messages]:
    """Return the messages for the renderer and for the template, without what the template rejects or drops."""
    ours = copy.deepcopy(messages)
    for message in ours:
        either = case.name.startswith("gpt_oss") and message.get("reasoning_content")
        if message.get("tool_calls") and (case.name == "llama3" or either):
            message["content"] = ""
    if case.name in DATED and ours[0]["role"] != "system":
        ours.insert(0, {"role": "system", "content": "s"})
    theirs = copy.deepcopy(ours)
    if case.name.startswith("mistral"):
        return _fitted_for_mistral(case.name, ours)
    if case.name.startswith(("deepseek", "kimi")):
        theirs = stringified(theirs)
    if case.name.startswith("gpt_oss"):
        for message in theirs:
            if "reasoning_content" in message:
                message["thinking"] = message.pop("reasoning_content")
    return ours, theirs


def _fitted_for_mistral(name: str, messages: Messages) -> tuple[Messages, Messages]:
    """Return messages with ids as Mistral's templates require them, for the renderer and for the template.

    These templates compare messages with the last user message, so an earlier one must differ. The template of v3
    drops a system message that no user message follows at the end, so it is given the text that the renderer writes
    into the last user message.
    """
    ours = copy.deepcopy(messages)
    for i, message in enumerate(ours):
        if message["role"] == "user":
            message["content"] += f" {i}"
        for call in message.get("tool_calls", ()):
            call["id"] = f"{zlib.crc32(call['id'].encode()):09d}"[-9:]
        if message["role"] == "tool":
            message["tool_call_id"] = f"{zlib.crc32(message['tool_call_id'].encode()):09d}"[-9:]
    theirs = copy.deepcopy(ours)
    if name.startswith("mistral_v13"):
        for message in theirs:
            parts = [{"type": "text", "text": message["content"]}]
            if reasoning := message.pop("reasoning_content", None):
                parts.insert(0, {"type": "thinking", "thinking": reasoning})
            message["content"] = parts if message["role"] == "assistant" else message["content"]
    if name.startswith("mistral_v3") and ours[0]["role"] == "system" and ours[-1]["role"] != "user":
        system, *theirs = theirs
        last_user = [message for message in theirs if message["role"] == "user"][-1]
        last_user["content"] = f"{system['content']}\n\n{last_user['content']}"
    return ours, theirs


def check(case: Case, tokenizer: Any, data: st.DataObject) -> None:
    prompting, declare = data.draw(st.booleans()), data.draw(st.booleans())
    messages = data.draw(conversations(**case.chats))
    while prompting and messages[-1]["role"] == "assistant":
        messages.pop()
    tools = TOOLS if declare and case.tools else None
    ours, theirs = fitted(case, messages)
    wanted = render_officially(case, theirs, tools, prompting=prompting)
    renderer = get_renderer(case.name, tokenizer, options=case.options)
    if prompting:
        tokens = renderer.build_generation_prompt(ours, tools=tools).to_ints()
    else:
        tokens = renderer.build_supervised_example(ours, tools=tools).tokens
        wanted = wanted.removesuffix(case.ends_with)
        if differs(case, messages):
            assert nfc(renderer.decode(tokens)) != nfc(wanted)
            return
    assert nfc(renderer.decode(tokens)) == nfc(wanted)  # compare after NFC, because only some tokenizers normalise
    if prompting:
        assert tokens == tokenizer.encode(wanted, add_special_tokens=False)
    else:  # no token of ours spans the point where sampling starts
        assert tokens == ids_with_seams(renderer, renderer.read(ours, tools), wanted, tokenizer)


def run(case: Case, tokenizer: Any, examples: int) -> None:
    template_of(case.template)  # skips the test if the template is absent

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test(data: st.DataObject) -> None:
        check(case, tokenizer, data)

    test()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tokens_equal_the_official_template(case: Case) -> None:
    run(case, everyones_tokenizer(), 10)


@pytest.mark.parametrize("case", [case for case in CASES if case.tools], ids=str)
def test_declarations_of_tools_equal_the_official_template(case: Case) -> None:
    template_of(case.template)  # skips the test if the template is absent
    renderer = get_renderer(case.name, everyones_tokenizer(), options=case.options)
    messages, theirs = fitted(case, [{"role": "user", "content": "q"}])

    @settings(max_examples=25, suppress_health_check=list(HealthCheck))
    @given(tools=st.lists(DECLARATIONS, min_size=1, max_size=2))
    def test(tools: list[dict[str, Any]]) -> None:
        wanted = render_officially(case, theirs, tools, prompting=True)
        assert renderer.decode(renderer.build_generation_prompt(messages, tools=tools).to_ints()) == nfc(wanted)

    test()


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tokens_equal_the_official_template_on_500_conversations(case: Case) -> None:
    run(case, everyones_tokenizer(), 500)


@pytest.mark.soak
@pytest.mark.parametrize("case", [case for case in CASES if case.tokenizer], ids=str)
def test_ids_equal_with_the_real_tokenizer_on_500_conversations(case: Case) -> None:
    template_of(case.template)
    run(case, get_tokenizer(str(MODELS / str(case.tokenizer))), 500)


CALL = {"id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": {"city": "Bern", "n": 3}}}
REPLIES = [{"reasoning_content": "because"}, {"content": "", "tool_calls": [CALL]}]
REPLIES.append(REPLIES[0] | REPLIES[1])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_renderer_for_any_template_gives_each_token_of_a_reply_the_part_that_the_family_gives_it(case) -> None:
    variables = tuple((name, value) for name, value in case.variables.items() if not name.endswith("_token"))
    options = TemplateOptions(template_of(case.template), variables, date.today())
    family = get_renderer(case.name, everyones_tokenizer(), options=case.options)
    compared = 0
    for reply in REPLIES:
        messages, _ = fitted(case, [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", **reply}])
        with contextlib.suppress(RenderError):  # not every template or family can write each reply
            ours = get_renderer("template", everyones_tokenizer(), options=options)
            examples = [r.build_supervised_example(messages) for r in (ours, family)]
            if examples[0].tokens[:-1] != examples[1].tokens[:-1]:  # other stop tokens need another eos token
                continue
            (at,) = (examples[0].weights > 0).nonzero()
            # White space between reasoning and a call may belong to either.
            at = [i for i in at[:-1] if ours.decode(examples[0].tokens[i : i + 1]).strip()]
            assert examples[0].parts[at].tolist() == examples[1].parts[at].tolist()
            compared += 1
    if not compared:
        pytest.skip("the template writes no such reply as the family does")


@pytest.mark.parametrize("case", [case for case in CASES if case.name.startswith("qwen3")], ids=str)
@pytest.mark.parametrize("space", ["", "\n"])
def test_a_users_message_is_a_tools_result_where_the_template_sees_one(case: Case, space: str) -> None:
    results = {"role": "user", "content": f"<tool_response>r</tool_response>{space}"}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\na"},
        results,
    ]
    wanted = official(template_of(case.template), messages, add_generation_prompt=True, **case.variables)
    ours = get_renderer(case.name, everyones_tokenizer(), options=case.options)
    assert ours.decode(ours.build_generation_prompt(messages).to_ints()) == wanted


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5"])
@pytest.mark.parametrize(
    "content", ["<think>x</think> a", " <think>\n x\n</think>\n\n a ", "x</think>a", "<think></think>"]
)
def test_inline_reasoning_is_extracted_as_the_template_does(name: str, content: str) -> None:
    case = next(case for case in CASES if case.name == name)
    ours = get_renderer(name, everyones_tokenizer())
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": content}]
    wanted = official(template_of(case.template), messages, **case.variables).removesuffix(case.ends_with)
    assert ours.decode(ours.build_supervised_example(messages).tokens) == wanted


@pytest.mark.parametrize("name", ["qwen3", "qwen3_disable_thinking", "qwen3_thinking"])
@pytest.mark.parametrize("reasoning", ["", "\n", "\n\n", " "])
def test_a_reply_before_the_last_has_a_block_for_reasoning_of_nothing_but_newlines(name: str, reasoning: str) -> None:
    case = next(case for case in CASES if case.name == name)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": reasoning},
        {"role": "tool", "content": "r", "tool_call_id": "1"},
        {"role": "assistant", "content": "a"},
    ]
    wanted = official(template_of(case.template), messages, **case.variables).removesuffix(case.ends_with)
    ours = get_renderer(name, everyones_tokenizer())
    assert ours.decode(ours.build_supervised_example(messages).tokens) == wanted
    last = [messages[0], {"role": "assistant", "content": "a", "reasoning_content": reasoning.strip(" ")}]
    wanted = official(template_of(case.template), last, **case.variables).removesuffix(case.ends_with)
    assert ours.decode(ours.build_supervised_example(last).tokens) == wanted


def test_the_one_seam_is_where_sampling_starts() -> None:
    """A newline at the start of a reply joins the header's newline in one token in history, but not in training."""
    ours = get_renderer("qwen3_instruct", everyones_tokenizer())
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "\na"}]
    trained = ours.build_supervised_example(messages).tokens
    history = ours.build_generation_prompt([*messages, {"role": "user", "content": "r"}]).to_ints()
    prompt = ours.build_generation_prompt(messages[:1]).to_ints()
    assert trained[: len(prompt)] == prompt
    assert history[: len(prompt)] != prompt
    assert decode(history).startswith(decode(trained))
