"""Check the README's table of differences from the official templates in both directions.

Every row has an example in this module, in which our text and the template's differ as the row says. Every example has
a row. `test_parity` shows that there are no other differences.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from tests.renderers.chats import MODELS, TOOLS, decode, everyones_tokenizer, official, template_of
from tests.renderers.test_parity import CASES, TODAY
from tinkerloop import renderers
from tinkerloop.errors import RenderError
from tinkerloop.renderers import Options, get_renderer
from tinkerloop.renderers.families.gpt_oss import GptOssOptions
from tinkerloop.renderers.families.llama3 import Llama3Options
from tinkerloop.renderers.template import TemplateOptions

README = Path(renderers.__file__).parent / "README.md"
CASE = {case.name: case for case in CASES}
USER = {"role": "user", "content": "q"}
REPLY = {"role": "assistant", "content": "a"}
REASONED = {"role": "assistant", "content": "a", "reasoning_content": "hm"}
CALL = {"id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": {}}}
NINE = CALL | {"id": "123456789"}
WRITTEN = CALL | {"function": {"name": "f", "arguments": "{}"}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "r", "tool_call_id": "functions.f:0"}
LATE = {"role": "system", "content": "s"}
ANSWERED = (
    " to=functions.f<|channel|>commentary json<|message|>{}<|call|><|start|>functions.f to=assistant"
    '<|channel|>commentary<|message|>"r"<|end|><|start|>assistant<|channel|>final<|message|>a<|return|>'
)
ASKED = (
    "\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final. Channel must be included for every "
    "message.<|end|><|start|>user<|message|>q<|end|><|start|>assistant"
)
KIMI_ANSWERED = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
    "<|tool_calls_section_end|><|im_end|><|im_system|>tool<|im_middle|>## Return of functions.f:0\nr<|im_end|>"
    "<|im_assistant|>assistant<|im_middle|><think></think>a<|im_end|>"
)
GLM_ANSWERED = "<tool_call>f</tool_call><|observation|><tool_response>r</tool_response><|assistant|></think>a"
GEMMA_ANSWERED = '<|tool_call>call:f{}<tool_call|><|tool_response>response:f{value:<|"|>r<|"|>}<tool_response|>a'
ENDS_WITH_ROLES = (
    "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|assistant|>' }}{{ m.content }}{% endfor %}"
    "{{ '<|assistant|>' if add_generation_prompt }}"
)
"""A template as in GLM 4.5 to 5.2, in which no token ends the last reply."""
_DECLARED = json.dumps([{"type": "function", "function": TOOLS[0]}], ensure_ascii=False)
DECLARED = f"[AVAILABLE_TOOLS]{_DECLARED}[/AVAILABLE_TOOLS]"
"""The declaration of a tool as Mistral writes it."""
SAME = "the same text in other tokens"


@dataclass(frozen=True)
class Difference:
    """A conversation for which our text and the template's text end differently. None: rendering raises an error."""

    format: str
    says: str
    """A part of the row's text."""
    name: str
    messages: list[dict[str, Any]]
    ours: str | None
    theirs: str | None
    prompting: bool = False
    tools: bool = False
    options: Options | None = None

    def __str__(self) -> str:
        return f"{self.name}-{self.says.replace(' ', '_')}"


