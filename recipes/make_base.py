"""Train the small base model in `base/` from scratch: a chat model that follows simple string instructions.

    python -m recipes.make_base                    # writes recipes/base: 1000 steps of about half a second

Why it exists: the main job fine-tunes with LoRA, which needs a model that has already learnt something. A random
one will not do, and a published one is a large download. This one is a real Qwen3 architecture (0.86 million
parameters in float32, byte tokens, the tokenizer of `tinkerloop.local.nn.tiny_model`) in a folder of 3.5 MB.

What it has seen: conversations of several turns (192 tokens at most) in Qwen3's chat format, generated on the fly
by `TASKS` below: copying, letter case, spelling backwards, word order, first and last letters, dropping letters,
adding prefixes and suffixes, vowels and consonants, doubling, joining, sorting, counting, yes/no questions about
letters. The words are random letters, invented syllables and the words that the main job trains on. Two of the
tasks exercise a part of Pig Latin: the letters before the first vowel, and the word without them ("y" is always a
consonant there and "qu" is not special).

What it has not seen: Pig Latin, its name, "ay" or "way" as a suffix to add, any task that moves letters from the
start of a word to its end, and any word that make_data.py holds out. Before fine-tuning it scores 0 on the main
job's test.

The loss counts the replies alone. Matrices are trained with Muon, everything else with AdamW. Every step's
conversations come from `Random(f"{seed}/base/{step}")` and the initial weights from the seed, so the same machine
and library versions give the same file.
"""

from __future__ import annotations

import json
import random
import string
import time
from collections.abc import Callable
from pathlib import Path

import chz
import torch

from recipes.make_data import is_held_out, read_words
from tinkerloop.local.nn.tiny_model import tiny_model
from tinkerloop.tokenizers.tiny_tokenizer import tiny_tokenizer

ARCHITECTURE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
VOWELS = "aeiou"
PAD, START, END = 256, 257, 258  # <|endoftext|>, <|im_start|>, <|im_end|>

# --- Text -------------------------------------------------------------------------------------------------------


ONSETS = ("", "", *"bcdfghjklmnprstvwyz", "br", "ch", "cl", "dr", "fl", "gr", "kn", "pl", "qu", "sc", "sh", "sl")
ONSETS += ("sp", "st", "str", "sw", "th", "thr", "tr", "wh")
NUCLEI = (*VOWELS, *VOWELS, "ea", "oo", "ou")
CODAS = ("", "", "", *"bdgklmnprstwxy", "ck", "ght", "ld", "ll", "nd", "ng", "nt", "sh", "st")


def make_word(rng: random.Random, real: list[str]) -> str:
    """A real word, invented syllables, or random letters; never one that `is_held_out`."""
    while True:
        kind = rng.random()
        if kind < 0.3:
            word = rng.choice(real)
        elif kind < 0.75:
            syllables = range(rng.choice((1, 1, 2, 2, 3)))
            word = "".join(rng.choice(part) for _ in syllables for part in (ONSETS, NUCLEI, CODAS))[:9]
        else:
            word = "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(1, 8)))
        if not is_held_out(word):
            return word


def onset(word: str) -> str:
    return word[: next((i for i, letter in enumerate(word) if letter in VOWELS), len(word))]


def each(function: Callable[[str], str], empty: str = "-") -> Callable[[list[str], random.Random], str]:
    """The task that applies `function` to every word; `empty` stands for a word of which nothing is left."""
    return lambda words, rng: " ".join(function(word) or empty for word in words)


def whole(function: Callable[[list[str]], str]) -> Callable[[list[str], random.Random], str]:
    return lambda words, rng: function(words)


Answer = Callable[[list[str], random.Random], str]
# Each task: how often, phrasings of the instruction ({} is the text), the answer from the words.
TASKS: list[tuple[float, tuple[str, ...], Answer]] = [
    (2, ("Repeat: {}", "Copy this: {}", "{}\nSay that again, please.", 'Say "{}".'), whole(" ".join)),
    (1, ("Upper case: {}", "Write in capitals: {}", "{}\nIn capitals, please."), each(str.upper)),
    (1, ("Capitalise: {}", 'How do you capitalise "{}"?'), each(str.capitalize)),
    (
        1.5,
        ("Backwards: {}", "Spell each word backwards: {}", "{}\nEach word backwards, please."),
        each(lambda w: w[::-1]),
    ),
    (1, ("Reverse the order: {}", "Say the words in reverse: {}"), whole(lambda ws: " ".join(ws[::-1]))),
    (1, ("First letters: {}", "What does each word start with? {}"), each(lambda w: w[0])),
    (1, ("Last letters: {}", "What does each word end with? {}"), each(lambda w: w[-1])),
    (1.5, ("Drop the first letter: {}", "Cut the first letter of each word: {}"), each(lambda w: w[1:])),
    (1, ("Drop the last letter: {}", "Cut the last letter of each word: {}"), each(lambda w: w[:-1])),
    (1.5, ("Letters before the first vowel: {}", "What comes before the vowel? {}"), each(onset)),
    (1.5, ("Start at the first vowel: {}", "From the first vowel on: {}"), each(lambda w: w[len(onset(w)) :])),
    (1, ("Only vowels: {}", "Keep the vowels: {}"), each(lambda w: "".join(c for c in w if c in VOWELS))),
    (1, ("Only consonants: {}", "Drop the vowels: {}"), each(lambda w: "".join(c for c in w if c not in VOWELS))),
    (1, ("Hide the vowels: {}", "Stars for vowels: {}"), each(lambda w: "".join("*" if c in VOWELS else c for c in w))),
    (
        1,
        ("Vowel first? {}", "Does each word start with a vowel? {}"),
        each(lambda w: "yes" if w[0] in VOWELS else "no"),
    ),
    (1, ("Twice each: {}", "Say each word twice: {}"), each(lambda w: f"{w} {w}")),
    (0.5, ("Spell: {}", "Spell it out: {}"), each("-".join)),
    (0.5, ("Join: {}", "Write without spaces: {}"), whole("".join)),
    (0.5, ("With commas: {}", "As a list: {}"), whole(", ".join)),
    (0.5, ("Sort: {}", "Order by alphabet: {}"), whole(lambda ws: " ".join(sorted(ws)))),
    (0.5, ("How long is each word? {}", "Count the letters: {}"), each(lambda w: str(len(w)))),
    (0.5, ("How many words? {}", "Count the words: {}"), whole(lambda ws: str(len(ws)))),
    (0.5, ("The first word: {}", "Which word comes first? {}"), whole(lambda ws: ws[0])),
    (0.5, ("The last word: {}", "Which word comes last? {}"), whole(lambda ws: ws[-1])),
]
AFFIX_WEIGHT = 2.5


