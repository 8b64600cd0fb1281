"""Write the conversations of the main recipe: English to Pig Latin, one OpenAI-style `messages` object per line.

    python -m recipes.make_data

All data are generated from `words.txt` with a fixed seed, so every run writes the same bytes.

The rule (`pig_latin`): all words are lower case. To a word that starts with a vowel, "way" is appended. In any other
word, the leading consonants move to the end, and "ay" is appended. "y" is a consonant at the start of a word and a
vowel elsewhere; "qu" moves as one unit. A final ".", "!" or "?" stays at the end.

Both sentences and words are held out. No sentence of the test file occurs in the training file. About one content word
in eight (`is_held_out`) occurs neither in a training sentence nor in the training data of the base model
(make_base.py).

* `pig_latin_train.jsonl`           3000 conversations
* `pig_latin_test.jsonl`            160 conversations; in half of them every noun, verb, adjective and adverb is a
                                    held-out word
"""

from __future__ import annotations

import argparse
import json
import random
import re
import zlib
from pathlib import Path

HERE = Path(__file__).parent
FUNCTION_WORDS = ("determiner", "subject")

PROMPTS = (
    "Pig Latin: {}",
    "Say in Pig Latin: {}",
    "Translate to Pig Latin: {}",
    "Turn this into Pig Latin: {}",
    "{}\nIn Pig Latin, please.",
    'How do you say "{}" in Pig Latin?',
)

PATTERNS = (
    "adjective noun",
    "transitive adverb",
    "determiner noun intransitive",
    "subject intransitive adverb",
    "determiner adjective noun",
    "subject transitive determiner noun",
    "determiner noun intransitive adverb",
    "determiner adjective noun intransitive",
    "determiner noun transitive determiner noun",
    "determiner adjective noun intransitive adverb",
    "subject transitive determiner adjective noun",
)


def read_words() -> dict[str, list[str]]:
    """Return the words of `words.txt` by word class, in the order of the file."""
    lines = (HERE / "words.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split(":") for line in lines if not line.startswith("#"))
    return {name: words.split() for name, words in pairs}


def is_held_out(word: str) -> bool:
    """Return True if a content word must not occur in training data. This depends only on the word."""
    return zlib.crc32(word.encode()) % 8 == 0


def split_words() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the training words and the held-out words, each by word class. Function words are in both."""
    function_words = {word for name in FUNCTION_WORDS for word in read_words()[name]}
    seen, unseen = {}, {}
    for name, words in read_words().items():
        held_out = [w for w in words if is_held_out(w) and w not in function_words]
        seen[name] = [w for w in words if w not in held_out]
        unseen[name] = words if name in FUNCTION_WORDS else held_out
    return seen, unseen


def pig_latin(text: str) -> str:
    """Translate a lower-case sentence to Pig Latin, by the rule in this module's docstring."""

    def convert(match: re.Match[str]) -> str:
        word = match.group()
        start = re.match(r"y?(?:qu|[^aeiouy])*", word).end()  # always matches, at least the empty string
        return word[start:] + word[:start] + ("ay" if start else "way")

    return re.sub("[a-z]+", convert, text)


def sentence(rng: random.Random, words: dict[str, list[str]]) -> str:
    """Return a random sentence of two to five words. It is grammatical; half of the sentences end with a mark."""
    picked = " ".join(rng.choice(words[part]) for part in rng.choice(PATTERNS).split())
    return picked + rng.choice(["", "", "", ".", "!", "?"])


def conversation(rng: random.Random, text: str) -> dict:
    return {
        "messages": [
            {"role": "user", "content": rng.choice(PROMPTS).format(text)},
            {"role": "assistant", "content": pig_latin(text)},
        ]
    }


def conversations(rng: random.Random, words: dict[str, list[str]], count: int, taken: set[str]) -> list[dict]:
    """Return `count` conversations about new sentences, and add these sentences, without final marks, to `taken`."""
    rows = []
    while len(rows) < count:
        text = sentence(rng, words)
        if (bare := text.rstrip(".!?")) not in taken:
            taken.add(bare)
            rows.append(conversation(rng, text))
    return rows


def write(name: str, rows: list[dict]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (HERE / "data" / name).write_text("".join(lines), encoding="utf-8")
    print(f"{name}: {len(rows)} conversations")


def main() -> None:
    rng = random.Random("pig latin")
    seen, unseen = split_words()
    taken: set[str] = set()
    write("pig_latin_train.jsonl", conversations(rng, seen, 3000, taken))
    test = conversations(rng, seen, 80, taken) + conversations(rng, unseen, 80, taken)
    rng.shuffle(test)
    write("pig_latin_test.jsonl", test)


if __name__ == "__main__":
    argparse.ArgumentParser(
        description="Write the conversations of the main recipe. There are no options."
    ).parse_args()
    main()
