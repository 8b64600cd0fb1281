"""Estimate a training run before it starts: rows, tokens, steps, evaluations, memory, and what the tokens cost.

    tinkerloop estimate chats.jsonl --model path/to/model --batch-size 32 --epochs 3 --prices prices.toml

Rows that cannot be used are counted, with the first reasons. The exit status is 2 if there are any.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tinkerloop.cli.inspect import tokenizer_line
from tinkerloop.cli.number_options import at_least, non_negative
from tinkerloop.cli.text_options import non_empty, non_empty_path
from tinkerloop.data import Datums, conversation_datums, load_conversations
from tinkerloop.data.estimation import (
    Evaluations,
    Prices,
    estimate_datums,
    evaluation_count,
    input_tokens,
    read_prices,
    step_count,
)
from tinkerloop.engine_memory import memory_lines
from tinkerloop.errors import PlanError, TinkerloopError
from tinkerloop.hyperparams import lora_parameter_count, recommended_learning_rate
from tinkerloop.model_info import get_recommended_renderer_name
from tinkerloop.renderers import Renderer, TrainOnWhat, get_renderer
from tinkerloop.terminal import printable
from tinkerloop.tokenizers import get_tokenizer
from tinkerloop.tokenizers.loading import BUILT_IN


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=non_empty_path, help="A file whose rows have `messages` and optionally `tools`.")
    parser.add_argument(
        "--model", type=non_empty, default="tiny", help="The name or folder of the model (default: tiny)."
    )
    parser.add_argument(
        "--renderer", type=non_empty, help="The chat format. The default is the one recommended for --model."
    )
    parser.add_argument(
        "--train-on",
        default=TrainOnWhat.ALL_ASSISTANT_MESSAGES,
        choices=list(map(str, TrainOnWhat)),
        help=f"The messages whose tokens are trained (default: {TrainOnWhat.ALL_ASSISTANT_MESSAGES}).",
    )
    parser.add_argument("--max-length", type=at_least(2), help="The largest number of tokens of a conversation.")
    parser.add_argument(
        "--on-long", choices=("skip", "truncate"), help="What happens to longer ones than --max-length (default: skip)."
    )
    parser.add_argument("--batch-size", type=at_least(1), default=32, help="Datums per batch (default: 32).")
    parser.add_argument("--epochs", type=at_least(1), default=1, help="Passes over the data (default: 1).")
    parser.add_argument("--accumulate", type=at_least(1), default=1, help="Batches per optimizer step (default: 1).")
    parser.add_argument("--steps", type=at_least(1), help="The largest number of steps.")
    parser.add_argument("--rank", type=at_least(1), default=32, help="Rank of the LoRA adapter (default: 32).")
    parser.add_argument("--test-file", type=non_empty_path, help="A file of held-out conversations that are evaluated.")
    parser.add_argument(
        "--eval-every",
        type=at_least(1),
        help="Steps between evaluations. The default is only at the start and the end.",
    )
    parser.add_argument(
        "--sample-tokens",
        type=at_least(1),
        help="Each evaluation also samples a reply of at most this many tokens to each held-out conversation.",
    )
    for name, what in (
        ("", "in training steps. All tokens of all steps count, also those that are not trained"),
        ("-prefill", "that are only read, in evaluations"),
        ("-sample", "that are sampled in evaluations"),
    ):
        parser.add_argument(f"--price{name}", type=non_negative, help=f"Price of a million tokens {what}.")
    parser.add_argument(
        "--prices",
        type=non_empty_path,
        metavar="FILE",
        help="TOML or JSON file that maps each model to a table of the prices of a million tokens: train, and "
        "optionally prefill and sample.",
    )


def run(arguments: argparse.Namespace) -> int:
    prices = _prices(arguments)
    if arguments.on_long is not None and arguments.max_length is None:
        raise PlanError("--on-long is for conversations longer than --max-length: pass both, or omit --on-long")
    name = arguments.renderer or get_recommended_renderer_name(arguments.model)
    renderer = get_renderer(name, get_tokenizer(arguments.model), model_name=arguments.model)
    datums = _datums(arguments, arguments.file, renderer)
    held_out = None if arguments.test_file is None else _datums(arguments, arguments.test_file, renderer)
    batches = -(-len(datums) // arguments.batch_size)
    steps = step_count(batches, arguments.epochs, arguments.accumulate, arguments.steps)
    estimate = estimate_datums(
        datums,
        batches,
        epochs=arguments.epochs,
        accumulate=arguments.accumulate,
        max_steps=arguments.steps,
        truncated=datums.truncated,
        rows=str(datums.report),
        evaluations=_evaluations(arguments, steps, held_out),
        prices=prices,
    )
    title = f"{tokenizer_line(arguments.model)}\n{arguments.file} as {name}"
    model = _model(arguments.model, arguments.rank, estimate.largest_batch)
    print(printable(f"{title}\n\n{estimate}\n\n{model}"))
    return 2 if datums.report.skipped or (held_out is not None and held_out.report.skipped) else 0


def _datums(arguments: argparse.Namespace, file: Path, renderer: Renderer) -> Datums:
    conversations = load_conversations(file, on_bad="skip")
    return conversation_datums(
        conversations,
        renderer,
        arguments.max_length,
        train_on_what=arguments.train_on,
        on_bad="skip",
        on_long=arguments.on_long or "skip",
        report=conversations.report,
    )


def _evaluations(arguments: argparse.Namespace, steps: int, held_out: Datums | None) -> Evaluations:
    if held_out is None:
        if arguments.eval_every or arguments.sample_tokens:
            raise PlanError("--eval-every and --sample-tokens need --test-file, the held-out conversations")
        return Evaluations()
    read, sampled = input_tokens(held_out), (arguments.sample_tokens or 0) * len(held_out)
    # To sample, the prompts are read once more. They are shorter than the datums.
    return Evaluations(evaluation_count(steps, arguments.eval_every), read * (2 if sampled else 1), sampled)


def _prices(arguments: argparse.Namespace) -> Prices | None:
    given = {"train": arguments.price, "prefill": arguments.price_prefill, "sample": arguments.price_sample}
    if any(price is not None for price in given.values()):
        if arguments.prices is not None:
            raise PlanError("prices are given twice: pass either --prices with a file, or --price and its variants")
        if arguments.price is None:
            raise PlanError("--price-prefill and --price-sample need --price, the price of tokens in training steps")
        return Prices(**given)
    return None if arguments.prices is None else read_prices(arguments.prices, arguments.model)


def _model(model: str, rank: int, largest_batch: Sequence[int]) -> str:
    """Return lines about the adapter, the memory of the embedded engine, and a learning rate, as far as known."""
    if model in BUILT_IN:
        return f"{model} is built in, to try things out; for another --model, its adapter and memory are told here too"
    lines: list[str] = []
    for text, find in (
        (f"adapter of rank {rank}: {{:,}} parameters", lora_parameter_count),
        ("learning rate to start from: {:.2g}", recommended_learning_rate),
    ):
        try:
            lines.append(text.format(find(model, rank)))
        except (TinkerloopError, NotImplementedError, KeyError, OSError):
            lines.append(f"{text.partition(':')[0]}: not known for {model}")
    return "\n".join([*lines, *memory_lines(model, largest_batch, rank)])
