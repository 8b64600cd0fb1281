import gzip
import json
import tracemalloc

import datasets
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinkerloop.data import (
    FileSource,
    JsonlFile,
    batches,
    check_messages,
    find_files,
    load_conversations,
    stream,
    stream_conversations,
    train_test_split,
)
from tinkerloop.errors import DataError

USER = {"role": "user", "content": "hi"}
REPLY = {"role": "assistant", "content": "hello"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
ROWS = [
    {"messages": [USER, REPLY]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "héllo"}]}, REPLY], "id": 7},
    {
        "messages": [
            USER,
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": null}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "c", "content": ""},
            {**REPLY, "weight": 0.5, "trainable": True},
        ],
        "tools": [TOOL],
    },
]


def write(path, rows=ROWS):
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".gz":
        text = gzip.compress(text)
    elif path.suffix == ".zst":
        text = pyarrow.compress(text, "zstd", asbytes=True)
    elif path.suffix == ".json":
        text = json.dumps(rows).encode()
    path.write_bytes(text)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json"])
def test_every_kind_of_file_holds_the_same_conversations(tmp_path, name):
    conversations = load_conversations(write(tmp_path / name))
    assert [c.messages for c in conversations] == [
        ROWS[0]["messages"],
        ROWS[1]["messages"],
        [USER, {**ROWS[2]["messages"][1], "content": ""}, *ROWS[2]["messages"][2:]],
    ]
    assert [c.tools for c in conversations] == [None, None, [TOOL]]
    assert [c.extra for c in conversations] == [{}, {"id": 7}, {}]
    assert [c.line for c in conversations] == [1, 2, 3]
    assert str(conversations.report) == "3 rows, all used"


def test_columns_unified_by_parquet_bring_no_nulls_into_messages(tmp_path):
    path = tmp_path / "rows.parquet"
    rows = [ROWS[0], {"messages": ROWS[2]["messages"], "tools": [TOOL]}]
    datasets.Dataset.from_list(rows).to_parquet(path)
    first, second = load_conversations(path)
    assert first.messages == [USER, REPLY]  # no tool_calls, weight or name
    assert first.tools is None
    assert second.messages[0] == USER
    assert set(second.messages[3]) == {"role", "content", "weight", "trainable"}


def test_folders_globs_and_lists_are_read_in_order(tmp_path):
    for name in ("b.jsonl", "a.jsonl.gz", "deep/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, ROWS[:1])
    (tmp_path / "README.md").write_text("not data")

    def names(path):
        return [c.path.removeprefix(f"{tmp_path}/") for c in load_conversations(path)]

    assert names(tmp_path) == ["a.jsonl.gz", "b.jsonl", "deep/c.jsonl"]
    assert names(str(tmp_path / "*.jsonl")) == ["b.jsonl"]
    assert names([tmp_path / "deep/c.jsonl", tmp_path / "b.jsonl"]) == ["deep/c.jsonl", "b.jsonl"]


def names_found(path, folder):
    return [name.removeprefix(f"{folder}/") for name in find_files(path)]


@pytest.mark.parametrize("pattern", ["", "**/*.jsonl", "**"])
@pytest.mark.parametrize("hidden", [".ipynb_checkpoints/a.jsonl", ".git/a.jsonl", "._a.jsonl", "__MACOSX/a.jsonl"])
def test_hidden_files_are_no_data_unless_they_are_named(tmp_path, hidden, pattern):
    for name in ("deep/a.jsonl", hidden):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name)
    assert names_found(f"{tmp_path}/{pattern}", tmp_path) == ["deep/a.jsonl"]
    assert names_found(f"{tmp_path}/{hidden}", tmp_path) == [hidden]


@pytest.mark.parametrize("pattern", ["", "**/*.jsonl", "**/**/*.jsonl"])
def test_linked_folders_and_files_are_read_once(tmp_path, pattern):
    (tmp_path / "data/inner").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for name in ("data/a.jsonl", "data/inner/b.jsonl", "other/c.jsonl"):
        write(tmp_path / name)
    for name, target in (
        ("again", "data/inner"),
        ("more", "other"),
        ("z1", "data"),
        ("z2", "data"),
        ("x.jsonl", "data/a.jsonl"),
    ):
        (tmp_path / "data" / name).symlink_to(tmp_path / target)
    found = names_found(f"{tmp_path}/data/{pattern}", tmp_path)
    assert found == ["data/a.jsonl", "data/inner/b.jsonl", "data/more/c.jsonl"]


