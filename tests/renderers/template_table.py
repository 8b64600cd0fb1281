"""Write the table of what the renderer `template` can do with each chat template in some folders.

    python -m tests.renderers.template_table FOLDER... > sdk/tinkerloop/renderers/templates.md

The tokenizer of each template is built from the control tokens in its source (such as `<|im_end|>`). A cell is "yes" if
the text equals that of transformers, and every trained reply begins where the template's prompt ends and ends with a
stop token; "split" if this needs one example for each reply. A letter tells under which condition. A dash means that
the template cannot say it: transformers writes nothing of it in any form, or raises. Otherwise the cell has the number
of a reason.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.renderers.chats import decode, tokenizer_with
from tinkerloop.errors import TinkerloopError
from tinkerloop.renderers import Renderer, get_renderer
from tinkerloop.renderers.template import TemplateOptions

COLUMNS = ("text", "two turns", "reasoning", "calls", "results", "calls read", "images")
TODAY = datetime.date.today()  # transformers gives templates the current date
CONTROL = re.compile(
    r"<\|[^|<>\s'\"{}]*\|?>|<[A-Za-z_]+\|>|<\|\"\|>|<｜[^｜<>]+｜>|｜DSML｜|\[/?[A-Z_]{3,}\]|</?seed:[a-z_:]+>|\[gMASK\]|<sop>"
    r"|</?(?:think|tool_call|tool_response|arg_key|arg_value|TOOLCALL|TOOL_RESPONSE)>|<SPECIAL_\d+>"
    r"|<(?:bos|eos|start_of_turn|end_of_turn|start_of_image|BOS_TOKEN|s)>|</s>"
)
FAMILIES = {
    "ChatML": "chatml",
    "Command R": "command-r-v01|trl_cohere$",
    "Command R7B, Aya": "r7b|cohere2",
    "DeepSeek R1": "deepseek-r1$|r1-distill",
    "DeepSeek V3": "deepseek_?v3$",
    "DeepSeek V3.1": "v3.1",
    "DeepSeek V3.2": "v3.2",
    "DeepSeek V4": "v4",
    "Gemma 2": "trl_gemma$|gemma-2",
    "Gemma 3": "gemma-?3-|gemma3$",
    "Gemma 3n": "gemma3n",
    "Gemma 4": "gemma-?4",
    "GLM 4.5, 4.6": "glm-4.6|glm4moe",
    "GLM 4.7": "glm-4.7",
    "GLM 5": "glm-5",
    "gpt-oss": "gpt-?oss",
    "Granite 3": "granite",
    "Kimi K2": "kimi-k2$|kimi-k2-instruct",
    "Kimi K2 Thinking": "kimi-k2-thinking",
    "Kimi K2.6": "kimi-k2.6",
    "Llama 3": "llama-?3",
    "Llama 4": "llama4",
    "Ministral 3": "ministral-3",
    "Mistral 7B v0.3": "7b-instruct-v0.3",
    "Mistral Nemo": "nemo-instruct",
    "Mistral Small 3": "mistral-small|v7_tekken",
    "Nemotron 3": "nemotron|^nano|^super|^ultra",
    "Phi 3": "phi-?3-mini|phi3$",
    "Phi 3.5": "phi-3.5|phi3_5",
    "Phi 4": "phi_4",
    "Qwen2.5": "qwen2[._]5(?!_vl)",
    "Qwen2.5-VL": "qwen2_5_vl",
    "Qwen3": "qwen3-0.6b|qwen3_training|^qwen3$",
    "Qwen3 Instruct": "qwen3.instruct",
    "Qwen3 Thinking": "qwen3-thinking",
    "Qwen3-Coder": "qwen3-coder",
    "Qwen3-VL": "qwen3.vl",
    "Qwen3.5": "qwen3[._]5|nothink",
    "Qwen3.6": "qwen3_6",
    "QwQ": "qwq",
    "SmolLM2": "smollm2",
    "SmolLM3": "smollm3",
    "Step 3.5": "step-3.5",
    "Zephyr": "zephyr",
}
"""Regular expressions for the names of the templates of each family."""
USER, AGAIN = {"role": "user", "content": "q"}, {"role": "user", "content": "r"}
TOOL = {
    "name": "get_weather",
    "description": "Looks up weather.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Where"},
            "days": {"type": "integer", "description": "How many"},
        },
        "required": ["city"],
    },
}
ARGUMENTS = {"days": 3, "city": "Bern"}
SETTINGS = ((), *itertools.product(("enable_thinking", "thinking"), (False, True)))
"""The variables with which a template is tried, each as (name, value)."""

Messages = list[dict[str, Any]]


def reply(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def call(call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}


class Chat(NamedTuple):
    """A conversation that shows what a column is about, and the condition under which it is this conversation."""

    messages: Messages
    tools: list[Any] | None = None
    condition: str = ""


REASONED, BARE, BESIDE = "every reply has reasoning", "the tools are not declared", "beside a call"


def chats_of(call_id: str) -> dict[str, list[Chat]]:
    """Return the conversations of each column, the plain one first."""
    calling = reply("", tool_calls=[call(call_id)])
    result = {"role": "tool", "tool_call_id": call_id, "content": "sunny"}
    text, turns = [USER, reply("a")], [USER, reply("a"), AGAIN, reply("b")]
    calls, results = [USER, calling], [USER, calling, result, reply("It is sunny.")]
    return {
        "text": [Chat(text), Chat(reasoned(text), None, REASONED)],
        "two turns": [Chat(turns), Chat(reasoned(turns), None, REASONED)],
        "reasoning": [Chat(reasoned(text)), Chat(reasoned(calls), [TOOL], BESIDE), Chat(reasoned(calls), None, BESIDE)],
        "calls": [Chat(calls, [TOOL]), Chat(reasoned(calls), [TOOL], REASONED), Chat(calls, None, BARE)],
        "results": [Chat(results, [TOOL]), Chat(reasoned(results), [TOOL], REASONED), Chat(results, None, BARE)],
    }


def reasoned(messages: Messages) -> Messages:
    return [m | {"reasoning_content": "because"} if m["role"] == "assistant" else m for m in messages]


class Failed(Exception):
    """Error for a cell of the table: the reason is its text."""


Official = Callable[..., set[str]]
"""Function that returns the texts of transformers for messages, tools and prompting, in all forms of the messages."""


def texts_of(ours: Renderer, messages: Messages, tools: Any, official: Official) -> tuple[list[str], str]:
    """Return the trained texts, and "yes" or "split". Raises if the text is not the official one."""
    try:
        examples, how = [ours.build_supervised_example(messages, "all_assistant_messages", tools=tools)], "yes"
    except TinkerloopError as error:
        examples, how = ours.build_supervised_examples(messages, "all_assistant_messages", tools=tools), "split"
        if len(examples) < 2:
            raise error
    replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    ends = [messages[: i + 1] for i in replies] if how == "split" else [messages]
    texts: list[str] = []
    for example, until in zip(examples, ends[-len(examples) :], strict=True):
        written, wholes = decode(example.tokens, ours.tokenizer), official(until, tools)
        stops = [decode([token], ours.tokenizer) for token in ours.get_stop_sequences()]
        if not any(w.startswith(written) or written in [w.rstrip() + stop for stop in stops] for w in wholes):
            raise Failed(f"the text differs: {written[-60:]!r}")
        for match in re.finditer("1+", "".join("1" if weight else "0" for weight in example.weights)):
            texts.append(decode(example.tokens[match.start() : match.end()], ours.tokenizer))
            if not any(texts[-1].endswith(stop) for stop in stops):
                raise Failed("a trained reply has no stop token")
    prompts = official(messages[: replies[-1]], tools, prompting=True)
    if not any(decode(examples[-1].tokens, ours.tokenizer).startswith(prompt + texts[-1]) for prompt in prompts):
        raise Failed("the last trained reply does not begin where the prompt ends")
    return texts, how


def tokenizer_for(source: str) -> Any:
    """Return a tokenizer with the control tokens that a template names."""
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    for mark, eos, bos in (
        ("｜", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"), ("<|im_end|>", "<|im_end|>", "<|endoftext|>"),
        ("<|eot_id|>", "<|eot_id|>", "<|begin_of_text|>"), ("<|eot|>", "<|eot|>", "<|begin_of_text|>"),
        ("START_OF_TURN_TOKEN", "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>"), ("<|turn>", "<eos>", "<bos>"),
        ("start_of_turn", "<eos>", "<bos>"), ("<|return|>", "<|return|>", "<|startoftext|>"),
        ("<|end|>", "<|endoftext|>", "<s>"), ("gMASK", "<|endoftext|>", "<s>"),
        ("<|end_of_role|>", "<|end_of_text|>", "<s>"),
    ):  # fmt: skip
        if mark in source:
            special = {"bos_token": bos, "eos_token": eos}
            break
    roles = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"] if "'<|' + " in source else []
    further = ["<|constrain|>", "<|call|>", "<|python_tag|>", *roles]
    return tokenizer_with(sorted({*CONTROL.findall(source), *special.values(), *further}), source, **special)


def forms(messages: Messages) -> Iterator[Messages]:
    """Yield the messages in the forms in which users of transformers pass them: reasoning, arguments, no content.

    Reasoning is in fields of the message, in a part of its content, or in its text between `<think>` and `</think>`.
    """
    for where, is_text, is_none in itertools.product(("fields", "part", "\n", ""), (False, True), (False, True)):
        shown: Messages = []
        for message in messages:
            message, said = dict(message), message["content"]
            thought = message.pop("reasoning_content", None)
            if is_none and not said:
                message["content"] = None
            if thought and where == "fields":
                message |= {"reasoning_content": thought, "reasoning": thought, "thinking": thought}
            elif thought and where == "part":
                message["content"] = [{"type": "thinking", "thinking": thought}]
                message["content"] += [{"type": "text", "text": said}] if said else []
            elif thought:
                message["content"] = f"<think>{where}{thought}{where}</think>{2 * where if said else ''}{said}"
            if is_text and "tool_calls" in message:
                message["tool_calls"] = json.loads(json.dumps(message["tool_calls"]))
                for one in message["tool_calls"]:
                    one["function"]["arguments"] = json.dumps(one["function"]["arguments"])
            shown.append(message)
        yield shown


class Cell(NamedTuple):
    """A cell of the table: "yes", "split", "-" or a reason, and the condition for "yes" and "split"."""

    text: str
    condition: str = ""


def cells(source: str) -> Iterator[tuple[str, Cell]]:
    """Yield the name of each column with its cell."""
    tokenizer = tokenizer_for(source)
    call_id = "functions.get_weather:0" if "tool_calls_section" in source else "abc123DEF"
    settings = [setting for setting in SETTINGS if not setting or setting[0] in source]
    calling: tuple[Renderer, str] | None = None
    columns = chats_of(call_id)
    has_calls = is_sayable("calls", columns["calls"], tokenizer, settings)
    for column, variants in columns.items():
        failed = ""
        can_be_said = is_sayable(column, variants, tokenizer, settings) and (has_calls or column != "results")
        cell = None if can_be_said else Cell("-")
        for chat, setting in itertools.product(variants, settings):
            if cell is not None:
                break
            variables = {setting[0]: setting[1]} if setting else {}
            try:
                options = TemplateOptions(variables=tuple(variables.items()), today=TODAY)
                ours = get_renderer("template", tokenizer, options=options)
                found, how = texts_of(ours, chat.messages, chat.tools, official_of(tokenizer, variables))
            except (TinkerloopError, Failed) as error:
                failed = failed or reason(str(error))
                continue
            shown = [f"`{name}={value}`" for name, value in variables.items()]
            cell = Cell(how, ", ".join([*shown, chat.condition] if chat.condition else shown))
            calling = (ours, found[0]) if column == "calls" else calling
        yield column, cell or Cell(failed)
    if has_calls:
        yield "calls read", Cell(how_read(*calling) if calling else "no call could be written")
    else:
        yield "calls read", Cell("-")
    yield "images", Cell("`template` has no images" if "image" in source else "-")


def official_of(tokenizer: Any, variables: dict[str, Any]) -> Official:
    def official(messages: Any, tools: Any = None, prompting: bool = False) -> set[str]:
        wrapped = [{"type": "function", "function": tool} for tool in tools or []] or None
        texts: set[str] = set()
        for shown in forms(messages):
            with contextlib.suppress(Exception):  # a template can raise any exception
                texts.add(
                    tokenizer.apply_chat_template(
                        shown, tools=wrapped, add_generation_prompt=prompting, tokenize=False, **variables
                    )
                )
        return texts

    return official


WORDS = {"reasoning": "because", "calls": "Bern", "results": "sunny"}
"""A word of the part of the conversation that a column is about."""


def is_sayable(column: str, variants: list[Chat], tokenizer: Any, settings: list[Any]) -> bool:
    """Return whether transformers writes the column's part of the conversation in any form, with any variables."""
    if column not in WORDS:
        return True
    for chat, setting in itertools.product(variants, settings):
        texts = official_of(tokenizer, dict([setting]) if setting else {})(chat.messages, chat.tools)
        written = [text for text in texts if WORDS[column] in text]
        names_tags = "</think>" in tokenizer.chat_template and chat.condition != BESIDE
        if any(column != "reasoning" or knows_reasoning(text, names_tags) for text in written):
            return True
    return False


