"""Conversations rendered per CPU second in one process: our renderer with each tokenizer backend, and the peers.

    python benchmarks/renderers.py --model FOLDER_OR_NAME [--peers FOLDER] [--conversations 200] [--rounds 5]

`--peers` is a folder into which `pip install --no-deps --target FOLDER tinker-cookbook` has installed the Cookbook.
Without it, the Cookbook's rows are left out, and a line is printed about it. Before anything is timed, the token ids of
each row of the table are compared with those of our renderer.

The rows take turns, in a different order in each round. In one turn, a row renders the whole dataset, as a user would.
With turns of only ten conversations, the fastest rows would mostly be timed while the processor's caches still hold the
tables of another row. The time is measured for ten conversations at a time. The smallest time of all rounds is used,
because other work on the machine can only add time. Compare ratios, not absolute figures.
"""

from __future__ import annotations

import argparse
import logging
import math
import pydoc_data.topics
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from tinkerloop.renderers import Renderer
from tinkerloop.renderers.families.qwen3 import Qwen3, Qwen3Options
from tinkerloop.tokenizers import get_tokenizer
from tinkerloop.tokenizers.encoders import ENGINES, FastEncoder, HuggingFaceEncoder

Messages = list[dict[str, Any]]
ALL = "all_assistant_messages"


def conversations(count: int, messages: int, words: int, seed: str) -> list[Messages]:
    """Return conversations of English prose (from Python's documentation), with `words` words per message."""
    prose = " ".join(pydoc_data.topics.topics.values()).split(" ")
    rng = random.Random(seed)

    def message_text() -> str:
        start = rng.randrange(len(prose) - words)
        return " ".join(prose[start : start + words]).strip() + f" [{rng.randrange(10**6)}]"

    roles = ("user", "assistant")
    return [[{"role": roles[i % 2], "content": message_text()} for i in range(messages)] for _ in range(count)]


def table(rows: dict[str, Callable[[Messages], Any]], chats: list[Messages], rounds: int, base: str) -> None:
    """Time the rows of the table in turns, on all conversations; print their rates and the ratios to the row `base`.

    A rate is computed from the smallest times of all rounds.
    """
    blocks = [chats[start : start + 10] for start in range(0, len(chats), 10)]
    least = {name: [math.inf] * len(blocks) for name in rows}
    for i in range(rounds):
        for name in random.Random(i).sample(list(rows), len(rows)):
            taken = [seconds(lambda render=rows[name], some=some: [render(c) for c in some]) for some in blocks]
            least[name] = list(map(min, least[name], taken))
    total = {name: sum(each) for name, each in least.items()}
    print(f"| {'':46} | conv / CPU s | x {base} |\n|{'-' * 48}|-------------:|------:|")
    for name in rows:
        print(f"| {name:46} | {len(chats) / total[name]:12,.0f} | {total[base] / total[name]:5.2f} |")
    print()


def seconds(run: Callable[[], Any]) -> float:
    """Call `run` once; return the CPU seconds that it took."""
    start = time.process_time()
    run()
    return time.process_time() - start


def engines(tokenizer: Any) -> dict[str, Any]:
    """Return the encoders whose package is installed, by name."""
    reference = HuggingFaceEncoder(tokenizer)
    encoders: dict[str, Any] = {"huggingface": reference}
    for name in ENGINES:
        try:
            encoders[name] = FastEncoder(reference, name)
        except Exception as error:
            print(f"({name} is left out: {error})")
    return encoders


def cookbook(folder: str | None, tokenizer: Any) -> Any:
    """Return the Cookbook's qwen3 renderer, or None if it is not installed."""
    if folder:
        sys.path.append(folder)
    try:
        from tinker_cookbook.renderers import get_renderer
    except ImportError as error:
        print(f"(the Cookbook is absent: {error}; see --peers)")
        return None
    return get_renderer("qwen3", tokenizer)


def unpacked(model_input: Any, weights: Any) -> tuple[Any, Any]:
    """Return both arguments, as the Cookbook's functions do. Unpacking our `Rendered` object creates its arrays."""
    return model_input, weights