def test_relative_patterns_are_found_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep/a.jsonl")
    assert find_files("**/*.jsonl") == find_files("deep/**") == find_files("d*/**/*.jsonl") == ["deep/a.jsonl"]


def test_a_link_that_leads_nowhere_is_refused(tmp_path):
    write(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match=r"b.jsonl: the link leads to no file"):
        load_conversations(tmp_path)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + (json.dumps(ROWS[0]) + "\r\n\r\n").encode() * 2)
    assert [c.line for c in load_conversations(path)] == [1, 3]


def test_a_data_set_by_name_gives_the_conversations_that_went_into_it(monkeypatch):
    """The hub is out of reach here; a table in memory stands for what is loaded from it."""
    rows = [ROWS[0], ROWS[2]]  # a column cannot hold both text and parts
    table = datasets.Dataset.from_list(rows)
    assert table[0]["messages"][0]["tool_calls"] is None
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: table)
    conversations = load_conversations("owner/name", split="test")
    assert [c.messages for c in conversations] == [check_messages(row["messages"]) for row in rows]
    assert (conversations[1].path, conversations[1].line) == ("owner/name[test]", 2)


@pytest.mark.parametrize(
    "adapter, row",
    [
        ("prompt_completion", {"prompt": "hi", "completion": "hello", "source": "x"}),
        ("prompt_completion", {"prompt": [USER], "completion": [REPLY], "source": "x"}),
        ("prompt_completion", {"prompt": "hi", "response": "hello", "source": "x"}),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}], "source": "x"},
        ),
        ("alpaca", {"instruction": "hi", "input": "", "output": "hello", "source": "x"}),
        (lambda row: {"messages": [USER, REPLY], "source": row["s"]}, {"s": "x"}),
    ],
)
def test_a_named_adapter_maps_other_rows_and_keeps_other_keys(tmp_path, adapter, row):
    (conversation,) = load_conversations(write(tmp_path / "a.jsonl", [row]), adapter=adapter)
    assert conversation.messages == [USER, REPLY]
    assert conversation.extra == {"source": "x"}


def test_system_prompts_and_inputs_of_other_rows_are_kept(tmp_path):
    rows = [{"system": "be brief", "instruction": "Add.", "input": "1, 2", "output": "3"}]
    (conversation,) = load_conversations(write(tmp_path / "a.jsonl", rows), adapter="alpaca")
    assert [m["content"] for m in conversation.messages] == ["be brief", "Add.\n\n1, 2", "3"]


@pytest.mark.parametrize(
    "adapter, row, problem",
    [
        ("prompt_completion", {"prompt": "hi"}, "needs a key 'completion' or 'response'"),
        ("sharegpt", {"conversations": [{"role": "user"}]}, 'a ShareGPT turn must have the keys "from" and "value"'),
        ("sharegpt", {"conversations": "hi"}, "must be a list of objects"),
        ("sharegpt", {"conversations": [{"from": "narrator", "value": "x"}]}, "unknown role 'narrator'"),
        ("sharegpt", {"conversations": [{"from": "function_call", "value": "f("}]}, "a function_call must be JSON"),
        (
            "sharegpt",
            {"conversations": [{"from": "gpt", "value": "a", "content": "b"}]},
            "'content' beside",
        ),
        ("sharegpt", {"conversations": [{"from": "gpt", "value": "a", "role": "user"}]}, "'role' beside"),
        ("alpaca", {"instruction": "hi"}, "needs a key 'output'"),
        ("alpaca", {"instruction": "a", "output": "b", "history": ["hi"]}, "must be a list of pairs"),
        ("alpaca", {"instruction": "a", "input": 0, "output": "b"}, "input must be a string, got a int"),
        ("alpaca", {"instruction": ["a"], "input": "c", "output": "b"}, "instruction must be a string, got a list"),
        ("prompt_completion", {"prompt": "a", "completion": "b", "response": "c"}, "both 'completion' and 'response'"),
        (
            "prompt_completion",
            {"prompt": [{"role": "system", "content": "x"}, USER], "completion": "b", "system": "y"},
            "the row has 'system', and its messages begin with another system message",
        ),
        ("prompt_completion", {"prompt": "a", "completion": "b", "reasoning": "hm"}, "the row has 'reasoning', which"),
        ("prompt_completion", {"prompt": "a", "completion": "b", "label": False}, "the row has 'label', which nothing"),
        ("alpaca", {"instruction": "a", "output": "b", "messages": [USER]}, "has 'messages' beside the keys"),
    ],
)
def test_a_row_that_its_adapter_cannot_read_is_located(tmp_path, adapter, row, problem):
    with pytest.raises(DataError, match=f"a.jsonl:1: .*{problem}"):
        load_conversations(write(tmp_path / "a.jsonl", [row]), adapter=adapter)


