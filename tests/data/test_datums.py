import pickle
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest

from tinkerloop.data import (
    Conversation,
    check_messages,
    conversation_datums,
    conversation_to_datum,
    conversation_to_datums,
    load_conversations,
)
from tinkerloop.data.datums import TooLong
from tinkerloop.errors import DataError, RenderError
from tinkerloop.renderers import TrainOnWhat, get_renderer
from tinkerloop.supervised.data import SupervisedDatasetFromHFDataset
from tinkerloop.tokenizers import get_tokenizer

USER = {"role": "user", "content": "hi"}
REPLY = {"role": "assistant", "content": "hello"}


@pytest.fixture(scope="module")
def renderer():
    return get_renderer("qwen3", get_tokenizer("tiny"))


def conversation(*messages, line=1, tools=None):
    return Conversation(check_messages(list(messages)), tools, path="chats.jsonl", line=line)


def trained(datum):
    inputs = datum.loss_fn_inputs
    return [t for t, w in zip(inputs["target_tokens"].tolist(), inputs["weights"].tolist(), strict=True) if w]


def test_a_conversation_becomes_a_datum_that_trains_its_replies(renderer):
    datum = conversation_to_datum(messages=[USER, REPLY], renderer=renderer, max_length=100)
    assert get_tokenizer("tiny").decode(trained(datum)).endswith("hello<|im_end|>")


def test_train_on_what_is_passed_on_and_all_assistant_messages_is_the_default(renderer):
    messages = [USER, {**REPLY, "content": "one"}, USER, {**REPLY, "content": "two"}]
    both = conversation_to_datum(messages, renderer, None)
    last = conversation_to_datum(messages, renderer, None, TrainOnWhat.LAST_ASSISTANT_MESSAGE)
    assert len(trained(both)) > len(trained(last)) > 0


TURNS = [USER, {**REPLY, "reasoning": "hm", "content": "one"}, USER, {**REPLY, "reasoning": "so", "content": "two"}]


def test_every_reply_is_trained_after_its_own_prompt_where_history_is_rewritten(renderer):
    datums = conversation_datums([conversation(USER, REPLY), conversation(*TURNS)], renderer)
    assert datums.conversation_numbers == [0, 1, 1]
    assert str(datums.report) == "2 rows, all used; 1 split into several datums"
    for datum, replies in zip(datums[1:], (1, 3), strict=True):
        prompt = renderer.build_generation_prompt(TURNS[:replies]).to_ints()
        assert datum.model_input.to_ints()[: len(prompt)] == prompt
        assert len(trained(datum)) == len(datum.loss_fn_inputs["weights"].tolist()) + 1 - len(prompt)


def test_a_conversation_is_one_datum_where_history_is_kept_or_splitting_is_off(renderer):
    keeps = get_renderer("qwen3_instruct", get_tokenizer("tiny"))
    turns = [USER, {**REPLY, "content": "one"}, USER, {**REPLY, "content": "two"}]
    (datum,) = conversation_datums([conversation(*turns)], keeps)
    assert b"one" in bytes(t for t in trained(datum) if t < 256)
    (datum,) = conversation_datums([conversation(*TURNS)], renderer, split="never")
    assert b"one" in bytes(t for t in trained(datum) if t < 256)


def test_a_single_datum_of_a_rewritten_history_is_warned_of(renderer):
    with pytest.warns(UserWarning, match="qwen3 rewrites history.*use conversation_to_datums"):
        conversation_to_datum(TURNS, renderer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conversation_to_datum(TURNS, renderer, train_on_what="last_assistant_message")


def test_one_conversation_becomes_datums_whose_replies_follow_their_own_prompts(renderer):
    data = SupervisedDatasetFromHFDataset([TURNS], 1, flatmap_fn=lambda turns: conversation_to_datums(turns, renderer))
    split = next(data.batches())
    expected = conversation_datums([conversation(*TURNS)], renderer)
    assert [datum.model_input for datum in split] == [datum.model_input for datum in expected]
    assert [trained(datum) for datum in split] == [trained(datum) for datum in expected] != []


def test_a_split_datum_whose_reply_is_cut_away_is_left_out(renderer):
    late = [*TURNS[:2], {**USER, "content": "x" * 100}, REPLY]
    whole = conversation_datums([conversation(*late)], renderer)
    cut = conversation_datums([conversation(*late)], renderer, 80, on_long="truncate")
    assert (len(whole), len(cut), cut.truncated) == (2, 1, 1)
    assert cut[0].model_input == whole[0].model_input


def test_declared_tools_reach_the_renderer(renderer):
    tools = [{"type": "function", "function": {"name": "add", "description": "", "parameters": {}}}]
    (with_tools,) = conversation_datums([conversation(USER, REPLY, tools=tools)], renderer)
    (without,) = conversation_datums([conversation(USER, REPLY)], renderer)
    assert b'"add"' in bytes(t for t in with_tools.model_input.to_ints() if t < 256)
    assert len(with_tools.model_input.to_ints()) > len(without.model_input.to_ints())
    assert conversation_to_datum([USER, REPLY], renderer, tools=tools).model_input == with_tools.model_input


def test_nulls_that_a_table_put_in_are_not_trained_on(renderer):
    def call(**arguments):
        function = {"name": "f", "arguments": arguments}
        return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}

    rows = [[USER, call(city="Oslo")], [USER, call(unit="C")]]
    table = datasets.Dataset.from_list([{"messages": row} for row in rows])
    assert "unit" in table[0]["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert [conversation_to_datum(row["messages"], renderer).model_input for row in table] == [
        conversation_to_datum(row, renderer).model_input for row in rows
    ]