def check_same(
    rows: dict[str, Callable[[Messages], Any]], wanted: Callable[[Messages], list[int]], chats: list[Messages]
) -> None:
    for name, ids in rows.items():
        differ = sum(list(ids(chat)) != wanted(chat) for chat in chats)
        print(f"ids of {name}: {len(chats) - differ} of {len(chats)} equal")
    print()


def rendering(tokenizer: Any, encoders: dict[str, Any], peer: Any, chats: list[Messages], rounds: int) -> None:
    ours = {name: Qwen3(tokenizer, Qwen3Options(), encoder=encoder) for name, encoder in encoders.items()}
    tokens = sum(len(ours["huggingface"].build_supervised_example(chat, ALL)) for chat in chats) / len(chats)
    print(f"## Supervised examples: {len(chats)} conversations of {len(chats[0])} messages, {tokens:.0f} tokens each\n")

    def hugging_face(chat: Messages) -> list[int]:
        return tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)[:-1]  # without the last newline

    same: dict[str, Callable[[Messages], Any]] = {"HF apply_chat_template": hugging_face}
    same |= {f"ours, {n}": lambda chat, r=r: r.build_supervised_example(chat, ALL).tokens for n, r in ours.items()}
    rows: dict[str, Callable[[Messages], Any]] = {"HF apply_chat_template": hugging_face}
    if peer is not None:
        from tinker_cookbook.renderers import TrainOnWhat

        every = TrainOnWhat.ALL_ASSISTANT_MESSAGES
        same["Cookbook"] = lambda chat: peer.build_supervised_example(chat, every)[0].to_ints()
        rows["Cookbook, all assistant messages"] = lambda chat: peer.build_supervised_example(chat, every)
        rows["Cookbook, its default (last message)"] = lambda chat: peer.build_supervised_example(chat)
        rows["Cookbook, split examples"] = lambda chat: peer.build_supervised_examples(chat, every)
    for name, renderer in ours.items():
        rows[f"ours, {name}: all assistant messages"] = lambda chat, r=renderer: unpacked(
            *r.build_supervised_example(chat, ALL)
        )
        rows[f"ours, {name}: split examples"] = lambda chat, r=renderer: r.build_supervised_examples(chat, ALL)
        rows[f"ours, {name}: to_datum"] = lambda chat, r=renderer: r.build_supervised_example(chat, ALL).to_datum()
        rows[f"limit, {name}: raw encode of the texts"] = lambda chat, e=encoders[name]: [
            e.encode(m["content"]) for m in chat
        ]
    check_same(same, lambda chat: ours["huggingface"].build_supervised_example(chat, ALL).tokens, chats)
    table(rows, chats, rounds, "Cookbook, all assistant messages" if peer else "HF apply_chat_template")


def episodes(tokenizer: Any, encoder: Any, peer: Any, turns: int, rounds: int) -> None:
    """Time the rendering of all prompts of an episode of `turns` tool calls.

    The prompts are either appended to, turn by turn, or rendered from the start for every turn.
    """
    print(f"## An episode of {turns} tool turns: CPU ms for all of its prompts\n")
    renderer = Qwen3(tokenizer, Qwen3Options("never"), encoder=encoder)
    (chat,) = conversations(1, 2 * turns + 1, 30, "episode")
    history: Messages = [chat[0]]
    sampled: list[list[int]] = []
    for i, (reply, result) in enumerate(zip(chat[1::2], chat[2::2], strict=True)):
        reply["tool_calls"] = [{"function": {"name": "search", "arguments": {"query": f"number {i}"}}}]
        example = renderer.build_supervised_example([chat[0], reply])
        sampled.append([t for t, w in zip(example.tokens, example.weights, strict=True) if w])
        history += [reply, {**result, "role": "tool"}]

    def appended() -> None:
        episode = renderer.episode(history[:1])
        for i, reply in enumerate(sampled):
            episode.prompt()
            episode.add_sampled(reply)
            episode.add([history[2 * i + 2]])

    def again(prompt: Callable[[Messages], Any]) -> Callable[[], None]:
        def render() -> None:
            for i in range(turns):
                prompt(history[: 2 * i + 1])

        return render

    rows = {
        f"ours, {encoder.name}: appended": appended,
        f"ours, {encoder.name}: rendered again": again(renderer.build_generation_prompt),
        "HF: rendered again": again(lambda m: tokenizer.apply_chat_template(m, add_generation_prompt=True)),
    }
    if peer is not None:
        from tinker_cookbook.renderers import ToolCall

        def theirs(messages: Messages) -> None:
            body = ToolCall.FunctionBody(name="search", arguments='{"query": "number 1"}')
            calls = {"tool_calls": [ToolCall(function=body)]}
            peer.build_generation_prompt([m | calls if "tool_calls" in m else m for m in messages])

        rows["Cookbook: rendered again"] = again(theirs)
    compare(rows, rounds, scale=1000, unit="ms")