def make_turn(rng: random.Random, real: list[str]) -> tuple[str, str]:
    """One instruction and its answer."""
    words = [make_word(rng, real) for _ in range(rng.randint(1, 5))]
    weights = [task[0] for task in TASKS] + [AFFIX_WEIGHT]
    index = rng.choices(range(len(weights)), weights)[0]
    if index < len(TASKS):
        _, phrasings, answer = TASKS[index]
        phrasing, reply = rng.choice(phrasings), answer(words, rng)
    else:
        affix = "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(1, 3)))
        while affix.endswith("ay"):
            affix = rng.choice(string.ascii_lowercase)
        if rng.random() < 0.3:
            phrasing, reply = f'Put "{affix}" before each word: {{}}', " ".join(affix + w for w in words)
        else:
            endings = ('Put "{}" after each word: ', 'Add "{}" to each word: ', "End each word in {}: ")
            phrasing = rng.choice(endings).format(affix) + "{}"
            reply = " ".join(w + affix for w in words)
    mark = rng.choice(("", "", "", ".", "!", "?"))
    return phrasing.format(" ".join(words) + mark), reply + mark


def make_example(rng: random.Random, real: list[str], length: int) -> tuple[list[int], list[int]]:
    """(tokens, labels) of one conversation of at most `length` tokens; labels are -100 outside the replies."""
    tokens: list[int] = []
    labels: list[int] = []
    while True:
        question, reply = make_turn(rng, real)
        prompt = [START, *f"user\n{question}".encode(), END, *b"\n", START, *b"assistant\n"]
        answer = [*reply.encode(), END]
        if len(tokens) + 1 + len(prompt) + len(answer) > length and tokens:
            return tokens, labels
        prompt = [*b"\n", *prompt] if tokens else prompt
        tokens += prompt + answer
        labels += [-100] * len(prompt) + answer


def make_batch(rng: random.Random, real: list[str], size: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) tokens and labels, right-padded; under a causal mask the padding is never seen by a real token."""
    examples = [make_example(rng, real, length) for _ in range(size)]
    longest = max(len(tokens) for tokens, _ in examples)
    tokens = torch.tensor([t + [PAD] * (longest - len(t)) for t, _ in examples])
    labels = torch.tensor([x + [-100] * (longest - len(x)) for _, x in examples])
    return tokens, labels


# --- Training ---------------------------------------------------------------------------------------------------


@chz.chz
class Config:
    out: str = chz.field(default="recipes/base", doc="The folder to write.")
    steps: int = chz.field(default=1000, doc="Optimizer steps.")
    batch_size: int = chz.field(default=32, doc="Conversations in a step.")
    length: int = chz.field(default=192, doc="Tokens of a conversation, at most.")
    learning_rate: float = chz.field(default=4e-3, doc="The highest learning rate; warmed up, held, and brought down.")
    seed: int = chz.field(default=0, doc="Of the weights and the conversations.")
    threads: int = chz.field(default=2, doc="Threads of the processor.")
    save_every: int = chz.field(default=0, doc="Also write the folder every so many steps; 0: only at the end.")


def main(config: Config) -> None:
    torch.set_num_threads(config.threads)
    real = sorted({w for words in read_words().values() for w in words if not is_held_out(w)})
    model = tiny_model(config.seed, **ARCHITECTURE).train()
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(0.5)
        for layer in model.model.layers:  # every layer starts as the identity
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if not any(p is m for m in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, lr=config.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    started = time.perf_counter()
    for step in range(config.steps):
        scale = min(1.0, (step + 1) / 50, max(0.02, (config.steps - step) / (0.3 * config.steps)))  # WSD
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * scale
        tokens, labels = make_batch(random.Random(f"{config.seed}/base/{step}"), real, config.batch_size, config.length)
        logits = model(input_ids=tokens, use_cache=False).logits  # (B, T, V)
        chosen = labels[:, 1:] != -100
        loss = torch.nn.functional.cross_entropy(logits[:, :-1][chosen], labels[:, 1:][chosen])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 50 == 0 or step + 1 == config.steps:
            right = (logits[:, :-1].argmax(-1) == labels[:, 1:])[chosen].float().mean()
            seconds = time.perf_counter() - started
            print(f"step {step:5d}  loss {loss.item():.3f}  token accuracy {right:.3f}  {seconds:.0f} s", flush=True)
        if config.save_every and (step + 1) % config.save_every == 0:
            save(model, Path(config.out))
    save(model, Path(config.out))


def save(model: torch.nn.Module, folder: Path) -> None:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that transformers 4 knows, too
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "model.safetensors").chmod(0o644)  # written readable by its owner alone


if __name__ == "__main__":
    chz.nested_entrypoint(main, allow_hyphens=True)