def test_empty_keys_of_a_sharegpt_turn_do_not_replace_what_it_says():
    call = '{"name": "f", "arguments": {}}'
    turns = [
        {"from": "human", "value": "q", "content": "", "role": None},
        {"from": "function_call", "value": call, "tool_calls": [], "content": None},
        {"from": "gpt", "value": "a", "content": "a", "weight": 0.5},
    ]
    (conversation,) = load_conversations([{"conversations": turns}], adapter="sharegpt")
    assert conversation.messages == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]},
        {"role": "assistant", "content": "a", "weight": 0.5},
    ]


def test_bookkeeping_keys_of_messages_are_left_out_and_counted(tmp_path):
    rows = [{"messages": [{**USER, "id": 3, "refusal": None}, {**REPLY, "id": 4, "source": "x"}]}]
    conversations = load_conversations(write(tmp_path / "a.jsonl", rows))
    assert conversations[0].messages == [USER, REPLY]
    assert str(conversations.report) == "1 rows, all used; message keys ignored: id (2), source (1)"


def test_keys_of_parts_and_calls_are_left_out_and_counted_like_those_of_messages(tmp_path):
    part = {"type": "text", "text": "q", "cache_control": {"type": "ephemeral"}, "id": "p"}
    call = {"id": "c", "function": {"name": "f", "arguments": "{}", "output": "3"}, "timestamp": 7}
    rows = [{"messages": [{"role": "user", "content": [part]}, {**REPLY, "tool_calls": [call]}]}]
    with pytest.raises(DataError, match=r"messages\[0\]: nothing reads 'cache_control'"):
        load_conversations(rows)
    (conversation,) = loaded = load_conversations(rows, ignore_keys=["cache_control", "output"])
    assert conversation.messages[0]["content"] == [{"type": "text", "text": "q"}]
    assert conversation.messages[1]["tool_calls"] == [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]
    assert loaded.report.ignored_keys == {"id": 1, "cache_control": 1, "output": 1, "timestamp": 1}


@pytest.mark.parametrize("column", [{"weight": 0.5}, {"sample_weight": 2}, {"label": True}])
def test_a_column_that_says_how_to_train_a_row_is_refused_unless_it_is_named(column):
    rows = [{"messages": [USER, REPLY], **column}]
    with pytest.raises(DataError, match="which nothing reads"):
        load_conversations(rows)
    assert load_conversations(rows, ignore_keys=list(column))[0].extra == column


@pytest.mark.parametrize("load", [load_conversations, lambda *a, **k: list(stream_conversations(*a, **k))])
def test_a_key_that_nothing_reads_is_refused_unless_it_is_named(tmp_path, load):
    path = write(tmp_path / "a.jsonl", [{"messages": [USER, {**REPLY, "score": 1}], "video": "a.mp4"}])
    with pytest.raises(DataError, match=r"a.jsonl:1: .*'video', which nothing reads.*ignore_keys=\('video',\)"):
        load(path)
    with pytest.raises(DataError, match=r"messages\[1\]: nothing reads 'score'.*ignore_keys=\('score',\)"):
        load(path, ignore_keys=["video"])
    (conversation,) = load(path, ignore_keys=["video", "score"])
    assert (conversation.messages, conversation.extra) == ([USER, REPLY], {"video": "a.mp4"})
    with pytest.raises(DataError, match="a collection of names"):
        load(path, ignore_keys="score")


CALL = {"name": "add", "arguments": "{}"}
IMAGE = {"type": "image", "image": "a.png"}
PHOTO = {"role": "user", "content": "<image>What is <image>it?"}
SEEN = {
    "role": "user",
    "content": [IMAGE, {"type": "text", "text": "What is "}, IMAGE, {"type": "text", "text": "it?"}],
}
PROMPT = {"role": "system", "content": "s"}

