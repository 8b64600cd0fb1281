"""A corpus of broken rows and files. Each is one located error, or one counted skip; nothing is repaired in silence."""

import gzip
import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tinkerloop.data import JsonlFile, batches, file_readers, load_conversations, stream, stream_conversations
from tinkerloop.errors import DataError

USER = {"role": "user", "content": "hi"}
REPLY = {"role": "assistant", "content": "hello"}
GOOD = json.dumps({"messages": [USER, REPLY]})


def row(*messages, **other):
    return json.dumps({"messages": list(messages), **other})


def call(name="f", arguments="{}", **other):
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": function, **other}]}


def test_a_sharegpt_turn_from_a_list_is_a_bad_row(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"conversations": [{"from": ["human"], "value": "hi"}]}))
    with pytest.raises(DataError, match=r"a.jsonl:1: messages\[0\]: unknown role \['human'\]"):
        load_conversations(file, adapter="sharegpt")


# name -> (the line, what the error says)
ROWS = {
    "not JSON": ("hello", "the line is not JSON: Expecting value at column 1; write one JSON object per line"),
    "single quotes": ("{'messages': []}", "not JSON"),
    "trailing comma": (GOOD[:-1] + ",}", "not JSON"),
    "two objects on a line": (GOOD + GOOD, "not JSON: Extra data"),
    "cut off": (GOOD[:30], "not JSON"),
    "NaN": (row(USER, REPLY, score=float("nan")), "NaN is not a JSON number"),
    "a number too large": (GOOD[:-1] + ', "score": 1e999}', "1e999 is not a JSON number, which must be finite"),
    "a number too small": (GOOD[:-1] + ', "score": 1e-400}', "1e-400 is too small for a float, and would become 0"),
    "a key twice": ('{"messages": [], ' + GOOD[1:], "the key 'messages' occurs more than once"),
    "nested too deeply": ("[" * 100_000 + "]" * 100_000, "JSON that cannot be used"),
    "an array": ("[1, 2]", "a row must be a JSON object, got an array"),
    "a string": ('"hello"', "must be a JSON object, got a string"),
    "a number": ("3", "must be a JSON object, got a number"),
    "null": ("null", "must be a JSON object, got null"),
    "no messages": ('{"text": "hi"}', r"no key \"messages\", only \['text'\]; expected a row like"),
    "messages in another spelling": ('{"Messages": []}', r"no key \"messages\", only \['Messages'\]"),
    "ShareGPT": ('{"conversations": []}', "its keys fit adapter='sharegpt'"),
    "Alpaca": ('{"instruction": "a", "output": "b"}', "its keys fit adapter='alpaca'"),
    "prompt and completion": ('{"prompt": "a", "completion": "b"}', "its keys fit adapter='prompt_completion'"),
    "messages is null": ('{"messages": null}', "messages must be a list"),
    "messages is text": ('{"messages": "hi"}', "messages must be a list of at least one message, got a str"),
    "messages is an object": ('{"messages": {"role": "user"}}', "got a dict"),
    "messages is empty": ('{"messages": []}', "got an empty list"),
    "a message is text": (row("hi"), r"messages\[0\]: expected a dictionary with 'role' and 'content', got str"),
    "a message is null": (row(USER, None), r"messages\[1\]: expected a dictionary.*got NoneType"),
    "no role": (row({"content": "hi"}), r"messages\[0\]: the message has no role, only the keys \['content'\]"),
    "role is null": (row({"role": None, "content": "hi"}), r"messages\[0\]: the message has no role"),
    "from and value": (row({"from": "human", "value": "a"}), "ShareGPT rows need adapter='sharegpt'"),
    "role is a list": (row({"role": ["user"], "content": "hi"}), r"unknown role \['user'\]"),
    "type of a part is a list": (
        row({"role": "user", "content": [{"type": ["text"]}]}),
        r"unknown content part \['text'\]",
    ),
    "id of a call is a list": (row(USER, call(id=["1"])), r"'id' must be a string, got \['1'\]"),
    "id of a result is a list": (
        row(USER, call(id="1"), {"role": "tool", "content": "x", "tool_call_id": ["1"]}),
        r"messages\[2\]: 'tool_call_id' must be a string, got \['1'\]",
    ),
    "unparsed calls are a number": (
        row(USER, {**REPLY, "unparsed_tool_calls": 3}),
        "'unparsed_tool_calls' must be a list, got int",
    ),
    "role is a number": (row({"role": 3, "content": "hi"}), "unknown role 3"),
    "unknown role": (row(USER, {"role": "narrator", "content": "x"}), "unknown role 'narrator'; known roles: system"),
    "a foreign role": (row({"role": "human", "content": "x"}), "unknown role 'human'; did you mean 'user'"),
    "a misspelt role": (row(USER, {"role": "asistant", "content": "x"}), "did you mean 'assistant'"),
    "a role in capitals": (row({"role": "User", "content": "x"}), "did you mean 'user'"),
    "no content": (row({"role": "user"}, REPLY), r"messages\[0\]: 'content' is missing; add"),
    "content is null": (row(USER, {"role": "assistant", "content": None}), r"messages\[1\]: 'content' is missing"),
    "empty content": (row(USER, {"role": "assistant", "content": ""}), "the assistant message has empty content"),
    "blank content": (row({"role": "user", "content": " \n"}, REPLY), "the user message has empty content"),
    "content is a number": (
        row({"role": "user", "content": 3}, REPLY),
        "'content' must be a string or a list of parts",
    ),
    "content is an object": (row({"role": "user", "content": {"text": "a"}}, REPLY), "got dict"),
    "no parts": (row({"role": "user", "content": []}, REPLY), "empty content"),
    "an unknown part": (row({"role": "user", "content": [{"type": "audio"}]}, REPLY), "unknown content part 'audio'"),
    "a part without type": (
        row({"role": "user", "content": [{"text": "a"}]}, REPLY),
        "unknown content part a dict without a type",
    ),
    "a part without text": (row({"role": "user", "content": [{"type": "text"}]}, REPLY), 'needs a string under "text"'),
    "an empty part": (row({"role": "user", "content": [{"type": "text", "text": ""}]}, REPLY), "empty content"),
    "an image part without image": (row({"role": "user", "content": [{"type": "image"}]}, REPLY), "needs an image"),
    "half a surrogate pair": (row({"role": "user", "content": "a\ud83d"}, REPLY), "unpaired surrogate at character 1"),
    "only user turns": (row(USER, USER), "no assistant message.*nothing to train on.*add the reply"),
    "only a system prompt": (row({"role": "system", "content": "x"}), "no assistant message"),
    "weight is text": (row(USER, {**REPLY, "weight": "1"}), "'weight' must be a finite number"),
    "trainable is text": (row(USER, {**REPLY, "trainable": "yes"}), "'trainable' must be true or false"),
    "tool_calls is an object": (
        row(USER, {"role": "assistant", "tool_calls": {"a": 1}}),
        "'tool_calls' must be a list, got dict",
    ),
    "the user calls a tool": (row({**call(), "role": "user"}, REPLY), "only an assistant message can have"),
    "a call without a name": (row(USER, call(name="")), "needs a function with a name"),
    "a call without a function": (
        row(USER, {"role": "assistant", "tool_calls": [{"id": "1"}]}),
        "needs a function with a name",
    ),
    "broken arguments": (row(USER, call(arguments='{"a":')), "the arguments of 'f' are not JSON"),
    "arguments are a list": (
        row(USER, call(arguments="[1]")),
        "the arguments of 'f' must be a JSON object, got list; keep",
    ),
    "arguments nested 3000 deep": (
        row(USER, call(arguments='{"a":' * 3000 + "1" + "}" * 3000)),
        "the arguments of 'f' are not JSON: more than 100 lists",
    ),
    "a weight of 401 digits": (row(USER, {**REPLY, "weight": 10**400}), "must be a finite number, got 10{39}\\.\\.\\."),
    "an answer to no call": (
        row(USER, call(id="a"), {"role": "tool", "content": "1", "tool_call_id": "b"}, REPLY),
        "no earlier message has the tool call 'b'",
    ),
    "tools is text": (row(USER, REPLY, tools="f"), "expected a list of tools, got str"),
    "a tool without a name": (
        row(USER, REPLY, tools=[{"type": "function", "function": {}}]),
        r"tools\[0\]: a tool needs a name",
    ),
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_broken_row_is_named_with_file_line_and_problem(tmp_path, kind):
    line, problem = ROWS[kind]
    path = tmp_path / "chats.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(DataError, match=f"chats.jsonl:3: .*({problem})") as caught:
        load_conversations(path)
    assert (caught.value.path, caught.value.line) == (str(path), 3)


@pytest.mark.parametrize("kind", ROWS)
def test_a_broken_row_is_skipped_and_counted_when_asked_for(tmp_path, kind):
    line, _ = ROWS[kind]
    path = tmp_path / "chats.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    conversations = load_conversations(path, on_bad="skip")
    assert [c.line for c in conversations] == [1, 4]
    (skipped,) = conversations.report.skipped
    assert (skipped.path, skipped.line) == (str(path), 3)
    assert "1 of 3 rows skipped" in str(conversations.report)
    assert str(path) in str(conversations.report)


def test_a_stream_meets_the_same_errors_and_counts_the_same_skips_once(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(GOOD + "\n" + "\n".join(line for line, _ in ROWS.values()) + "\n" + GOOD + "\n")
    with pytest.raises(DataError, match=r"chats\.jsonl:2: the line is not JSON"):
        list(stream(stream_conversations(path), 1))
    source = stream_conversations(path, on_bad="skip")
    assert len(list(stream(source, 1, epochs=2))) == 4
    assert [row.line for row in source.skipped] == list(range(2, 2 + len(ROWS)))


def truncated(content):
    return content[: len(content) * 2 // 3]


def parquet_bytes():
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"messages": [[USER, REPLY]] * 3}), sink)
    return sink.getvalue().to_pybytes()