HEAD = "<|start_header_id|>"
ROWS = [
    Difference(
        "all", "never becomes a control token", "kimi_k2", [{"role": "user", "content": "<|im_end|>"}, REPLY],
        "<|im_end|><|im_end|><|im_assistant|>assistant<|im_middle|><think></think>a<|im_end|>", SAME,
    ),
    Difference(
        "all", "spells a tag of the format", "qwen3_instruct", [USER, REPLY | {"content": "<tool_call>"}],
        None, "assistant\n<tool_call><|im_end|>\n",
    ),
    Difference(
        "all with a separator between turns", "without the separator", "qwen3_instruct", [USER, REPLY],
        "\na<|im_end|>", "\na<|im_end|>\n",
    ),
    Difference(
        "all", "is encoded separately from its header", "qwen3_instruct",
        [USER, {"role": "assistant", "content": "\na"}], "assistant\n\na<|im_end|>", SAME,
    ),
    Difference(
        "all", "a prompt that follows an assistant message", "qwen3", [USER, REPLY],
        "assistant\na<|im_end|>\n<|im_start|>assistant\n",
        "assistant\n<think>\n\n</think>\n\na<|im_end|>\n<|im_start|>assistant\n", prompting=True,
    ),
    Difference(
        "all that extract inline reasoning", "only if it begins the text", "qwen3",
        [USER, {"role": "assistant", "content": "so <think>x</think>y"}, USER],
        "assistant\nso <think>x</think>y<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
        "assistant\ny<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", prompting=True,
    ),
    Difference(
        "all that extract inline reasoning", "and is the only one", "qwen3",
        [USER, {"role": "assistant", "content": "<think>x</think>y</think>z"}, USER],
        "assistant\n<think>x</think>y</think>z<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
        "assistant\nz<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", prompting=True,
    ),
    Difference(
        "all with reasoning off", "a last reply with reasoning raises an error", "qwen3_disable_thinking",
        [USER, REASONED], None, "<think>\nhm\n</think>\n\na<|im_end|>\n",
    ),
    Difference(
        "Qwen3 with reasoning off or always on", "without a user message", "qwen3_disable_thinking", [REPLY],
        "<|im_start|>assistant\n<think>\n\n</think>\n\na<|im_end|>", "<|im_start|>assistant\na<|im_end|>\n",
    ),
    Difference(
        "Qwen3 Instruct, text and VL", "the reasoning of a reply is written", "qwen3_instruct", [USER, REASONED],
        "<think>\nhm\n</think>\n\na<|im_end|>", "assistant\na<|im_end|>\n",
    ),
    Difference(
        "Qwen3-VL", "a system message that is not the first", "qwen3_vl_instruct", [USER, LATE, REPLY],
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>assistant\na<|im_end|>",
        "q<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n",
    ),
    Difference(
        "Qwen3.5", "without a user message", "qwen3_5", [REPLY],
        "<|im_start|>assistant\n<think>\n\n</think>\n\na<|im_end|>", None,
    ),
    Difference(
        "Qwen3.5", "a system message that is not the first", "qwen3_5", [USER, LATE, REPLY],
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\na<|im_end|>", None,
    ),
    Difference(
        "DeepSeek", "tools are declared", "deepseekv3", [USER],
        "directly without separators or spaces\n<｜User｜>q<｜Assistant｜></think>",
        "<｜begin▁of▁sentence｜><｜User｜>q<｜Assistant｜></think>", prompting=True, tools=True,
    ),
    Difference(
        "DeepSeek", "the reasoning of the last reply is kept", "deepseekv3_thinking", [USER, REASONED],
        "<think>hm</think>a<｜end▁of▁sentence｜>", "<｜Assistant｜></think>a<｜end▁of▁sentence｜>",
    ),
    Difference(
        "Gemma 3", "in which roles do not alternate", "gemma3", [USER, USER, REPLY],
        "user\nq<end_of_turn>\n<start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\na<end_of_turn>", None,
    ),
    Difference(
        "Gemma 3", "in which roles do not alternate", "gemma3", [LATE, REPLY],
        "<bos><start_of_turn>user\ns<end_of_turn>\n<start_of_turn>model\na<end_of_turn>", None,
    ),
    Difference(
        "DeepSeek R1 distills", "begins with a reasoning block", "deepseek_r1_distill", [USER, REASONED],
        "<｜Assistant｜><think>\nhm\n</think>\n\na<｜end▁of▁sentence｜>", "<｜Assistant｜>a<｜end▁of▁sentence｜>",
    ),
    Difference(
        "DeepSeek R1 distills", "begins with a reasoning block", "deepseek_r1_distill", [USER, REPLY],
        "<｜Assistant｜><think>\n\n</think>\n\na<｜end▁of▁sentence｜>", "<｜Assistant｜>a<｜end▁of▁sentence｜>",
    ),
    Difference(
        "DeepSeek R1 distills", "newlines after inline reasoning", "deepseek_r1_distill",
        [USER, REPLY | {"content": "<think>\nhm\n</think>\n\na"}, USER],
        "<｜Assistant｜>a<｜end▁of▁sentence｜><｜User｜>q<｜Assistant｜><think>\n",
        "<｜Assistant｜>\n\na<｜end▁of▁sentence｜><｜User｜>q<｜Assistant｜><think>\n", prompting=True,
    ),
    Difference(
        "DeepSeek R1 distills", "is not the first message raises", "deepseek_r1_distill", [USER, LATE, REPLY],
        None, "<｜begin▁of▁sentence｜>s<｜User｜>q<｜Assistant｜>a<｜end▁of▁sentence｜>",
    ),
    Difference(
        "DeepSeek R1 distills", "tools and calls raise", "deepseek_r1_distill", [USER], None,
        "<｜begin▁of▁sentence｜><｜User｜>q<｜Assistant｜><think>\n", prompting=True, tools=True,
    ),
    Difference(
        "Gemma 3", "is not the first message raises an error", "gemma3", [USER, LATE],
        None, "<start_of_turn>system\ns<end_of_turn>\n<start_of_turn>model\n", prompting=True,
    ),
    Difference(
        "llama3", "no system preamble with dates", "llama3", [USER],
        f"<|begin_of_text|>{HEAD}user<|end_header_id|>\n\nq<|eot_id|>{HEAD}assistant<|end_header_id|>\n\n",
        f"Today Date: 26 Jul 2024\n\n<|eot_id|>{HEAD}user<|end_header_id|>\n\nq<|eot_id|>"
        f"{HEAD}assistant<|end_header_id|>\n\n", prompting=True, options=Llama3Options(),
    ),
    Difference(
        "Gemma 4 with reasoning off", "begins with an empty reasoning block", "gemma4", [USER, REPLY],
        "<|turn>model\n<|channel>thought\n<channel|>a<turn|>", "<|turn>model\na<turn|>\n",
    ),
    Difference(
        "Gemma 4 with reasoning off", "loses its reasoning", "gemma4",
        [USER, CALLING | {"reasoning_content": "hm"}, RESULT, REPLY],
        f"<|turn>model\n{GEMMA_ANSWERED}<turn|>",
        f"<|turn>model\n<|channel>thought\nhm\n<channel|>{GEMMA_ANSWERED}<turn|>\n",
    ),
    Difference(
        "Gemma 4", "the reasoning of a last reply", "gemma4_thinking", [USER, REASONED],
        "<|channel>thought\nhm\n<channel|>a<turn|>", "<|turn>model\na<turn|>\n",
    ),
    Difference(
        "Gemma 4", "is written before them", "gemma4_thinking", [USER, CALLING | {"content": "t"}, RESULT],
        'model\nt<|tool_call>call:f{}<tool_call|><|tool_response>response:f{value:<|"|>r<|"|>}<tool_response|>',
        '<|tool_call>call:f{}<tool_call|><|tool_response>response:f{value:<|"|>r<|"|>}<tool_response|>t<turn|>\n',
        prompting=True,
    ),
    Difference(
        "Gemma 4", "stays in the reply", "gemma4_thinking", [USER, REPLY | {"content": "<|channel>x<channel|>y"}, USER],
        "model\n<|channel>x<channel|>y<turn|>\n<|turn>user\nq<turn|>\n<|turn>model\n",
        "model\ny<turn|>\n<|turn>user\nq<turn|>\n<|turn>model\n", prompting=True,
    ),
    Difference(
        "Gemma 4", "a reply that follows a reply", "gemma4_thinking", [USER, REPLY, REPLY],
        "model\na<turn|>\n<|turn>model\na<turn|>", "model\na<turn|>\na<turn|>\n",
    ),
    Difference(
        "Gemma 4", "a tool result that follows no call", "gemma4_thinking", [USER, REPLY, RESULT],
        None, "model\na<turn|>\n<|turn>model\n", prompting=True,
    ),
    Difference(
        "Mistral v3", "a system message is written into the last user message", "mistral_v3", [LATE, USER, REPLY],
        "<s>[INST] s\n\nq[/INST] a</s>", "<s>[INST] q[/INST] a</s>",
    ),
    Difference(
        "Mistral v7, v11, v13", "no default system message", "mistral_v7_tekken", [USER, REPLY],
        "<s>[INST]q[/INST]a</s>", "[/SYSTEM_PROMPT][INST]q[/INST]a</s>",
    ),
    Difference(
        "Mistral", "in which roles do not alternate", "mistral_v13", [LATE, USER, USER, REPLY],
        "<s>[SYSTEM_PROMPT]s[/SYSTEM_PROMPT][INST]q[/INST][INST]q[/INST]a</s>", None,
    ),
    Difference(
        "Mistral", "so are empty replies", "mistral_v13", [LATE, USER, REPLY | {"content": ""}],
        "<s>[SYSTEM_PROMPT]s[/SYSTEM_PROMPT][INST]q[/INST]</s>", None,
    ),
    Difference(
        "Mistral", "ids of any form", "mistral_v11", [LATE, USER, CALLING],
        "[INST]q[/INST][TOOL_CALLS]f[CALL_ID]functions.f:0[ARGS]{}</s>", None,
    ),
    Difference(
        "Mistral", "only the last user message declares tools", "mistral_v3_tekken", [USER, REPLY, USER],
        f"<s>[INST]q[/INST]a</s>{DECLARED}[INST]q[/INST]", f"<s>{DECLARED}[INST]q[/INST]a</s>{DECLARED}[INST]q[/INST]",
        prompting=True, tools=True,
    ),
    Difference(
        "Mistral v3", "a reply with both text and tool calls", "mistral_v3_tekken",
        [USER, {"role": "assistant", "content": "t", "tool_calls": [NINE]}],
        None, '[TOOL_CALLS][{"name": "f", "arguments": {}, "id": "123456789"}]</s>',
    ),
    Difference(
        "Mistral v3", "a system message that is not the first message", "mistral_v3", [USER, REPLY, LATE], None, None,
    ),
    Difference(
        "Mistral v11", "the text of a reply with tool calls", "mistral_v11",
        [LATE, USER, {"role": "assistant", "content": "t", "tool_calls": [NINE]}],
        "[/INST]t[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{}</s>", "[/INST][TOOL_CALLS]f[CALL_ID]123456789[ARGS]{}</s>",
    ),
    Difference(
        "DeepSeek", "beside tool calls and after a tool result", "deepseekv3",
        [USER, CALLING | {"tool_calls": [WRITTEN]}, RESULT, REPLY | {"content": "<think>x</think>a"}, USER],
        "<｜tool▁output▁end｜>a<｜end▁of▁sentence｜><｜User｜>q<｜Assistant｜></think>",
        "<｜tool▁output▁end｜><think>x</think>a<｜end▁of▁sentence｜><｜User｜>q<｜Assistant｜></think>", prompting=True,
    ),
    Difference(
        "llama3, llama4", "must begin with a user message", "llama4", [REPLY],
        None, "}\n\na<|eot|>", tools=True,
    ),
    Difference(
        "Granite 3", "no default system message", "granite3", [USER, REPLY],
        "<|start_of_role|>user<|end_of_role|>q<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>a<|end_of_text|>",
        "You are a helpful AI assistant.<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>q<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>a<|end_of_text|>\n",
    ),
    Difference(
        "Granite 3", "tools and calls raise", "granite3", [LATE, USER, CALLING],
        None, "assistant<|end_of_role|><|end_of_text|>\n",
    ),
    Difference(
        "llama3, llama4", "must begin with a user message", "llama3", [REPLY],
        None, "}\n\na<|eot_id|>", tools=True,
    ),
    Difference(
        "llama3, gpt-oss", "text or reasoning", "llama3", [USER, CALLING | {"content": "t"}],
        None, 'assistant<|end_header_id|>\n\n{"name": "f", "parameters": {}}<|eot_id|>',
    ),
    Difference(
        "llama3, gpt-oss", "text or reasoning", "llama3", [USER, REASONED],
        None, "assistant<|end_header_id|>\n\na<|eot_id|>",
    ),
    Difference(
        "llama3, gpt-oss", "a second tool call", "gpt_oss_medium_reasoning",
        [USER, CALLING | {"tool_calls": [CALL, CALL]}],
        None, "q<|end|><|start|>assistant to=functions.f<|channel|>commentary json<|message|>{}<|call|>",
    ),
    Difference(
        "llama3, gpt-oss", "a system message that is not the first", "gpt_oss_medium_reasoning", [USER, LATE, REPLY],
        None, "q<|end|><|start|>assistant<|channel|>final<|message|>a<|return|>",
    ),
    Difference(
        "gpt-oss", "no `Current date` line", "gpt_oss_medium_reasoning", [USER],
        f"Knowledge cutoff: 2024-06{ASKED}", f"Knowledge cutoff: 2024-06\nCurrent date: {TODAY}{ASKED}",
        prompting=True, options=GptOssOptions("medium"),
    ),
    Difference(
        "gpt-oss", "the reasoning of the tool calls before this answer", "gpt_oss_medium_reasoning",
        [USER, CALLING | {"thinking": "hm"}, RESULT, REPLY],
        f"q<|end|><|start|>assistant<|channel|>analysis<|message|>hm<|end|><|start|>assistant{ANSWERED}",
        f"q<|end|><|start|>assistant{ANSWERED}",
    ),
    Difference(
        "gpt-oss", "both the text and the reasoning", "gpt_oss_medium_reasoning",
        [USER, CALLING | {"content": "c", "thinking": "hm"}],
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary<|message|>c<|end|>"
        "<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{}<|call|>", None,
    ),
    Difference(
        "Kimi K2, K2.5, K2.6", "the reasoning of the last reply", "kimi_k26", [USER, REASONED],
        "<think>hm</think>a<|im_end|>", "<think></think>a<|im_end|>",
    ),
    Difference(
        "Kimi K2, K2.5, K2.6", "and of the tool calls that led to it", "kimi_k2",
        [USER, CALLING | {"reasoning_content": "hm"}, RESULT, REPLY],
        f"<think>hm</think>{KIMI_ANSWERED}", f"<think></think>{KIMI_ANSWERED}",
    ),
    Difference(
        "GLM-4.7", "a last reply without reasoning", "glm4_7", [USER, REPLY],
        "<|assistant|><think></think>a<|user|>", "<|assistant|></think>a",
    ),
    Difference(
        "GLM-4.5, 4.7", "ends with the token of the next role", "glm4_5", [USER, REPLY],
        "\n<think></think>\na<|user|>", "\n<think></think>\na",
    ),
    Difference(
        "GLM-4.5, 4.7 with reasoning off", "loses its reasoning", "glm4_7_disable_thinking",
        [USER, CALLING | {"reasoning_content": "hm"}, RESULT, REPLY],
        f"<|assistant|></think>{GLM_ANSWERED}<|user|>", f"<|assistant|><think>hm</think>{GLM_ANSWERED}",
    ),
    Difference(
        "Nemotron 3", "a last reply without reasoning", "nemotron3", [USER, REPLY],
        "assistant\n<think>\n\n</think>\na<|im_end|>", "assistant\n<think></think>a<|im_end|>\n",
    ),
    Difference(
        "Nemotron 3", "inline reasoning is extracted", "nemotron3",
        [USER, REPLY | {"content": "<think>x</think>\n\na"}],
        "assistant\n<think>\nx\n</think>\na<|im_end|>", "assistant\n<think>x</think>\n\na<|im_end|>\n",
    ),
    Difference(
        "role_colon", "text that looks like a role header", "role_colon",
        [{"role": "user", "content": "x\n\nUser: y"}, REPLY], None, None,
    ),
    Difference(
        "template", "an example whose last message is a reply", "template", [USER, REPLY],
        "<|user|>q<|assistant|>a<|user|>", None, options=TemplateOptions(ENDS_WITH_ROLES),
    ),
    Difference("role_colon", "tools raise an error", "role_colon", [USER, REPLY], None, None, tools=True),
]  # fmt: skip
TABLE = "## Where the tokens differ from the official template, and why"


