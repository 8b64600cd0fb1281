"""A row may name images in the folder of its data file, and elsewhere only by the user's choice."""

import json
import os

import datasets
import pytest

from tinkerloop.data import load_conversations, stream, stream_conversations
from tinkerloop.errors import DataError, ImageError
from tinkerloop.images import image_chunk

REPLY = {"role": "assistant", "content": "a cat"}

# ways to write the path of an image in a row
SHAPES = {
    "image": lambda path: {"type": "image", "image": path},
    "image as in a table": lambda path: {"type": "image", "image": {"bytes": None, "path": path}},
    "path under bytes": lambda path: {"type": "image", "image": {"bytes": path}},
    "path in a path": lambda path: {"type": "image", "image": {"path": {"path": path}}},
    "image_url": lambda path: {"type": "image_url", "image_url": path},
    "image_url as in OpenAI's API": lambda path: {"type": "image_url", "image_url": {"url": path}},
    "a URL beside empty bytes": lambda path: {"type": "image_url", "image_url": {"bytes": [], "url": path}},
    "a URL beside an empty path": lambda path: {"type": "image_url", "image_url": {"url": path, "path": {}}},
    "url of a path": lambda path: {"type": "image_url", "image_url": {"url": {"path": path}}},
    "column": None,
}


def streamed(*arguments, **options):
    return list(stream(stream_conversations(*arguments, **options), 1))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/cat.png").write_bytes(b"inside")
    (tmp_path / "secret.png").write_bytes(b"outside")
    (tmp_path / "data/link.png").symlink_to(tmp_path / "secret.png")
    return tmp_path


def write(folder, path, shape="image"):
    if shape == "column":
        row = {"messages": [{"role": "user", "content": "<image>"}, REPLY], "images": [path]}
    else:
        row = {"messages": [{"role": "user", "content": [SHAPES[shape](path)]}, REPLY]}
    (folder / "data/a.jsonl").write_text(json.dumps(row))
    return folder / "data/a.jsonl"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_relative_path_begins_in_the_folder_of_the_data_file(folder, monkeypatch, shape):
    (conversation,) = load_conversations(write(folder, "cat.png", shape))
    assert str(folder / "data/cat.png") in json.dumps(conversation.messages)
    monkeypatch.chdir(folder / "data")
    (conversation,) = load_conversations("a.jsonl")
    assert '"cat.png"' in json.dumps(conversation.messages)


@pytest.mark.parametrize("path", ["{}/secret.png", "../secret.png", "link.png", "x/../../secret.png", "../data2/a.png"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_path_out_of_the_folder_needs_the_users_choice(folder, shape, path):
    file = write(folder, path.format(folder), shape)
    for load in (
        load_conversations,
        lambda *a, **k: [row for b in stream(stream_conversations(*a, **k), 1) for row in b],
    ):
        with pytest.raises(DataError, match=r"a.jsonl:1: .*leads out of the folder.*image_root="):
            load(file)
        assert len(load(file, image_root="anywhere")) == 1
        with pytest.raises(DataError, match="leads out of the folder"):
            load(file, image_root=folder / "data")


def test_an_image_root_is_where_relative_paths_begin(folder):
    (conversation,) = load_conversations(write(folder, "secret.png"), image_root=folder)
    assert conversation.messages[0]["content"][0]["image"] == str(folder / "secret.png")


@pytest.mark.parametrize("path", ["/dev/zero", "pipe.png", "."])
def test_what_is_no_regular_file_is_never_opened(folder, path):
    os.mkfifo(folder / "data/pipe.png")
    with pytest.raises(DataError, match=r"a.jsonl:1: .*names no regular file"):
        load_conversations(write(folder, path), image_root="anywhere")
    with pytest.raises(ImageError, match="not a regular file"):
        image_chunk(str(folder / "data" / path), model="Qwen/Qwen3-VL-8B-Instruct")


def test_images_in_the_row_itself_are_left_as_they_are(folder):
    uri = "data:image/png;base64,aGVsbG8="
    (conversation,) = load_conversations(write(folder, uri))
    assert conversation.messages[0]["content"] == [{"type": "image", "image": uri}]


def test_a_data_set_of_the_hub_has_no_folder_of_images(folder, monkeypatch):
    row = {"messages": [{"role": "user", "content": [{"type": "image", "image": "secret.png"}]}, REPLY]}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: [row])
    with pytest.raises(DataError, match=r"comes from no file.*image_root=FOLDER"):
        load_conversations("owner/name")
    assert len(load_conversations("owner/name", image_root=folder)) == 1
