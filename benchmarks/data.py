"""How fast conversations in a file become datums: ours, the Cookbook's builder, TRL's preparation, side by side.

    python -m benchmarks.data --tokenizer FOLDER [--cookbook FOLDER] [--trl] [--rows 2000]

--tokenizer: a folder or name with a Qwen3 tokenizer. --cookbook: a folder that holds tinker-cookbook (see
benchmarks/loop.py for how to make one). --trl: also measure TRL's preparation (`pip install trl`).

Every contestant reads the same JSONL file, renders it in Qwen3's format, and ends with all datums (TRL: all token ids
and masks) in memory. The rounds are interleaved; what counts is the ratio of medians within one run. CPU seconds
include child processes and say more than wall seconds on a machine that does other things as well.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinkerloop.data import conversation_datums, load_conversations, render_files
from tinkerloop.renderers import get_renderer
from tinkerloop.tokenizers import get_tokenizer

MAX_LENGTH = 4096


def make_file(path: Path, rows: int, seed: int = 0) -> None:
    """Conversations of six messages and about 700 tokens, of words that are never the same sentence twice."""
    rng = random.Random(f"{seed}/benchmark")
    vocabulary = Path(__file__).parents[1].joinpath("recipes", "words.txt").read_text().split()

    def sentence() -> str:
        return " ".join(rng.choices(vocabulary, k=rng.randint(8, 16))).capitalize() + rng.choice(".?!")

    with open(path, "w") as file:
        for _ in range(rows):
            messages = [
                {"role": role, "content": " ".join(sentence() for _ in range(rng.randint(3, 14)))}
                for role in ("user", "assistant") * 3
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


def contestants(args: argparse.Namespace, path: Path, cache: Path) -> dict[str, Callable[[], Any]]:
    """Name -> what it does in one round; each returns its token ids for the comparison."""
    tokenizer = get_tokenizer(args.tokenizer)
    renderer = get_renderer("qwen3_instruct", tokenizer)
    core = tokenizer.backend_tokenizer

    def raw() -> None:
        for line in path.read_text().splitlines():
            core.encode("".join(message["content"] for message in json.loads(line)["messages"]))

    def ours() -> Any:
        return conversation_datums(load_conversations(path), renderer, MAX_LENGTH)

    def ours_parallel() -> Any:
        shutil.rmtree(cache, ignore_errors=True)
        return list(render_files(path, renderer, MAX_LENGTH, cache=cache, workers=2))

    def ours_cached() -> Any:
        return list(render_files(path, renderer, MAX_LENGTH, cache=cache))

    found: dict[str, Callable[[], Any]] = {
        "raw encode (Hugging Face)": raw,
        "ours, one process": ours,
        "ours, two workers, into a cache": ours_parallel,
        "ours, from the cache": ours_cached,
    }
    if args.cookbook:
        found["tinker-cookbook"] = cookbook(args, path)
    if args.trl:
        found["TRL"] = trl(tokenizer, path)
    return found


def cookbook(args: argparse.Namespace, path: Path) -> Callable[[], Any]:
    sys.path.append(args.cookbook)
    from tinker_cookbook.renderers import TrainOnWhat  # pyright: ignore[reportMissingImports]
    from tinker_cookbook.supervised.data import FromConversationFileBuilder  # pyright: ignore[reportMissingImports]
    from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig  # pyright: ignore[reportMissingImports]

    common = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=args.tokenizer,
        renderer_name="qwen3_instruct",
        max_length=MAX_LENGTH,
        batch_size=50,
        train_on_what=TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    )

    def build() -> Any:
        dataset, _ = FromConversationFileBuilder(common_config=common, file_path=str(path), shuffle_seed=None)()
        return [datum for index in range(len(dataset)) for datum in dataset.get_batch(index)]

    return build


def trl(tokenizer: Any, path: Path) -> Callable[[], Any]:
    import datasets
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    def prepare() -> Any:
        datasets.disable_caching()
        rows = datasets.load_dataset("json", data_files=str(path), split="train")
        trainer = object.__new__(SFTTrainer)  # its preparation alone, without a model
        config = SFTConfig(max_length=MAX_LENGTH, assistant_only_loss=True, report_to=[])
        return trainer._prepare_dataset(rows, tokenizer, config, False, None, "train")

    return prepare


def cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description="Conversations in a file to datums: rows a second.")
    parser.add_argument("--tokenizer", required=True, help="a folder or name with a Qwen3 tokenizer")
    parser.add_argument("--cookbook", help="a folder that holds tinker-cookbook")
    parser.add_argument("--trl", action="store_true", help="also measure TRL's preparation")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # a peer that warns once a row would pay for the printing
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "conversations.jsonl"
        make_file(path, args.rows)
        runs = contestants(args, path, Path(folder) / "cache")
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        ids: dict[str, list[list[int]]] = {}
        for _ in range(args.rounds):
            for name, run in runs.items():
                wall, cpu = time.perf_counter(), cpu_seconds()
                made = run()
                times[name].append((time.perf_counter() - wall, cpu_seconds() - cpu))
                if made is not None and name not in ids and name != "TRL":
                    ids[name] = [datum.model_input.to_ints() for datum in made]
    tokens = sum(map(len, ids["ours, one process"]))
    print(
        f"{args.rows} conversations, {tokens / args.rows:.0f} tokens each, {os.cpu_count()} cores, {args.rounds} rounds"
    )
    print(f"encoder: {get_encoder_name(args.tokenizer)}; load average {os.getloadavg()[0]:.1f}")
    for name, other in ids.items():
        assert other == ids["ours, one process"], f"{name} made other tokens"
    base = "tinker-cookbook" if args.cookbook else "raw encode (Hugging Face)"
    base_wall, base_cpu = (statistics.median(column) for column in zip(*times[base], strict=True))
    print(f"\n| | rows/s | x {base} | rows per CPU second | x |\n|---|---|---|---|---|")
    for name, rounds in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*rounds, strict=True))
        per = f"{args.rows / wall:,.0f} | {base_wall / wall:.1f} | {args.rows / cpu:,.0f} | {base_cpu / cpu:.1f}"
        print(f"| {name} | {per} |")


def get_encoder_name(tokenizer: str) -> str:
    from tinkerloop.tokenizers import encoder_of

    return encoder_of(get_tokenizer(tokenizer)).name


if __name__ == "__main__":
    main()
