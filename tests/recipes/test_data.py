"""The checked-in conversations and the base model of the main job."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes import make_base, make_data
from recipes.make_data import PROMPTS, is_held_out, pig_latin, read_words, split_words
from tinkerloop.tokenizers.tiny_tokenizer import tiny_tokenizer

RECIPES = Path(make_data.__file__).parent


def read(name: str) -> list[tuple[str, str]]:
    """(the user's prompt, the reply) of each line; every line must be exactly one such exchange."""
    lines = (RECIPES / "data" / name).read_text(encoding="utf-8").splitlines()
    rows = []
    for line in lines:
        row = json.loads(line)
        assert list(row) == ["messages"]
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        rows.append((user["content"], assistant["content"]))
    return rows


TRAIN, TEST = read("pig_latin_train.jsonl"), read("pig_latin_test.jsonl")


def source(prompt: str) -> str:
    """The English sentence inside a prompt."""
    found = {m[1] for p in PROMPTS if (m := re.fullmatch(re.escape(p).replace(r"\{\}", "([a-z .!?]+)"), prompt))}
    assert len(found) == 1, prompt
    return found.pop()


def words(rows: list[tuple[str, str]]) -> set[str]:
    return {word for prompt, _ in rows for word in re.findall("[a-z]+", source(prompt))}


@pytest.mark.parametrize(
    ("english", "expected"),
    [
        ("apple", "appleway"),
        ("string", "ingstray"),
        ("my", "ymay"),
        ("yellow", "ellowyay"),
        ("quiet square", "ietquay aresquay"),
        ("the fly sang!", "ethay yflay angsay!"),
    ],
)
def test_the_rule(english: str, expected: str):
    assert pig_latin(english) == expected


def test_every_reply_follows_the_rule():
    for prompt, reply in TRAIN + TEST:
        assert reply == pig_latin(source(prompt))


def test_sizes():
    assert (len(TRAIN), len(TEST)) == (3000, 160)


def test_no_test_sentence_is_trained_on():
    trained = {source(prompt).rstrip(".!?") for prompt, _ in TRAIN}
    assert trained.isdisjoint(source(prompt).rstrip(".!?") for prompt, _ in TEST)


def test_held_out_words_are_never_trained_on_and_half_the_test_is_made_of_them():
    _, unseen = split_words()
    content = {w for name, ws in unseen.items() if name not in make_data.FUNCTION_WORDS for w in ws}
    assert len(content) > 100
    assert content.isdisjoint(words(TRAIN))
    with_unseen = [row for row in TEST if not content.isdisjoint(words([row]))]
    assert len(with_unseen) == 80
    function_words = {w for name in make_data.FUNCTION_WORDS for w in unseen[name]}
    assert words(with_unseen) <= content | function_words


def test_the_script_writes_exactly_the_checked_in_files(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "words.txt").write_bytes((RECIPES / "words.txt").read_bytes())
    monkeypatch.setattr(make_data, "HERE", tmp_path)
    make_data.main()
    for name in ("pig_latin_train.jsonl", "pig_latin_test.jsonl"):
        assert (tmp_path / "data" / name).read_bytes() == (RECIPES / "data" / name).read_bytes()


def test_words_are_lower_case_unique_and_have_a_vowel():
    for name, listed in read_words().items():
        assert len(set(listed)) == len(listed), name
        assert all(re.fullmatch("[a-z]*[aeiouy][a-z]*", word) for word in listed), name


def test_the_base_models_text_has_neither_pig_latin_nor_a_held_out_word():
    real = sorted({w for ws in read_words().values() for w in ws if not is_held_out(w)})
    rng = random.Random(0)
    assert not any(is_held_out(make_base.make_word(rng, real)) for _ in range(5000))
    for _ in range(5000):
        question, answer = make_base.make_turn(rng, real)
        assert "Pig" not in question
        assert not re.search(r'"w?ay"|in w?ay:', question)
        asked, answered = (re.findall("[a-z]+", text.lower()) for text in (question, answer))
        assert answered != re.findall("[a-z]+", pig_latin(" ".join(asked[-len(answered) :])))


def test_the_base_is_small_and_its_tokenizer_is_the_tiny_one():
    folder = RECIPES / "base"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4_000_000
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tiny = tiny_tokenizer()
    assert tokenizer.get_vocab() == tiny.get_vocab()
    assert tokenizer.chat_template == tiny.chat_template
    text = "<|im_start|>user\nAß 漢  .<|im_end|>"
    assert tokenizer.encode(text) == tiny.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def reply(model: torch.nn.Module, tokenizer, prompt: str) -> str:
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer.encode(text)])
    output = model.generate(ids, max_new_tokens=40, do_sample=False)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def test_the_base_follows_instructions_it_was_trained_on_and_does_not_know_pig_latin():
    tokenizer = AutoTokenizer.from_pretrained(RECIPES / "base")
    model = AutoModelForCausalLM.from_pretrained(RECIPES / "base")
    assert model.dtype == torch.float32
    assert reply(model, tokenizer, "Upper case: the quiet owl") == "THE QUIET OWL"
    right = sum(reply(model, tokenizer, prompt) == expected for prompt, expected in TEST[:10])
    assert right == 0