def knows_reasoning(text: str, names_tags: bool) -> bool:
    """Return whether the template itself writes or names the tags of the reasoning in a text.

    Other templates write `<think>` as the text that it is, and a part of the content as Python shows it. Some that name
    the tags, in order to remove reasoning, write a text beside calls as it is.
    """
    inline = "<think>" in text[: text.index("because")]
    return "'thinking':" not in text and (not inline or names_tags)


def how_read(ours: Renderer, text: str) -> str:
    ids = ours.tokenizer.encode(text, add_special_tokens=False)
    message = ours.parse_response(ids, tools=[TOOL], messages=[USER]).message
    read = [(c.function.name, json.loads(c.function.arguments)) for c in message.get("tool_calls", [])]
    flag = "the syntax is not known, and the call is flagged as unparsed"
    silent = flag if message.get("unparsed_tool_calls") else "the call is read as text"
    return "yes" if read == [("get_weather", ARGUMENTS)] else silent


def reason(error: str) -> str:
    """Return an error without the parts that differ between templates."""
    error = re.sub(r"messages\[\d+\]: | \(the prompt continues .*?'\)(?=;)", "", error, flags=re.DOTALL)
    return re.split(r"; (?:describe|remove|train) ", error)[0][:300]


def marks(row: dict[str, Cell]) -> bool:
    """Return whether a template has full marks: all that it can say, except images."""
    return all(row[column].text in ("yes", "split", "-") for column in COLUMNS[:-1])