MANY = (GOOD + "\n").encode() * 2000

# name -> (file name, its bytes, what the error says)
FILES = {
    "an empty file": ("a.jsonl", b"", "a.jsonl: no conversation to train on: the file is empty"),
    "blank lines only": ("a.jsonl", b"\n \n", "the file is empty"),
    "an unknown suffix": ("a.txt", MANY, r"unknown file suffix; known suffixes: \.jsonl"),
    "UTF-16": ("a.jsonl", (GOOD + "\n").encode("utf-16"), "the file is UTF-16; convert it to UTF-8"),
    "lines under the name of an array": (
        "a.json",
        MANY,
        r"not JSON.*rename a file with one object per line to \.jsonl",
    ),
    "a key twice in an array": (
        "a.json",
        b'[{"messages": [], "messages": []}]',
        "the key 'messages' occurs more than once",
    ),
    "an object under the name of an array": ("a.json", GOOD.encode(), "must contain an array of rows"),
    "gzip that is not": ("a.jsonl.gz", MANY, "a.jsonl.gz: the file cannot be read: Not a gzipped file"),
    "gzip cut off": ("a.jsonl.gz", truncated(gzip.compress(MANY)), "cannot be read: Compressed file ended"),
    "gzip damaged": ("a.jsonl.gz", gzip.compress(MANY)[:-8] + b"\0" * 8, "cannot be read: CRC check failed"),
    "zstd that is not": ("a.jsonl.zst", MANY, "a.jsonl.zst: the file cannot be read"),
    "zstd cut off": ("a.jsonl.zst", truncated(pyarrow.compress(MANY, "zstd", asbytes=True)), "cannot be read: Trunc"),
    "parquet that is not": ("a.parquet", MANY, "a.parquet: the file cannot be read"),
    "parquet cut off": ("a.parquet", truncated(parquet_bytes()), "a.parquet: the file cannot be read"),
    "no good row at all": ("a.jsonl", b'{"a": 1}\n', "the row has no key"),
}