# the row -> the messages and tools that are read from it
PUBLIC_SHAPES = [
    ({"messages": json.dumps([USER, REPLY]), "tools": json.dumps([TOOL])}, [USER, REPLY], [TOOL]),
    ({"messages": [USER, REPLY], "tools": [json.dumps(TOOL)]}, [USER, REPLY], [TOOL]),
    ({"messages": [USER, REPLY], "functions": [TOOL["function"]]}, [USER, REPLY], [TOOL["function"]]),
    ({"messages": [PHOTO, REPLY], "images": ["a.png", "a.png"]}, [SEEN, REPLY], None),
    (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, REPLY], "image": "a.png"},
        [{"role": "user", "content": [IMAGE]}, REPLY],
        None,
    ),
    ({"messages": [PHOTO, REPLY]}, [PHOTO, REPLY], None),
    ({"messages": [USER, REPLY], "images": [], "system": ""}, [USER, REPLY], None),
    ({"messages": [USER, REPLY], "system": "s"}, [PROMPT, USER, REPLY], None),
    ({"messages": [PROMPT, USER, REPLY], "system_prompt": "s"}, [PROMPT, USER, REPLY], None),
    ({"messages": [USER, {**REPLY, "loss": False}, USER, {**REPLY, "loss": True}]},
     [USER, {**REPLY, "weight": 0}, USER, REPLY], None),
    (
        {"messages": [USER, {**REPLY, "function_call": CALL}, {"role": "function", "name": "add", "content": "3"}]},
        [USER, {**REPLY, "tool_calls": [{"function": CALL}]}, {"role": "tool", "name": "add", "content": "3"}],
        None,
    ),
]  # fmt: skip


@pytest.mark.parametrize("row, messages, tools", PUBLIC_SHAPES)
def test_what_public_rows_write_beside_the_messages_is_read(tmp_path, row, messages, tools):
    (conversation,) = load_conversations(write(tmp_path / "a.jsonl", [row]))
    read = json.loads(json.dumps(conversation.messages).replace(f"{tmp_path}/", ""))  # without the folder of images
    assert (read, conversation.tools, conversation.extra) == (messages, tools, {})


@pytest.mark.parametrize(
    "row, problem",
    [
        ({"messages": [USER, REPLY], "images": ["a.png"]}, "1 under 'images', but its messages have 0 places"),
        ({"messages": [PHOTO, REPLY], "images": ["a.png"]}, "but its messages have 2 places"),
        ({"messages": [PHOTO, REPLY], "images": []}, "0 under 'images', but its messages have 2 places"),
        ({"messages": [PHOTO, REPLY], "images": ["a"], "image": "a"}, "both 'image' and 'images'"),
        ({"messages": [PROMPT, USER, REPLY], "system": "x"}, "begin with another system message"),
        ({"messages": [USER, REPLY], "tools": [TOOL], "functions": [TOOL]}, "both 'tools' and 'functions'"),
        ({"messages": [USER, {**REPLY, "function_call": CALL, "tool_calls": [CALL]}]}, "both tool_calls and"),
        ({"messages": "[{"}, "messages is JSON text that cannot be read"),
        ({"messages": [USER, REPLY], "audio": "a.wav"}, "nothing reads"),
    ],
)
def test_a_row_that_would_lose_what_stands_beside_its_messages_is_refused(tmp_path, row, problem):
    with pytest.raises(DataError, match=f"a.jsonl:1: .*{problem}"):
        load_conversations(write(tmp_path / "a.jsonl", [row]))


def test_sharegpt_calls_and_observations_become_calls_and_results(tmp_path):
    called = [
        {"from": "human", "value": "hi"},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "hello", "loss": False},
    ]
    rows = [{"conversations": called}, {"conversations": json.dumps(called)}]
    reply = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    for conversation in load_conversations(write(tmp_path / "a.jsonl", rows), adapter="sharegpt"):
        assert conversation.messages == [USER, reply, {"role": "tool", "content": "3"}, {**REPLY, "weight": 0}]


def test_the_history_of_an_alpaca_row_comes_first(tmp_path):
    rows = [{"instruction": "Add.", "output": "3", "history": [["hi", "hello"]]}]
    (conversation,) = load_conversations(write(tmp_path / "a.jsonl", rows), adapter="alpaca")
    assert [m["content"] for m in conversation.messages] == ["hi", "hello", "Add.", "3"]


def test_the_messages_of_a_prompt_need_no_reply():
    assert check_messages([USER], train=False) == [USER]


