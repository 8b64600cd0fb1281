"""Tokenizers by name."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest

from tinkerloop.errors import TinkerloopError
from tinkerloop.tokenizer_utils import get_tokenizer as same_get_tokenizer
from tinkerloop.tokenizers import get_tokenizer


def test_tiny_is_built_in_and_the_cookbooks_path_finds_the_same_function() -> None:
    assert get_tokenizer("tiny") is get_tokenizer("tiny")
    assert get_tokenizer("tiny").encode("A") == [65]
    assert same_get_tokenizer is get_tokenizer


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(TinkerloopError, match=f"cannot load the tokenizer of '{tmp_path}': "):
        get_tokenizer(tmp_path)


def test_the_built_in_tokenizer_is_loaded_without_torch() -> None:
    """Rendering and inspecting data need a tokenizer, and torch would more than double the time it takes to get one."""
    script = "import sys, tinkerloop; tinkerloop.get_tokenizer('tiny'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_name_without_a_slash_is_not_searched_on_the_hub(asked_hosts):
    with pytest.raises(TinkerloopError, match=r"tokenizer of 'tinny': .*built-in model \(these are tiny and tiny-vl\)"):
        get_tokenizer("tinny")
    assert asked_hosts == []


def test_a_relative_folder_gives_the_tokenizer_that_is_there_now(tmp_path, monkeypatch):
    for name, token in (("one", "<a>"), ("two", "<b>")):
        tokenizer = copy.deepcopy(get_tokenizer("tiny"))
        tokenizer.add_tokens([token])
        tokenizer.save_pretrained(tmp_path / name / "model")
    found = []
    for name in ("one", "two", "one"):
        monkeypatch.chdir(tmp_path / name)
        found.append(get_tokenizer("model"))
    assert "<a>" in found[0].get_vocab()
    assert "<b>" in found[1].get_vocab()
    assert found[2] is found[0]
