"""Rows per second from a conversation file to datums: our functions, the Cookbook's builder and TRL's preparation.

    python -m benchmarks.data --tokenizer FOLDER [--peers FOLDER] [--rows 1000]

--tokenizer is the folder or the name of a Qwen3 tokenizer. --peers is a folder with the other packages:
    pip install --no-deps --target FOLDER tinker-cookbook==0.6.1 blobfile lxml termcolor trl==1.16.0
Without --peers, only the figures of our functions are printed.

Every variant reads the same JSONL file, renders it in Qwen3's chat format, and ends with all datums (TRL: all token ids
and labels) in memory. The rounds of the variants are interleaved; compare the ratios of medians within one run. CPU
seconds include child processes. Other work on the machine disturbs them less than wall-clock seconds.

At the end, the embedded engine trains the small base model of the recipes. The share of each step that was spent
waiting for data is printed.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from tinkerloop import connect
from tinkerloop.callbacks import Timing
from tinkerloop.data import (
    Conversation,
    batches,
    conversation_datums,
    conversation_to_datum,
    load_conversations,
    prefetch,
    render_files,
    stream,
    stream_conversations,
)
from tinkerloop.loop import Loop
from tinkerloop.renderers import get_renderer
from tinkerloop.tokenizers import encoder_of, get_tokenizer

RECIPES = Path(__file__).parents[1] / "recipes"
OURS, COOKBOOK = "ours, one process", "tinker-cookbook, one renderer for all rows"
FEW = 20  # number of rows for a variant that needs half a second per row
MAX_LENGTH = 4096


def make_file(path: Path, rows: int, seed: int = 0) -> None:
    """Write a JSONL file of conversations of six messages and about 700 tokens, with random sentences."""
    rng = random.Random(f"{seed}/benchmark")
    vocabulary = (RECIPES / "words.txt").read_text().split()

    def sentence() -> str:
        return " ".join(rng.choices(vocabulary, k=rng.randint(8, 16))).capitalize() + rng.choice(".?!")

    with open(path, "w") as file:
        for _ in range(rows):
            messages = [
                {"role": role, "content": " ".join(sentence() for _ in range(rng.randint(3, 14)))}
                for role in ("user", "assistant") * 3
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


@dataclass
class Variant:
    """One way to prepare the data: the function to time, its number of rows, and the measured times.

    `seconds` has one entry per round: wall-clock seconds and CPU seconds, per row.
    """

    run: Callable[[], Any]
    rows: int
    seconds: list[tuple[float, float]] = field(default_factory=list)

    @property
    def wall_and_cpu(self) -> tuple[float, float]:
        wall, cpu = zip(*self.seconds, strict=True)
        return statistics.median(wall), statistics.median(cpu)


def variants(args: argparse.Namespace, path: Path, few: Path, cache: Path) -> dict[str, Variant]:
    """Return the variants by name. The function of a variant returns its datums if they can be compared with ours."""
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

    by_name = {
        "raw encode, Hugging Face": Variant(raw, args.rows),
        OURS: Variant(ours, args.rows),
        "ours, two workers, into a cache": Variant(ours_parallel, args.rows),
        "ours, from the cache": Variant(ours_cached, args.rows),
    }
    if args.peers:
        sys.path.append(args.peers)
        by_name[COOKBOOK] = Variant(cookbook(args, path, one_renderer=True), args.rows)
        by_name["tinker-cookbook as it is"] = Variant(cookbook(args, few, one_renderer=False), FEW)
        by_name["TRL"] = Variant(trl(tokenizer, path), args.rows)
    return by_name


def cookbook(args: argparse.Namespace, path: Path, *, one_renderer: bool) -> Callable[[], Any]:
    """Return a function that prepares the file with the Cookbook's builder.

    The builder of version 0.6.1 creates a renderer, and with it a copy of the tokenizer, for every row. With
    `one_renderer`, all rows use the same renderer.
    """
    from tinker_cookbook import renderers  # pyright: ignore[reportMissingImports]
    from tinker_cookbook.supervised.data import FromConversationFileBuilder  # pyright: ignore[reportMissingImports]
    from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig  # pyright: ignore[reportMissingImports]

    common = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=args.tokenizer,
        renderer_name="qwen3_instruct",
        max_length=MAX_LENGTH,
        batch_size=FEW,
        train_on_what=renderers.TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    )

    def build() -> Any:
        dataset, _ = builder()
        return [datum for index in range(len(dataset)) for datum in dataset.get_batch(index)]

    def build_with_one_renderer() -> Any:
        with mock.patch.object(FromConversationFileBuilder, "renderer", builder.renderer):
            return build()

    builder = FromConversationFileBuilder(common_config=common, file_path=str(path), shuffle_seed=None)
    return build_with_one_renderer if one_renderer else build


def trl(tokenizer: Any, path: Path) -> Callable[[], None]:
    """Return a function that prepares the file with TRL, in one process (TRL's default) and without a model.

    TRL's training template writes an empty reasoning block before every reply, so it produces a few more tokens than
    our renderer.
    """
    import datasets
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]
    from trl.chat_template_utils import get_training_chat_template  # pyright: ignore[reportMissingImports]

    datasets.disable_caching()
    datasets.disable_progress_bars()
    config = SFTConfig(max_length=MAX_LENGTH, assistant_only_loss=True, report_to=[], use_cpu=True, bf16=False)
    trainer = object.__new__(SFTTrainer)
    trainer._tokenizer, trainer.completion_only_loss = tokenizer, False
    trainer.chat_template = get_training_chat_template(tokenizer)

    def prepare() -> None:
        with tempfile.TemporaryDirectory() as folder:
            rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=folder)
            prepared = trainer._prepare_dataset(rows, tokenizer, config, False, None, "train")
            prepared["input_ids"][:], prepared["labels"][:]

    return prepare


def waiting(cache: Path) -> dict[str, str]:
    """Train the recipes' base model on their data, in batches of 32; return the share of time waiting for data."""
    client = connect("local").create_lora_training_client(base_model=str(RECIPES / "base"), rank=32)
    renderer = get_renderer("qwen3_instruct", get_tokenizer(str(RECIPES / "base")))
    path = RECIPES / "data" / "pig_latin_train.jsonl"

    def rendered(conversation: Conversation) -> Any:
        return conversation_to_datum(conversation.messages, renderer)

    stored = render_files(path, renderer, cache=cache)
    sources = {
        "from the cache": batches(stored, 32, epochs=None, shuffle=0),
        "from the cache, ahead on a thread": prefetch(batches(stored, 32, epochs=None, shuffle=0)),
        "streamed and rendered, ahead on a thread": prefetch(
            stream(stream_conversations(path), 32, epochs=None, shuffle=0, map_fn=rendered)
        ),
    }
    shares = {}
    for name, source in sources.items():
        timing = Timing()
        Loop(client, source, steps=30, callbacks=[timing]).run()
        shares[name] = f"{timing.totals['data'] / timing.totals['total']:.2%} of {timing.totals['total'] / 30:.2f} s"
    return shares


def cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def measure(runs: dict[str, Variant], rounds: int) -> dict[str, list[list[int]]]:
    """Time all variants in turns; return the token ids of the variants that return datums."""
    ids: dict[str, list[list[int]]] = {}
    for _ in range(rounds):
        for name, variant in runs.items():
            wall, cpu = time.perf_counter(), cpu_seconds()
            datums = variant.run()
            spent = time.perf_counter() - wall, cpu_seconds() - cpu
            variant.seconds.append((spent[0] / variant.rows, spent[1] / variant.rows))
            if datums is not None and name not in ids:
                ids[name] = [datum.model_input.to_ints() for datum in datums]
    return ids


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure rows per second from a conversation file to datums.")
    parser.add_argument("--tokenizer", required=True, help="The folder or the name of a Qwen3 tokenizer.")
    parser.add_argument("--peers", help="The folder in which tinker-cookbook and trl are installed.")
    parser.add_argument("--rows", type=int, default=1000, help="The number of conversations.")
    parser.add_argument("--rounds", type=int, default=3, help="The number of timed rounds of each variant.")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # otherwise the time of a peer that warns for each row would include printing
    with tempfile.TemporaryDirectory() as folder:
        path, few = Path(folder) / "conversations.jsonl", Path(folder) / "few.jsonl"
        make_file(path, args.rows)
        make_file(few, FEW)
        runs = variants(args, path, few, Path(folder) / "cache")
        ids = measure(runs, args.rounds)
        shares = waiting(Path(folder) / "waiting")
    for name, other in ids.items():
        assert other == ids[OURS][: len(other)], f"the token ids of {name!r} differ from those of {OURS!r}"
    tokens = sum(map(len, ids[OURS])) / args.rows
    encoder = encoder_of(get_tokenizer(args.tokenizer)).name
    print(f"{args.rows} conversations of {tokens:.0f} tokens, {os.cpu_count()} cores, {args.rounds} rounds, {encoder}")
    base = COOKBOOK if args.peers else "raw encode, Hugging Face"
    base_wall, base_cpu = runs[base].wall_and_cpu
    print(f"\n| | rows/s | x {base} | rows per CPU second | x |\n|---|---:|---:|---:|---:|")
    for name, variant in runs.items():
        wall, cpu = variant.wall_and_cpu
        print(f"| {name} | {1 / wall:,.0f} | {base_wall / wall:.2f} | {1 / cpu:,.0f} | {base_cpu / cpu:.2f} |")
    print("\nwaiting for data, of a step on the embedded engine:")
    for name, share in shares.items():
        print(f"  {name}: {share}")


if __name__ == "__main__":
    main()
