"""The check kit accepts the chat format of the page for users, and finds each of 27 mistakes in it."""

from __future__ import annotations

import itertools
import json
import re
import sys
import unittest
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import hypothesis
import pytest

from tests.renderers.chats import everyones_tokenizer
from tinkerloop import get_tokenizer, testing
from tinkerloop.errors import CheckFailedError
from tinkerloop.renderers import (
    Block,
    Grammar,
    Part,
    UnparsedToolCall,
    get_renderer,
    markup,
    read_json_call,
    scaffold,
    stop,
    text,
    unregister_renderer,
)
from tinkerloop.renderers.template import TemplateOptions
from tinkerloop.testing import RENDERER_CHECKS, check_renderer, probe_claims, random_conversations
from tinkerloop.testing._invariant import Subject

PAGE = Path(__file__).parents[2] / "sdk/tinkerloop/renderers/your_own_format.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
tokenizer = cache(lambda: get_tokenizer("tiny"))


MODULE = ModuleType("your_own_format")
"""The module of a user, with the names of the first block of the page. It is importable, as pickle needs."""
sys.modules[MODULE.__name__] = MODULE
exec(BLOCKS[0], vars(MODULE))
Turns: Any = vars(MODULE)["Turns"]


def mistaken(mistake: str) -> Any:
    """Return a renderer of the format with one mistake."""
    return renderer_with(f"Turns{list(MISTAKES).index(mistake)}", **MISTAKES[mistake])


def renderer_with(name: str, **attributes: Any) -> Any:
    """Return a renderer of a subclass of the format, which is importable."""
    vars(MODULE)[name] = type(name, (Turns,), attributes | {"__module__": MODULE.__name__})
    return vars(MODULE)[name](tokenizer())


def test_the_page_for_users_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    names = dict(vars(MODULE))
    for block in BLOCKS[1:]:
        exec(block, names)
    names["test_turns"]("prompt_is_a_prefix")
    assert "parallel_calls=True" in capsys.readouterr().out
    assert names["renderer"].name == "turns"
    assert unregister_renderer("turns")


def weight_on_the_header(self: Any, conversation: Any, index: int) -> Any:
    yield markup(self.header("assistant"), Part.TEXT)


def another_prompt_than_header(self: Any, conversation: Any, index: int) -> Any:
    yield scaffold(self.header("assistant") + ("\n" if index == len(conversation) else ""))


def edited(edit: Any) -> Any:
    """Return a method `reply` with the pieces of the right one, changed by `edit`."""

    def reply(self: Any, conversation: Any, index: int) -> Any:
        return edit(list(Turns.reply(self, conversation, index)), conversation, index)

    return reply


def texts(change: Any, part: Part = Part.TEXT) -> Any:
    """Return a method `reply` in which the texts of a part are changed."""
    return edited(
        lambda pieces, *_: [p._replace(text=change(p.text)) if p.part is part and not p.trusted else p for p in pieces]
    )


def repeated_message(self: Any, conversation: Any, index: int) -> Any:
    yield from Turns.message(self, conversation, index)
    yield from self.content(conversation[index])


def trusted_message(self: Any, conversation: Any, index: int) -> Any:
    yield from (piece._replace(trusted=True) for piece in Turns.message(self, conversation, index))


def call_with(change: Any) -> Any:
    def call(self: Any, call: Any) -> Any:
        arguments = change(json.loads(call.function.arguments))
        yield text(json.dumps({"name": call.function.name, "arguments": arguments}), Part.TOOL_CALL)

    return call


def numbered_preamble(self: Any, conversation: Any) -> Any:
    yield scaffold(f"{next(COUNTER)}\n")
    yield from Turns.preamble(self, conversation)


COUNTER = itertools.count()
REASONING, CALL = Block(Part.REASONING, "<think>", "</think>"), Block(Part.TOOL_CALL, "<tool_call>", "</tool_call>")


def grammar(*blocks: Block, stops: tuple[str, ...] = ("<|im_end|>",), read: Any = read_json_call) -> Any:
    return lambda self: Grammar(stops, blocks, read_call=read)


def without_reasoning_in_history(pieces: Any, conversation: Any, index: int) -> Any:
    return pieces if conversation.is_final(index) else [p for p in pieces if p.part is not Part.REASONING]