def compare(rows: dict[str, Callable[[], Any]], rounds: int, scale: float, unit: str) -> None:
    """Time the rows in turns; print the smallest time of each row over all rounds, and its ratio to the first row."""
    taken = dict.fromkeys(rows, math.inf)
    for _ in range(rounds):
        for name, run in rows.items():
            taken[name] = min(taken[name], scale * seconds(run))
    first = next(iter(taken.values()))
    for name, least in taken.items():
        print(f"| {name:46} | {least:9.1f} {unit} | {least / first:7.2f} x |")
    print()


def parsing(tokenizer: Any, encoder: Any, peer: Any, rounds: int) -> None:
    renderer = Qwen3(tokenizer, Qwen3Options(), encoder=encoder)
    for words in (120, 480, 2000):
        (chat,) = conversations(1, 2, words, f"parse/{words}")
        chat[1]["reasoning_content"] = chat[1]["content"][: 2 * words]
        example = renderer.build_supervised_example(chat)
        ids = [t for t, w in zip(example.tokens, example.weights, strict=True) if w]
        print(f"## Parsing a reply of {len(ids)} tokens: CPU us\n")
        compare(parsers(renderer, tokenizer, peer, ids), 3 * rounds, scale=2e5, unit="us")


def parsers(renderer: Renderer, tokenizer: Any, peer: Any, ids: list[int]) -> dict[str, Callable[[], Any]]:
    """Return functions that parse the reply `ids` in different ways. Each function parses it five times."""

    def streamed(block: int) -> None:
        parser = renderer.parser()
        for i in range(0, len(ids), block):
            parser.feed(ids[i : i + block])
        parser.finish()

    rows: dict[str, Callable[[], Any]] = {
        "ours, batch": lambda: renderer.parse_response(ids),
        "ours, parse_response_streaming": lambda: list(renderer.parse_response_streaming(ids)),
        "ours, streamed in tens": lambda: streamed(10),
        "ours, streamed token by token": lambda: streamed(1),
        "HF decode alone": lambda: tokenizer.decode(ids),
    }
    if peer is not None:
        rows["Cookbook, batch"] = lambda: peer.parse_response(ids)
        rows["Cookbook, streamed"] = lambda: list(peer.parse_response_streaming(ids))
    return {name: lambda run=run: [run() for _ in range(5)] for name, run in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="The name or the folder of a Qwen3 tokenizer.")
    parser.add_argument("--peers", help="The folder in which tinker-cookbook is installed.")
    parser.add_argument("--conversations", type=int, default=200, help="The number of conversations.")
    parser.add_argument("--rounds", type=int, default=5, help="The number of timed rounds of each row.")
    parser.add_argument("--turns", type=int, default=64, help="The number of tool turns of the episode.")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # otherwise the Cookbook's time would include printing a warning at every call
    tokenizer = get_tokenizer(arguments.model)
    encoders = engines(tokenizer)
    peer = cookbook(arguments.peers, tokenizer)
    chats = conversations(arguments.conversations, 6, 75, "benchmark")
    rendering(tokenizer, encoders, peer, chats, arguments.rounds)
    fastest = next(encoders[name] for name in (*ENGINES, "huggingface") if name in encoders)
    episodes(tokenizer, fastest, peer, arguments.turns, arguments.rounds)
    if fastest.name != "huggingface":
        episodes(tokenizer, encoders["huggingface"], peer, arguments.turns, arguments.rounds)
    parsing(tokenizer, fastest, peer, arguments.rounds)


if __name__ == "__main__":
    main()
