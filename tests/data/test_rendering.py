import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tinkerloop.data import (
    DatumStore,
    FileSource,
    batches,
    conversation_datums,
    load_conversations,
    render_files,
    rendering,
)
from tinkerloop.errors import DataError
from tinkerloop.renderers import Renderer, get_renderer
from tinkerloop.tokenizers import get_tokenizer

USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def renderer():
    return get_renderer("qwen3_instruct", get_tokenizer("tiny"))


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "chats.jsonl", 10)


def write(path, count, *extra):
    rows = [{"messages": [USER, {"role": "assistant", "content": f"reply {i} " * (i + 1)}]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "".join(f"{line}\n" for line in extra))
    return path


def said(datums):
    return [(d.model_input.to_ints(), {k: v.tolist() for k, v in d.loss_fn_inputs.items()}) for d in datums]


@pytest.mark.parametrize("workers", [0, 1])
def test_stored_datums_are_those_of_rendering_now(tmp_path, path, renderer, workers):
    stored = render_files(path, renderer, 100, cache=tmp_path / "cache", on_long="truncate", workers=workers)
    now = conversation_datums(load_conversations(path), renderer, 100, on_long="truncate")
    assert isinstance(stored, DatumStore)
    assert said(stored) == said(now)
    assert said(stored[-2:]) == said(now[-2:])
    assert stored.truncated == now.truncated > 0
    assert str(stored.report) == str(now.report)


def test_a_worker_imports_neither_tinker_nor_torch_nor_transformers(path, renderer):
    """Importing them takes longer than rendering thousands of rows."""
    job = rendering._Job(renderer, 100, "all_assistant_messages", "messages", "truncate", frozenset(), "auto")
    rows = list(FileSource([str(path)], lambda raw: raw))
    program = (
        "import pickle, sys\n"
        "job, rows = pickle.load(sys.stdin.buffer)\n"
        "print([row.tokens.tolist() for row in job(rows)[0]])\n"
        "print(*(name for name in ('tinker', 'torch', 'transformers') if name in sys.modules))"
    )
    given = pickle.dumps((rendering._for_workers(job), rows))
    done = subprocess.run([sys.executable, "-c", program], input=given, capture_output=True, check=True)
    tokens, imported = done.stdout.decode().split("\n", 1)
    assert json.loads(tokens) == [row.tokens.tolist() for row in job(rows)[0]]
    assert imported.split() == []


def test_split_conversations_are_stored_as_rendered_now(tmp_path, renderer):
    thinking = get_renderer("qwen3", get_tokenizer("tiny"))
    turn = [USER, {"role": "assistant", "content": "a", "reasoning": "hm"}]
    path = tmp_path / "turns.jsonl"
    path.write_text("".join(json.dumps({"messages": turn * count}) + "\n" for count in (1, 3, 2)))
    stored, now = render_files(path, thinking, cache=tmp_path), conversation_datums(load_conversations(path), thinking)
    assert said(stored) == said(now)
    assert stored.conversation_numbers == now.conversation_numbers == [0, 1, 1, 1, 2, 2]
    assert str(stored.report) == str(now.report) == "3 rows, all used; 2 split into several datums"
    assert len(render_files(path, thinking, cache=tmp_path, split="never")) == 3


def test_rows_that_one_renderer_refuses_and_another_takes_have_entries_of_their_own(tmp_path, path):
    write(path, 2, json.dumps({"messages": [USER, {"role": "assistant", "content": "<tool_call>"}]}))
    choices = [get_renderer("qwen3", get_tokenizer("tiny"), tags_in_replies=one) for one in ("text", "refuse")]
    assert [len(render_files(path, one, cache=tmp_path / "cache", on_bad="skip")) for one in choices] == [3, 2]


def test_a_second_run_and_a_second_epoch_render_nothing(tmp_path, path, renderer, monkeypatch):
    first = said(render_files(path, renderer, cache=tmp_path / "cache"))

    def refuse(*arguments, **options):
        raise AssertionError("rendered again")

    monkeypatch.setattr(Renderer, "build_supervised_example", refuse)
    again = render_files(path, renderer, cache=tmp_path / "cache")
    two_epochs = [datum for batch in batches(again, 4, epochs=2) for datum in batch]
    assert said(two_epochs) == first * 2


def test_another_version_of_the_package_renders_again(tmp_path, path, renderer, monkeypatch):
    names = []
    for version in ("1.0", "1.1"):
        monkeypatch.setattr(rendering, "__version__", version)
        names.append(render_files(path, renderer, cache=tmp_path / "cache").fingerprint)
    assert names[0] != names[1]


def test_the_entry_depends_on_content_renderer_and_options_and_on_nothing_else(tmp_path, path, renderer):
    cache = tmp_path / "cache"

    def name(path=path, renderer=renderer, **options):
        return render_files(path, renderer, cache=cache, **{"max_length": 500, **options}).fingerprint

    other = get_renderer("role_colon", get_tokenizer("tiny"))
    moved = path.rename(tmp_path / "moved.jsonl")
    assert name(moved) == name(moved)
    kept = name(moved)
    changed = write(tmp_path / "changed.jsonl", 9)
    others = [
        name(changed),
        name(moved, renderer=other),
        name(moved, max_length=300),
        name(moved, train_on_what="last_assistant_message"),
        name(moved, on_long="truncate"),
        name(moved, on_bad="skip"),
    ]
    assert len({kept, *others}) == 7
    assert len(list(cache.iterdir())) == 7


def test_bad_rows_are_located_or_skipped_and_counted_and_leave_no_entry(tmp_path, renderer):
    path = write(tmp_path / "chats.jsonl", 3, "broken", json.dumps({"messages": [USER]}))
    cache = tmp_path / "cache"
    with pytest.raises(DataError, match=r"chats\.jsonl:4: the line is not JSON") as caught:
        render_files(path, renderer, cache=cache)
    assert (caught.value.path, caught.value.line) == (str(path), 4)
    assert list(cache.iterdir()) == []
    report = render_files(path, renderer, cache=cache, on_bad="skip").report
    assert [row.line for row in report.skipped] == [4, 5]
    assert [row.line for row in render_files(path, renderer, cache=cache, on_bad="skip").report.skipped] == [4, 5]


def test_long_rows_follow_their_own_choice(tmp_path, path, renderer):
    with pytest.raises(DataError, match="more than max_length=60"):
        render_files(path, renderer, 60, cache=tmp_path / "cache", on_bad="skip")
    stored = render_files(path, renderer, 60, cache=tmp_path / "cache", on_long="skip")
    assert len(stored) + len(stored.report.skipped) == 10
    with pytest.raises(DataError, match="no conversation could be converted to a datum"):
        render_files(path, renderer, 5, cache=tmp_path / "cache", on_long="skip")


def test_a_cursor_of_other_stored_rows_is_refused(tmp_path, path, renderer):
    cursor = batches(render_files(path, renderer, cache=tmp_path / "cache"), 2).cursor
    path.write_text(path.read_text().replace("reply", "answer"))
    changed = render_files(path, renderer, cache=tmp_path / "cache")
    with pytest.raises(DataError, match="fingerprint"):
        batches(changed, 2).seek(cursor)


def test_a_data_set_by_name_is_not_cached_and_says_so(tmp_path, renderer):
    with pytest.raises(DataError, match=r"owner/name: only files can be cached.*without a cache"):
        render_files("owner/name", renderer, cache=tmp_path / "cache")


def test_a_missing_file_is_an_error_before_anything_is_made(tmp_path, renderer):
    with pytest.raises(DataError, match="no such file"):
        render_files(tmp_path / "missing.jsonl", renderer, cache=tmp_path / "cache")
    assert not Path(tmp_path / "cache").exists()
