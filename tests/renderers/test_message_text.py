import pytest

from tinkerloop.errors import RenderError
from tinkerloop.messages import UnparsedToolCall
from tinkerloop.renderers import (
    ParseFailureKind,
    ParseTermination,
    classify_parse_failure,
    ensure_text,
    format_content_as_string,
    get_text_content,
)

PARTS = [
    {"type": "thinking", "thinking": "2 + 2"},
    {"type": "text", "text": "four"},
    {"type": "image", "image": "a.png"},
    {"type": "text", "text": "!"},
]


def test_the_text_of_a_message_is_without_reasoning_and_images():
    assert get_text_content({"role": "assistant", "content": PARTS}) == "four!"
    assert get_text_content({"role": "assistant", "content": "plain"}) == "plain"


def test_content_of_one_text_part_is_text():
    assert ensure_text([{"type": "text", "text": "one"}]) == ensure_text("one") == "one"
    with pytest.raises(RenderError, match="thinking"):
        ensure_text(PARTS)


def test_all_parts_are_shown_to_people():
    assert format_content_as_string(PARTS, " ") == "<think>2 + 2</think> four <image>a.png</image> !"
    with pytest.raises(RenderError, match="'video'"):
        format_content_as_string([{"type": "video"}])


@pytest.mark.parametrize(
    ("termination", "calls", "kind"),
    [
        (ParseTermination.STOP_SEQUENCE, [], None),
        (ParseTermination.STOP_SEQUENCE, [UnparsedToolCall("{", "not JSON")], ParseFailureKind.CONTENT),
        (ParseTermination.TRUNCATED, [UnparsedToolCall("{", "not JSON")], ParseFailureKind.STRUCTURAL),
    ],
)
def test_a_failure_of_a_reply_is_of_its_end_or_of_a_call(termination, calls, kind):
    failure = classify_parse_failure({"role": "assistant", "content": "", "unparsed_tool_calls": calls}, termination)
    assert (failure and failure[0]) == kind