def family_of(name: str) -> str:
    return next((family for family, names in FAMILIES.items() if re.search(names, name.lower())), name)


def main(folders: list[str]) -> None:
    files = [file for folder in folders for file in sorted(Path(folder).rglob("*.jinja"))]
    rows: dict[str, dict[str, Cell]] = {}
    for file in files:
        name = file.stem if file.stem != "chat_template" else file.parent.name
        with contextlib.redirect_stderr(None):
            rows[name if name not in rows else f"{file.parent.name}/{name}"] = dict(cells(file.read_text()))
    all_cells = [cell for row in rows.values() for cell in row.values()]
    reasons = list(dict.fromkeys(cell.text for cell in all_cells if cell.text not in ("yes", "split", "-")))
    conditions = list(dict.fromkeys(cell.condition for cell in all_cells if cell.condition))
    families: dict[str, list[str]] = {}
    for name in rows:
        families.setdefault(family_of(name), []).append(name)
    full = [name for name in rows if marks(rows[name])]
    full_families = [family for family, names in families.items() if all(name in full for name in names)]
    print("# What `template` can do with public chat templates\n")
    print("Written by `python -m tests.renderers.template_table FOLDER...`; the module says what is compared.\n")
    print("A dash: the template cannot say this, because transformers writes nothing of it in any form. A number: the")
    print("template writes it, but `template` raises the error with this number. A letter: the condition.\n")
    print("`template` has no images. Full marks are all that a template can say except images.\n")
    print(f"* Templates with full marks: {len(full)} of {len(rows)}.")
    print(f"* Families with full marks in all of their templates: {len(full_families)} of {len(families)}.")
    print(f"* Families without: {', '.join(family for family in families if family not in full_families) or 'none'}.\n")
    print(f"| {len(rows)} templates | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    for text, title in (("yes", "yes"), ("split", "split"), ("-", "the template cannot say it")):
        counts = Counter(column for row in rows.values() for column, cell in row.items() if cell.text == text)
        print(f"| {title} | " + " | ".join(str(counts[column]) for column in COLUMNS) + " |")
    refused = Counter(column for row in rows.values() for column, cell in row.items() if cell.text in reasons)
    print("| refused | " + " | ".join(str(refused[column]) for column in COLUMNS) + " |")
    print("\n| template | family | full | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 3) + "|")
    letters = "abcdefghijklmnopqrstuvwxyz"
    for name, row in rows.items():
        shown = [
            str(reasons.index(cell.text) + 1)
            if cell.text in reasons
            else cell.text + (f" {letters[conditions.index(cell.condition)]}" if cell.condition else "")
            for cell in (row[column] for column in COLUMNS)
        ]
        print(f"| {name} | {family_of(name)} | {'yes' if name in full else ''} | " + " | ".join(shown) + " |")
    print("\n| letter | condition | cells |\n|---|---|---|")
    for letter, condition in zip(letters, conditions, strict=False):
        print(f"| {letter} | {condition} | {sum(cell.condition == condition for cell in all_cells)} |")
    print("\n| number | reason | templates |\n|---|---|---|")
    for number, text in enumerate(reasons, 1):
        count = sum(text in [cell.text for cell in row.values()] for row in rows.values())
        print(f"| {number} | {text.replace('|', chr(92) + '|').replace(chr(10), ' ')} | {count} |")


if __name__ == "__main__":
    main(sys.argv[1:])