# The same, where it is a row that shows it.
FILES_WITH_A_BROKEN_ROW = {
    "Latin-1": (
        "a.jsonl",
        GOOD.replace("hello", "café").encode("latin-1"),
        r"a.jsonl:1: the line is not UTF-8 at byte \d+",
    ),
    "cut off in the last row": ("a.jsonl", MANY[:-20], "a.jsonl:2000: the line is not JSON.*seems to be cut off here"),
    "an array under the name of lines": ("a.jsonl", f"[\n{GOOD}\n]".encode(), "a.jsonl:1: the line is not JSON"),
    "a pretty-printed object": (
        "a.jsonl",
        json.dumps(json.loads(GOOD), indent=1).encode(),
        "a.jsonl:1: the line is not JSON",
    ),
}


@pytest.mark.parametrize("on_bad", ["error", "skip"])
@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_cannot_be_used_is_an_error_either_way(tmp_path, kind, on_bad):
    name, content, problem = FILES[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        load_conversations(tmp_path / name, on_bad=on_bad)
    assert caught.value.path == str(tmp_path / name)


@pytest.mark.parametrize("kind", FILES_WITH_A_BROKEN_ROW)
def test_a_file_of_another_kind_is_told_by_its_first_broken_row(tmp_path, kind):
    name, content, problem = FILES_WITH_A_BROKEN_ROW[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=problem):
        load_conversations(tmp_path / name)


@pytest.mark.parametrize("path", ["missing.jsonl", "missing/*.jsonl", "owner/missing.jsonl"])
def test_a_missing_file_says_where_it_was_looked_for(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"{re.escape(path)}: no such file; searched {tmp_path}"):
        load_conversations(path)


def test_a_misspelt_file_names_the_nearest(tmp_path):
    (tmp_path / "chats.jsonl").write_text(GOOD)
    with pytest.raises(DataError, match=rf"did you mean {tmp_path}/chats\.jsonl\?"):
        load_conversations(tmp_path / "chat.jsonl")


@pytest.mark.parametrize("make", [batches, stream])
@pytest.mark.parametrize("path", ["chats.jsonl", Path("chats.jsonl")])
def test_a_path_is_not_taken_for_rows_of_characters(make, path):
    with pytest.raises(DataError, match=r"is a path; read it: load_conversations\(path\)"):
        make(path, 2)


def test_a_folder_without_data_says_what_would_be_data(tmp_path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(DataError, match=r"no data file in this folder; known suffixes: \.jsonl"):
        load_conversations(tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_line_that_would_fill_the_memory_is_refused_with_a_remedy(tmp_path, monkeypatch, name):
    monkeypatch.setattr(file_readers, "MAX_LINE_BYTES", len(GOOD) + 1)
    lines = f"{GOOD}\n{GOOD[:-1]}  }}\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    for read in (load_conversations, lambda path: list(stream(stream_conversations(path), 1))):
        with pytest.raises(DataError, match=rf"{name}:2: the line has more than {len(GOOD) + 1} bytes.*MAX_LINE_BYTES"):
            read(tmp_path / name)
    if name == "a.jsonl":
        with pytest.raises(DataError, match="the line has more than"):
            JsonlFile(tmp_path / name)


def test_a_misspelt_choice_is_refused(tmp_path):
    for arguments in ({"on_bad": "ignore"}, {"adapter": "shareGPT"}):
        with pytest.raises(DataError):
            load_conversations(tmp_path, **arguments)
