"""`TemplateWriter`: runs a chat template on conversations, and tells where each character of its text comes from."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tinkerloop.errors import RenderError
from tinkerloop.message_checks import read_conversation
from tinkerloop.messages import CheckedConversation
from tinkerloop.renderers.marked_text import OWN, MarkedRun, Slot, own_strings, runs_of
from tinkerloop.renderers.pieces import Part, Piece, scaffold, text
from tinkerloop.renderers.template_checks import check_nothing_is_lost, check_origins
from tinkerloop.renderers.template_compiler import CompiledTemplate, compile_template
from tinkerloop.renderers.template_inputs import (
    CALL_FORMS,
    CALL_IDS,
    Marking,
    MessageForm,
    NoMarking,
    messages_of,
    tools_of,
)
from tinkerloop.renderers.template_limits import TemplateLimitError, limited

_READS_FIELDS = re.compile(r"reasoning_content|(?:\.|\[['\"])reasoning\b")
"""The places in the source of a template where it reads reasoning from a field of the message."""
_UNKNOWN = Slot("", -1, Part.SCAFFOLD)


class TemplateWriter:
    """Runs the chat templates of one tokenizer.

    Args:
        sources: the source of each template by name: "default", and perhaps "tool_use" for conversations with tools.
        variables: the variables of the templates in addition to messages and tools.
        control: the control tokens of the tokenizer.
        name: the name of the renderer, for error messages.
    """

    form: MessageForm
    """The form in which the template reads reasoning."""

    def __init__(self, sources: Mapping[str, str], variables: dict[str, Any], control: Sequence[str], name: str):
        self.source = "".join(sources.values())
        self._templates = {kind: compile_template(source) for kind, source in sources.items()}
        self._variables, self._control, self._name = variables, control, name
        self.form = self._learn_form()

    def pieces(self, conversation: CheckedConversation) -> list[tuple[int, Piece]]:
        """Return the rendered conversation as pieces: the template's own text is trusted, all other text is not."""
        pieces: list[tuple[int, Piece]] = []
        for is_own, group in itertools.groupby(self._write(conversation), lambda run: run.origin is OWN):
            if is_own:
                pieces.append((-1, scaffold("".join(run.text for run in group))))
                continue
            for run in group:
                origin = run.origin or _UNKNOWN
                pieces.append((origin.message, text(run.text, origin.part)))
        return pieces

    def text(self, conversation: CheckedConversation, size: int) -> str:
        """Return the template's text for a part of a conversation of `size` characters, without following origins.

        The caller compares it with the text of the whole conversation, whose origins are known. This takes a fifth of
        the time. Calls are passed in the first of `CALL_FORMS`.
        """
        with limited(_items(conversation), size):
            return self._run(self._template_for(conversation).plain, self._inputs(conversation, self.form, NoMarking()))

    def _write(self, conversation: CheckedConversation) -> tuple[MarkedRun, ...]:
        """Return the template's text for a conversation, as runs of characters with one origin.

        Calls are passed in the first of `CALL_FORMS` with which the template writes all of the conversation.
        """
        has_calls = any(message.tool_calls for message in conversation.messages)
        errors: list[RenderError] = []
        for are_text, is_none in CALL_FORMS if has_calls else CALL_FORMS[:1]:
            form = replace(self.form, arguments_are_text=are_text, empty_is_none=is_none)
            try:
                return self._write_with(conversation, form)
            except RenderError as error:
                errors.append(error)
        # A TypeError tells only that the template expects another form.
        raise next((error for error in errors if not isinstance(error.__cause__, TypeError)), errors[0])

    def _write_with(self, conversation: CheckedConversation, form: MessageForm) -> tuple[MarkedRun, ...]:
        source = self._template_for(conversation)
        marking = Marking()
        inputs = self._inputs(conversation, form, marking)
        with limited(_items(conversation), sum(len(slot.value) for slot in marking.slots)):
            marked = self._run(source.marked, own_strings(inputs))
            written = self._run(source.plain, self._inputs(conversation, form, NoMarking()))
        if str.__ne__(written, marked):
            raise RenderError(
                "the template writes another text when the origins of its strings are followed, so control tokens "
                "could not be told from text; use the renderer for this model family"
            )
        runs = runs_of(marked)
        check_origins(runs, self._control)
        check_nothing_is_lost(conversation, marking.slots, runs, self._name)
        return runs

    def _template_for(self, conversation: CheckedConversation) -> CompiledTemplate:
        name = "tool_use" if conversation.tools and "tool_use" in self._templates else "default"
        return self._templates[name]

    def _learn_form(self) -> MessageForm:
        """Return the form in which the template reads reasoning: the first with which it writes all of a reply.

        If the template writes reasoning in no form, this is the form with fields. A template that reaches a limit does
        so with these short messages in any form, so it is not tried again.
        """
        self.form = fields = MessageForm()
        question = {"role": "user", "content": "question"}
        reply = {"role": "assistant", "content": "answer", "reasoning_content": "because"}
        examples = [(fields, reply)]
        for call_id in CALL_IDS:
            call = {"id": call_id, "function": {"name": "look_up", "arguments": {"word": "tree"}}}
            examples.append((fields, reply | {"content": "", "tool_calls": [call]}))
        examples.append((MessageForm("part"), reply))
        if (inline := self._inline_form(question)) is not None:
            examples.append((inline, reply))
        for form, example in examples:
            self.form = form
            try:
                self._write(read_conversation([question, example]))
            except TemplateLimitError:
                raise
            except RenderError:
                continue
            return form
        return fields

    def _inline_form(self, question: Mapping[str, Any]) -> MessageForm | None:
        """Return the form with inline reasoning. A newline follows the opening tag unless the prompt ends with the tag.

        Return None if the template does not name the tags, if it reads reasoning elsewhere (perhaps with other
        variables), or if its prompt has already closed the reasoning.
        """
        source = self.source
        if "</think>" not in self._control or "</think>" not in source or _READS_FIELDS.search(source):
            return None
        prompt = ""
        with contextlib.suppress(RenderError):
            prompt = "".join(run.text for run in self._write(read_conversation([question], prompting=True))).rstrip(" ")
        if prompt.rstrip().endswith("</think>"):
            return None
        opening = "<think>" if prompt.endswith("<think>") else "<think>\n"
        return MessageForm("inline", opening, writes_empty=prompt.rstrip().endswith("<think>"))

    @staticmethod
    def _run(template: Any, inputs: Mapping[str, Any]) -> Any:
        try:
            return template.render(**inputs)
        except RenderError:
            raise
        except RecursionError as error:
            raise RenderError(
                "the chat template does not end: it calls itself more often than Python's limit of nested calls; use "
                "another template"
            ) from error
        except Exception as error:  # a template can raise any exception, on purpose or by mistake
            raise RenderError(f"the chat template raises an error for this conversation: {error}") from error

    def _inputs(self, conversation: CheckedConversation, form: MessageForm, marking: Marking) -> dict[str, Any]:
        """Return all variables of the template, with the strings of the conversation marked."""
        return self._variables | {
            "messages": messages_of(conversation, form, marking),
            "tools": tools_of(conversation, marking) or None,
            "add_generation_prompt": conversation.prompting,
        }


def _items(conversation: CheckedConversation) -> int:
    """Return the number of messages, tools and calls."""
    calls = sum([len(message.tool_calls) for message in conversation.messages])
    return len(conversation) + len(conversation.tools) + calls