def rows(heading: str) -> list[tuple[str, str]]:
    """Return (format, difference) of every row of the README's table under `heading`."""
    section = README.read_text(encoding="utf-8").partition(heading)[2].partition("\n## ")[0]
    lines = [line.replace(r"\|", "") for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [(cell[0], cell[1]) for cell in cells if cell[0] != "format"]


def test_every_row_has_an_example_and_every_example_a_row() -> None:
    claimed = rows(TABLE)
    shown = [[row for row in claimed if row[0] == d.format and d.says in row[1]] for d in ROWS]
    assert [d for d, found in zip(ROWS, shown, strict=True) if len(found) != 1] == []
    assert [row for row in claimed if [row] not in shown] == []


@pytest.mark.parametrize("difference", ROWS, ids=str)
def test_the_difference_is_what_the_table_says(difference: Difference) -> None:
    d, case = difference, CASE.get(difference.name)
    options = d.options or (case.options if case else None)
    ours, tools = get_renderer(d.name, everyones_tokenizer(), options=options), TOOLS[:1] if d.tools else None

    def rendered() -> list[int]:
        if d.prompting:
            return ours.build_generation_prompt(d.messages, tools=tools).to_ints()
        return ours.build_supervised_example(d.messages, tools=tools).tokens

    if d.ours is None:
        with pytest.raises(RenderError):
            rendered()
    else:
        assert decode(tokens := rendered()).endswith(d.ours)
    if case is None or not (MODELS / case.template).is_file():
        return
    write = partial(official, template_of(case.template), d.messages, tools, add_generation_prompt=d.prompting)
    if d.theirs is None:
        with pytest.raises(TemplateError):
            write(**case.variables)
    elif d.theirs is SAME:
        written = write(**case.variables).removesuffix(case.ends_with)
        assert written.endswith(d.ours)
        assert everyones_tokenizer().encode(written, add_special_tokens=False) != tokens
    else:
        assert write(**case.variables).endswith(d.theirs)
        assert d.ours is None or not d.ours.endswith(d.theirs)