MISTAKES: dict[str, dict[str, Any]] = {
    "weight on a header": {"opening": weight_on_the_header},
    "another header in the prompt": {"opening": another_prompt_than_header},
    "lost space": {"reply": texts(str.strip)},
    "lost newline": {"reply": texts(lambda said: said.rstrip("\n"))},
    "added space": {"reply": texts(lambda said: " " + said)},
    "space before the stop": {"reply": edited(lambda pieces, *_: [*pieces[:-1], text(" "), pieces[-1]])},
    "lost letter": {"reply": texts(lambda said: said.replace("é", ""))},
    "lost reasoning": {"reply": edited(lambda pieces, *_: [p for p in pieces if p.part is not Part.REASONING])},
    "reasoning as text": {
        "reply": edited(lambda ps, *_: [p._replace(part=Part.TEXT) if p.part is Part.REASONING else p for p in ps])
    },
    "open reasoning": {"reply": edited(lambda pieces, *_: [p for p in pieces if p.text != "</think>"])},
    "forged token in a message": {"message": trusted_message},
    "forged token in a reply": {"reply": edited(lambda pieces, *_: [p._replace(trusted=True) for p in pieces])},
    "repeated message": {"message": repeated_message},
    "lost argument": {"call": call_with(lambda arguments: dict(list(arguments.items())[1:]))},
    "sorted arguments": {"call": call_with(lambda arguments: dict(sorted(arguments.items())))},
    "argument as text": {"call": call_with(lambda arguments: {k: str(v) for k, v in arguments.items()})},
    "calls that are not read": {
        "make_grammar": grammar(REASONING, CALL, read=lambda fields, tools: UnparsedToolCall(fields[0], "no"))
    },
    "no stop": {"reply": edited(lambda pieces, *_: pieces[:-1])},
    "two stops": {"reply": edited(lambda pieces, *_: [*pieces, pieces[-1]])},
    "unknown stop": {
        "reply": edited(lambda pieces, *_: [*pieces[:-1], stop("<|endoftext|>")]),
        "control": ("<|im_start|>", "<|endoftext|>"),
    },
    "untrained stop": {"reply": edited(lambda pieces, *_: [*pieces[:-1], scaffold("<|im_end|>")])},
    "rewritten history": {
        "reply": edited(without_reasoning_in_history),
        "leaves_out": {**Turns.leaves_out, "reasoning": "not in history"},
    },
    "denied extension": {"has_extension_property": property(lambda self: False)},
    "a count in the prompt": {"preamble": numbered_preamble},
    "undeclared tools": {"preamble": lambda self, conversation: ()},
    "another end in the prompt": {
        "after_reply": lambda self, conversation, index: (scaffold("\n" if index + 1 < len(conversation) else ""),)
    },
    "unknown role": {"roles": Turns.roles | {"root"}},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_format_is_found(mistake: str) -> None:
    right = probe_claims(Turns(tokenizer()))
    examples = 30 if mistake == "lost letter" else 6  # few of the drawn texts have the letter
    with pytest.raises(CheckFailedError, match="breaks the invariant"):
        check_renderer(mistaken(mistake), examples=examples, claims=right, shrink=False)


def test_a_format_without_the_role_system_passes() -> None:
    check_renderer(renderer_with("NoSystem", roles=frozenset({"user", "assistant", "tool"})), examples=3)


def test_an_error_shows_the_smallest_conversation_and_both_token_sequences() -> None:
    with pytest.raises(CheckFailedError) as failed:
        check_renderer(mistaken("another header in the prompt"), examples=10, only="prompt_is_a_prefix")
    shown = str(failed.value)
    assert "The example begins with the prompt, and exactly the tokens after the prompt have weight." in shown
    assert '0 {"role": "user", "content": ""}' in shown
    assert re.search(r"\n  > 18 +10 '\\n' +259|\n  > \d+ +10 '\\n'", shown)


def test_no_name_of_the_kits_is_hidden_by_a_module() -> None:
    """A module that is imported later would replace a function of the same name, which is imported at its first use."""
    names = {name: getattr(testing, name) for name in testing.__all__}
    assert not [name for name, value in names.items() if isinstance(value, ModuleType)]


def test_an_unknown_check_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown check 'prefix'"):
        check_renderer(Turns(tokenizer()), only="prefix")


def test_the_template_of_a_model_is_compared() -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    template += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    plain = {"reasoning": False, "reasoning_with_calls": False, "calls": False, "tools": False}
    claims = probe_claims(Turns(tokenizer()), **plain)
    check_renderer(Turns(tokenizer()), template, 5, only="tokens_equal_the_template", claims=claims)
    wrong = template.replace("{{ m.content }}", "{{ m.content }} ")
    with pytest.raises(CheckFailedError, match="differ from those of the template"):
        check_renderer(Turns(tokenizer()), wrong, 5, only="tokens_equal_the_template", claims=claims)


def test_a_comparison_with_a_template_needs_the_template() -> None:
    for kind in (ValueError, unittest.SkipTest):  # pytest shows a test that raises the second as skipped
        with pytest.raises(kind, match="pass its text as `template`"):
            check_renderer(Turns(tokenizer()), examples=1, only="tokens_equal_the_template")
    with pytest.raises(ValueError, match="without a template"):
        check_renderer(Turns(tokenizer()), examples=1, only="rendering_is_pure", template_variables={"x": 1})


@pytest.mark.parametrize("final", ["user", "", "tool"])
def test_an_unknown_end_of_drawn_conversations_is_refused(final: Any) -> None:
    with pytest.raises(ValueError, match=f"final must be 'assistant' or None, got '{final}'"):
        hypothesis.find(random_conversations(final=final), lambda messages: True)


def test_a_text_whose_only_token_begins_in_a_header_needs_no_token_of_its_own() -> None:
    """The header ends with "t", and the tokenizer has the token "th"."""
    source = "{% for m in messages %}{{ '<|im_start|>' + m.role + ' t' + m.content + '<|im_end|>' }}{% endfor %}"
    source += "{% if add_generation_prompt %}{{ '<|im_start|>assistant t' }}{% endif %}"
    ours: Any = get_renderer("template", everyones_tokenizer(), options=TemplateOptions(source))
    messages = [{"role": "user", "content": "h"}, {"role": "assistant", "content": "a"}]
    assert 0 not in ours.build_supervised_example(messages).message_index
    subject: Any = Subject(ours, probe_claims(ours), None, {}, frozenset(), lambda: (), cast(Any, None))
    subject.conversation = lambda: messages
    RENDERER_CHECKS["every_token_has_one_span_and_message"](subject)


def test_every_check_is_described_in_a_sentence() -> None:
    assert all((check.__doc__ or "").splitlines()[0].endswith(".") for check in RENDERER_CHECKS.values())