def test_a_conversation_over_max_length_is_an_error_a_counted_skip_or_shortened(renderer):
    long = conversation(USER, {**REPLY, "content": "x" * 100}, line=7)
    short = conversation(USER, REPLY)
    with pytest.raises(
        DataError,
        match=r"chats.jsonl:7: the conversation has \d+ tokens, more than max_length=60; raise max_length, or ",
    ):
        conversation_datums([short, long], renderer, 60)
    datums = conversation_datums([short, long], renderer, 60, on_long="skip")
    assert len(datums) == 1
    assert [row.line for row in datums.report.skipped] == [7]
    datums = conversation_datums([short, long], renderer, 60, on_long="truncate")
    assert [datum.model_input.length for datum in datums][1] == 59
    assert datums.truncated == 1


def test_the_error_for_a_long_conversation_survives_pickling():
    error = TooLong(3, 2, conversation(USER, REPLY, line=7))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.line, again.remedy) == (TooLong, str(error), 7, error.remedy)


def test_an_image_may_be_an_array():
    pixels = {"type": "image", "image": np.zeros((64, 64, 3), np.uint8)}
    ours = get_renderer("qwen3_vl_instruct", get_tokenizer("tiny"))
    datum = conversation_to_datum([{"role": "user", "content": [pixels]}, REPLY], ours)
    assert [chunk.type for chunk in datum.model_input.chunks] == ["encoded_text", "image", "encoded_text"]


def test_a_conversation_whose_replies_are_cut_away_is_named(renderer):
    late = conversation({**USER, "content": "x" * 100}, REPLY, line=3)
    with pytest.raises(DataError, match=r"chats.jsonl:3: .*come after max_length"):
        conversation_datums([late], renderer, 60, on_long="truncate")
    datums = conversation_datums([conversation(USER, REPLY), late], renderer, 60, on_long="truncate", on_bad="skip")
    assert len(datums) == 1
    assert datums.report.skipped[0].line == 3


def test_a_conversation_that_the_family_cannot_render_is_named(renderer):
    image = conversation({"role": "user", "content": [{"type": "image", "image": "x.png"}]}, REPLY, line=5)
    with pytest.raises(DataError, match=r"chats\.jsonl:5: .*no images") as caught:
        conversation_datums([image], renderer)
    assert isinstance(caught.value.__cause__, RenderError)


def test_no_datum_at_all_is_an_error_even_when_skipping(renderer):
    with pytest.raises(DataError, match="no conversation could be converted to a datum: 1 of 1 rows skipped"):
        conversation_datums([conversation(USER, REPLY)], renderer, 5, on_long="skip")


def test_a_misspelt_choice_is_refused(renderer):
    for arguments in ({"on_long": "cut"}, {"on_bad": "ignore"}, {"split": "always"}):
        with pytest.raises(DataError, match="must be one of"):
            conversation_datums([conversation(USER, REPLY)], renderer, **arguments)


def test_the_bundled_conversations_all_become_datums(renderer):
    conversations = load_conversations(Path(__file__).parents[2] / "recipes/data/pig_latin_test.jsonl")
    assert len(conversation_datums(conversations, renderer, 512)) == len(conversations)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"renderer": "qwen3"}, r"renderer must be a renderer, got 'qwen3'; pass get_renderer\('qwen3', tokenizer\)"),
        ({"conversations": "cook.jsonl"}, r"got the path 'cook.jsonl'; read it: .*load_conversations\(path\)"),
        ({"conversations": Path("cook.jsonl")}, r"got the path PosixPath\('cook.jsonl'\)"),
        ({"max_length": "512"}, "max_length must be a whole number of tokens .* got '512'"),
        ({"max_length": 0}, "max_length must be a whole number of tokens .* got 0"),
    ],
)
def test_a_mistaken_argument_is_refused_whatever_is_skipped(renderer, changes, says):
    arguments = {"conversations": [conversation(USER, REPLY)], "renderer": renderer, "on_bad": "skip"} | changes
    with pytest.raises(DataError, match=says):
        conversation_datums(**arguments)


def test_rows_that_are_no_conversations_are_named(renderer):
    with pytest.raises(DataError, match=r"got a dict among them; check the rows first: .*load_conversations\(rows\)"):
        conversation_datums([{"messages": [USER, REPLY]}], renderer)
