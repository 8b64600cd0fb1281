"""Estimate a training run before it starts: rows, tokens, steps, memory, and what the tokens cost.

    tinkerloop estimate chats.jsonl --model path/to/model --batch-size 32 --epochs 3 --price 0.4

Rows that cannot be used are counted, with the first reasons. The exit status is 2 if there are any.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from tinkerloop.cli.inspect import at_least, tokenizer_line
from tinkerloop.data import conversation_datums, load_conversations
from tinkerloop.data.estimation import estimate_datums
from tinkerloop.errors import PlanError, TinkerloopError
from tinkerloop.hyperparams import lora_parameter_count, recommended_learning_rate
from tinkerloop.model_info import get_recommended_renderer_name
from tinkerloop.renderers import TrainOnWhat, get_renderer
from tinkerloop.terminal import printable
from tinkerloop.tokenizers import get_tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="A file whose rows have `messages` and optionally `tools`.")
    parser.add_argument("--model", default="tiny", help="The name or folder of the model (default: tiny).")
    parser.add_argument("--renderer", help="The chat format. The default is the one recommended for --model.")
    parser.add_argument(
        "--train-on",
        default=TrainOnWhat.ALL_ASSISTANT_MESSAGES,
        choices=list(map(str, TrainOnWhat)),
        help=f"The messages whose tokens are trained (default: {TrainOnWhat.ALL_ASSISTANT_MESSAGES}).",
    )
    parser.add_argument("--max-length", type=at_least(2), help="The largest number of tokens of a conversation.")
    parser.add_argument(
        "--on-long", choices=("skip", "truncate"), default="skip", help="What happens to longer ones (default: skip)."
    )
    parser.add_argument("--batch-size", type=at_least(1), default=32, help="Datums per batch (default: 32).")
    parser.add_argument("--epochs", type=at_least(1), default=1, help="Passes over the data (default: 1).")
    parser.add_argument("--accumulate", type=at_least(1), default=1, help="Batches per optimizer step (default: 1).")
    parser.add_argument("--steps", type=at_least(1), help="The largest number of steps.")
    parser.add_argument("--rank", type=at_least(1), default=32, help="Rank of the LoRA adapter (default: 32).")
    parser.add_argument(
        "--price",
        type=float,
        help="Price of a million tokens. All tokens of all steps count, also those that are not trained.",
    )
    parser.add_argument(
        "--prices", type=Path, metavar="FILE", help='JSON file with a price per model: {"MODEL": 0.4, ...}.'
    )


def run(arguments: argparse.Namespace) -> int:
    name = arguments.renderer or get_recommended_renderer_name(arguments.model)
    renderer = get_renderer(name, get_tokenizer(arguments.model), model_name=arguments.model)
    conversations = load_conversations(arguments.file, on_bad="skip")
    datums = conversation_datums(
        conversations,
        renderer,
        arguments.max_length,
        train_on_what=arguments.train_on,
        on_bad="skip",
        on_long=arguments.on_long,
        report=conversations.report,
    )
    estimate = estimate_datums(
        datums,
        -(-len(datums) // arguments.batch_size),
        epochs=arguments.epochs,
        accumulate=arguments.accumulate,
        max_steps=arguments.steps,
        truncated=datums.truncated,
        rows=str(datums.report),
        price_per_million=_price(arguments),
    )
    title = f"{tokenizer_line(arguments.model)}\n{arguments.file} as {name}"
    print(printable(f"{title}\n\n{estimate}\n\n{_model(arguments.model, arguments.rank)}"))
    return 2 if datums.report.skipped else 0


def _price(arguments: argparse.Namespace) -> float | None:
    if arguments.price is not None or arguments.prices is None:
        return arguments.price
    try:
        prices = json.loads(arguments.prices.read_text(encoding="utf-8"))
        return float(prices[arguments.model])
    except (ValueError, TypeError, KeyError) as error:
        raise PlanError(
            f"{arguments.prices} must be a JSON object with a number for {arguments.model!r}, such as "
            f'{{"{arguments.model}": 0.4}}'
        ) from error


def _model(model: str, rank: int) -> str:
    """Return lines about the adapter, the memory of the embedded engine, and a learning rate, as far as known."""
    lines: list[str] = []
    facts: dict[str, Any] = {}
    for fact, find in (("adapter", lora_parameter_count), ("learning rate", recommended_learning_rate)):
        try:
            facts[fact] = find(model, rank)
        except (TinkerloopError, NotImplementedError, KeyError, OSError):
            lines.append(f"{fact}: not known for {model}")
    if "adapter" in facts:
        lines.append(f"adapter of rank {rank}: {facts['adapter']:,} parameters")
    if os.path.isdir(model) and "adapter" in facts:
        weights = sum(file.stat().st_size for file in Path(model).glob("*.safetensors"))
        # An adapter parameter takes 16 bytes: its float32 value, its gradient and the two moments of Adam.
        total = weights + 16 * facts["adapter"]
        lines.append(
            f"memory of the embedded engine: about {total / 1e9:.2f} GB for the weights as stored, the adapter and "
            "Adam; the tokens of a step come on top"
        )
    if "learning rate" in facts:
        lines.append(f"learning rate to start from: {facts['learning rate']:.2g}")
    return "\n".join(lines)
