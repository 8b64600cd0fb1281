"""Sweep over learning rates: one run folder for each learning rate, and a table of results at the end.

    python -m recipes.sweep
    python -m recipes.sweep learning_rates=1e-4,1e-3,1e-2 max_steps=100
    python -m recipes.sweep --help

Runs resume automatically. If a sweep is started again, it continues where it was interrupted. Complete runs are not
repeated, so adding a learning rate costs only one run.

What you should see: a table of final test losses after 30 steps: 4.1 at 3e-5, 1.8 at 3e-4, 0.38 at 3e-3.
"""

from __future__ import annotations

import asyncio

import chz

from recipes.command_line import run_from_command_line
from recipes.model_defaults import dry_run_field, renderer_field
from tinkerloop.supervised import train
from tinkerloop.supervised.data import FromConversationFileBuilder
from tinkerloop.supervised.types import ChatDatasetBuilderCommonConfig


@chz.chz
class Config:
    learning_rates: tuple[float, ...] = chz.field(default=(3e-5, 3e-4, 3e-3), doc="Learning rates to try.")
    model_name: str = chz.field(
        default="recipes/base", doc="Base model: a folder, a hub name, or a model name of the service."
    )
    renderer_name: str = renderer_field()
    file_path: str = chz.field(
        default="recipes/data/pig_latin_train.jsonl", doc="JSONL file with `messages` in each row."
    )
    folder: str = chz.field(default="runs/sweep", doc="Folder for the run folders.")
    batch_size: int = chz.field(default=32, doc="Conversations per step.")
    test_size: int = chz.field(default=64, doc="Conversations held out for evaluation.")
    max_steps: int = chz.field(default=30, doc="Number of steps of each run.")
    service: str | None = chz.field(
        default=None,
        doc="Service to use: local, tinker, or a URL; by default tinker if TINKER_API_KEY is set, else local.",
    )
    dry_run: bool = dry_run_field()


async def sweep(config: Config) -> dict[float, float]:
    """Train one run after the other; return a mapping from learning rate to final test loss.

    To train them in parallel, use `asyncio.gather`.
    """
    builder = FromConversationFileBuilder(
        common_config=ChatDatasetBuilderCommonConfig(
            model_name_for_tokenizer=config.model_name,
            renderer_name=config.renderer_name,
            max_length=512,
            batch_size=config.batch_size,
        ),
        file_path=config.file_path,
        test_size=config.test_size,
    )
    losses = {}
    for rate in config.learning_rates:
        summary = await train.main(
            train.Config(
                model_name=config.model_name,
                log_path=f"{config.folder}/lr={rate:g}",
                dataset_builder=builder,
                learning_rate=rate,
                warmup_steps=3,
                max_steps=config.max_steps,
                eval_every=0,
                save_every=0,
                service=config.service,
                dry_run=config.dry_run,
            )
        )
        if config.dry_run:
            print(f"the same for each of {len(config.learning_rates)} learning rates")
            break
        losses[rate] = summary.metrics["test/nll"]
    return losses


def main(config: Config) -> dict[float, float]:
    losses = asyncio.run(sweep(config))
    if not losses:
        return losses
    best = min(losses, key=lambda rate: losses[rate])
    print("\nlearning rate  test/nll")
    for rate, loss in losses.items():
        print(f"{rate:13g}  {loss:.4f}{'  <- best' if rate == best else ''}")
    return losses


if __name__ == "__main__":
    run_from_command_line(main)