def test_a_lazily_read_file_gives_the_rows_of_the_file_in_any_order(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"x": i}) + "\n" * (i % 2) for i in range(30)))  # with blank lines
    rows = JsonlFile(path)
    assert [rows[i]["x"] for i in (29, 3, 0, -1)] == [29, 3, 0, 29]
    assert [row["x"] for row in rows[5:8]] == [5, 6, 7]
    epoch = [row["x"] for batch in batches(rows, 4, shuffle=0) for row in batch]
    assert sorted(epoch) == list(range(30))
    path.write_text(json.dumps({"x": 0}) + "\n" + "broken\n")
    with pytest.raises(DataError, match=r"a\.jsonl:2: the line is not JSON"):
        JsonlFile(path)[1]


def test_a_changed_file_is_noticed_by_the_cursor(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"x": 1}, {"x": 2}])
    cursor = batches(JsonlFile(path), 1).cursor
    write(path, [{"x": 1}, {"x": 3}])
    with pytest.raises(DataError, match="fingerprint"):
        batches(JsonlFile(path), 1).seek(cursor)


def test_streamed_conversations_equal_loaded_ones(tmp_path):
    path = write(tmp_path / "a.jsonl.gz")
    (batch,) = stream(stream_conversations(path), 3)
    assert batch == list(load_conversations(path))
    assert [row["messages"] for row in FileSource(path)] == [row["messages"] for row in ROWS]


# Splits


@given(
    texts=st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), min_size=4, max_size=60),
    fraction=st.floats(0.1, 0.9),
    seed=st.integers(0, 5),
)
@settings(max_examples=60)
def test_a_split_loses_nothing_and_lets_no_row_stand_on_both_sides(texts, fraction, seed):
    try:
        train, test = train_test_split(texts, fraction, seed=seed)
    except DataError:
        assert max(map(texts.count, texts)) > 1 or round(fraction * len(texts)) >= len(texts)
        return
    assert sorted([*train, *test]) == sorted(texts)
    assert not set(train) & set(test)
    assert 1 <= len(test) <= max(1, round(fraction * len(texts)))
    assert [*train_test_split(texts, fraction, seed=seed)[1]] == [*test]


def test_a_split_by_count_is_exact_for_distinct_rows():
    rows = [{"messages": i} for i in range(100)]
    train, test = train_test_split(rows, 13)
    assert (len(train), len(test)) == (87, 13)
    assert [*train_test_split(rows, 13, seed=1)[1]] != [*test]


def test_reordering_and_adding_rows_moves_few_across_the_split():
    rows = [{"x": i} for i in range(200)]
    test = {row["x"] for row in train_test_split(rows, 0.1)[1]}
    assert {row["x"] for row in train_test_split(rows[::-1], 0.1)[1]} == test
    more = {row["x"] for row in train_test_split([*rows, *({"x": i} for i in range(200, 220))], 0.1)[1]}
    assert len(test - more) <= 4


def test_rows_are_grouped_by_a_key_when_one_is_given():
    rows = [{"user": i % 5, "x": i} for i in range(50)]
    train, test = train_test_split(rows, 10, key=lambda row: str(row["user"]))
    assert len({row["user"] for row in test}) == 1
    assert not {row["user"] for row in train} & {row["user"] for row in test}


@pytest.mark.parametrize("test", [0, -1, 1.0, 5, 4, True, "3"])
def test_impossible_splits_are_refused(test):
    with pytest.raises(DataError):
        train_test_split([1, 2, 3, 4], test)


def test_a_split_holds_a_hash_of_every_row_and_not_what_it_says():
    tracemalloc.start()
    train, test = train_test_split(range(2000), 0.1, key=lambda row: f"{row}" * 5000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(train), len(test)) == (1800, 200)
    assert peak < 2_000_000  # what all rows say takes 30 MB


def test_only_duplicates_cannot_be_split():
    with pytest.raises(DataError, match="remove duplicates"):
        train_test_split(["same"] * 10, 3)


IN_MEMORY = [
    {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]},
    {"messages": [{"role": "user", "content": "Hi."}]},
]


def test_rows_in_memory_are_checked_as_those_of_files_are():
    conversations = load_conversations(IN_MEMORY, on_bad="skip")
    assert [one.messages[-1]["content"] for one in conversations] == ["Hello."]
    assert "rows in memory:2" in str(conversations.report)
    with pytest.raises(DataError, match="rows in memory:2: "):
        load_conversations(IN_MEMORY)


def test_a_loaded_dataset_is_read_as_rows():
    assert (
        load_conversations(datasets.Dataset.from_list(IN_MEMORY[:1]))[0].messages
        == load_conversations(IN_MEMORY[:1])[0].messages
    )
