"""`tinkerloop chat`: neither a reply nor an error loses the conversation."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import tinker

from tinkerloop import get_renderer, get_tokenizer
from tinkerloop.cli.chat import Chat, obey, talk
from tinkerloop.data import load_conversations
from tinkerloop.errors import ServerLostError

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
NO_MESSAGE_CAN_FOLLOW = "a<think>b</think>c"


class Replying:
    """A sampling client that streams the given replies in turn. An error in place of a reply is raised."""

    def __init__(self, *replies: str | Exception):
        self._replies = iter(replies)

    def stream(self, prompt: tinker.ModelInput, params: tinker.SamplingParams) -> Iterator[int]:
        reply = next(self._replies)
        if isinstance(reply, Exception):
            yield from get_tokenizer("tiny").encode("half a ")
            raise reply
        yield from get_tokenizer("tiny").encode(reply + "<|im_end|>")


def chat_with(*replies: str | Exception) -> Chat:
    sampler: Any = Replying(*replies)
    return Chat(sampler, get_renderer("qwen3", get_tokenizer("tiny")), tinker.SamplingParams(max_tokens=5))


@pytest.mark.parametrize("reply", ["hello", "<think>\nhm\n</think>\n\nhello", f"I add. {CALL}"])
def test_a_saved_conversation_is_read_as_it_was(reply, tmp_path) -> None:
    chat, file = chat_with(reply), tmp_path / "chats.jsonl"
    talk(chat, ["q\n"], io.StringIO())
    assert obey(chat, f"/save {file}") == f"2 messages written to {file}"
    saved = load_conversations(file)[0].messages
    assert chat.renderer.build_generation_prompt(saved) == chat.renderer.build_generation_prompt(chat.conversation)


@pytest.mark.parametrize("reply", ['I add. <tool_call>\n{"name": "ad', NO_MESSAGE_CAN_FOLLOW])
def test_a_conversation_with_a_reply_that_broke_off_is_saved(reply, tmp_path) -> None:
    chat, file = chat_with(reply), tmp_path / "chats.jsonl"
    talk(chat, ["q\n"], io.StringIO())
    assert obey(chat, f"/save {file}") == f"2 messages written to {file}"


def test_what_cannot_be_written_creates_no_file(tmp_path) -> None:
    chat, file = chat_with(), tmp_path / "chats.jsonl"
    chat.messages.append({"role": "user", "content": object()})
    assert "'content' must be a string" in obey(chat, f"/save {file}")
    assert not file.exists()


def test_a_conversation_is_a_line_of_its_own_after_a_line_without_an_end(tmp_path) -> None:
    chat, file = chat_with("hello"), tmp_path / "chats.jsonl"
    talk(chat, ["q\n", f"/save {file}\n"], io.StringIO())
    file.write_text(file.read_text().rstrip("\n"))
    obey(chat, f"/save {file}")
    assert len(load_conversations(file)) == 2


@pytest.mark.parametrize(
    "error", [ServerLostError("it is gone"), tinker.TinkerError("it is gone"), OSError("it is gone")]
)
def test_an_error_in_place_of_a_reply_leaves_the_conversation_as_it_was(error) -> None:
    chat, out = chat_with("one", error, "three"), io.StringIO()
    assert not talk(chat, ["1\n", "2\n", "3\n"], out)
    assert "no reply: it is gone\nthe question was removed" in out.getvalue()
    assert [message["content"] for message in chat.messages] == ["1", "one", "3", "three"]


def test_a_reply_that_no_message_can_follow_is_left_with_reset() -> None:
    chat, out = chat_with(NO_MESSAGE_CAN_FOLLOW, "fine"), io.StringIO()
    talk(chat, ["1\n", "2\n", "/reset\n", "3\n"], out)
    assert "no reply: messages[1]: a thinking part comes after text" in out.getvalue()
    assert [message["content"] for message in chat.messages] == ["3", "fine"]


def test_the_status_of_a_chat_tells_whether_every_question_got_a_reply() -> None:
    assert talk(chat_with("one"), ["1\n", "/bye\n"], io.StringIO())
    assert not talk(chat_with(ServerLostError("gone"), "two"), ["1\n", "2\n"], io.StringIO())
