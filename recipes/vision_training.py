"""The shared part of the vision recipes: train on conversations with images, score answers, draw a contact sheet.

This is not a recipe. An answer is right if it equals the answer in the test conversation, letter for letter. Chance is
the fraction of right answers that one gets by always giving the most frequent training answer to a question.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chz
import tinker
from PIL import Image, ImageDraw, ImageFont

import tinkerloop
from recipes import make_images
from recipes.model_defaults import (
    device_field,
    dry_run_field,
    dtype_field,
    held_out_field,
    learning_rate_field,
    renderer_field,
)
from recipes.run_size import print_run_size
from tinkerloop.callbacks import Checkpoint, Evaluate, LRSchedule, Progress, StopOnNonFinite, nll, sampled, together
from tinkerloop.data import batches
from tinkerloop.data.estimation import Evaluations, evaluation_count, input_tokens
from tinkerloop.images import open_image
from tinkerloop.loop import Loop, Run, open_training_client, resolve
from tinkerloop.loop.schedules import cosine, warmup
from tinkerloop.plots import plot_metrics
from tinkerloop.renderers import Renderer, get_renderer

Messages = list[dict[str, Any]]


@chz.chz
class Config:
    model: str = chz.field(default="tiny-vl", doc="Base model: built in, a folder, or a model name of the service.")
    renderer: str = renderer_field()
    service: str = chz.field(default="local", doc="Service to use: local, tinker, or a URL.")
    device: str | None = device_field()
    dtype: str | None = dtype_field()
    run: str = chz.field(default="runs/vision", doc="Folder of the run.")
    steps: int = chz.field(default=300, doc="Total number of optimizer steps.")
    batch_size: int = chz.field(default=32, doc="Conversations per step.")
    learning_rate: float = learning_rate_field(
        2e-3, "Peak learning rate, reached after warm-up and then lowered along a cosine"
    )
    lora_rank: int = chz.field(
        default=0,
        doc="Rank of the LoRA adapter. 0 trains all weights, which tiny-vl needs, because its vision tower is random. "
        "For a pretrained model use 32.",
    )
    eval_every: int = chz.field(default=100, doc="Evaluate every this many steps.")
    test_size: int = held_out_field(200, "Maximum number of test conversations to score.")
    seed: int = chz.field(default=0, doc="Random seed for initial weights and data order.")
    dry_run: bool = dry_run_field()


class Item(NamedTuple):
    """One question to the model, with the messages before it, and the expected answer."""

    messages: Messages
    answer: str

    @property
    def question(self) -> str:
        return "".join(part["text"] for part in parts(self.messages[-1]) if part["type"] == "text")

    @property
    def image(self) -> Any:
        """The last image in the messages before the answer."""
        return [part["image"] for message in self.messages for part in parts(message) if part["type"] == "image"][-1]


def parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def ask(image: Any, question: str) -> dict[str, Any]:
    """Return a user message that consists of an image and a question."""
    return {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}


def reply(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def image_folder(folder: str, kind: str) -> Path:
    """Return `folder` as a path. If it is "", return the folder of the generated images of this kind.

    These images are drawn at the first call.
    """
    if folder:
        return Path(folder)
    config = make_images.Config()
    if not (Path(config.folder) / kind).exists():
        make_images.main(config)
    return Path(config.folder) / kind


def items_of(conversations: Sequence[Messages]) -> list[Item]:
    """Return an `Item` for every answer of every conversation. Earlier answers in it are the expected ones."""
    return [
        Item(messages[:i], message["content"])
        for messages in conversations
        for i, message in enumerate(messages)
        if message["role"] == "assistant"
    ]


def chance(train: Sequence[Messages], items: Sequence[Item]) -> float:
    """Return the fraction of items whose answer is the most frequent training answer to the same question."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items_of(train):
        counts[item.question][item.answer] += 1
    most_frequent = {question: answers.most_common(1)[0][0] for question, answers in counts.items()}
    return sum(most_frequent.get(item.question) == item.answer for item in items) / len(items)


def most_tokens(items: Sequence[Item]) -> int:
    """Return the largest number of tokens of a sampled answer: no token is shorter than a character."""
    return max(len(item.answer) for item in items) + 4


def answers(sampler: Any, renderer: Renderer, items: Sequence[Item]) -> list[str]:
    """Return the model's greedy answer to each item."""
    params = tinker.SamplingParams(max_tokens=most_tokens(items), temperature=0, stop=renderer.get_stop_sequences())
    prompts = [renderer.build_generation_prompt(item.messages) for item in items]
    futures = [sampler.sample(prompt=prompt, num_samples=1, sampling_params=params) for prompt in prompts]
    replies = [renderer.parse_response(future.result().sequences[0].tokens) for future in futures]
    return [str(message["content"]) for message, _ in replies]


def train(config: Config, conversations: Sequence[Messages], test: Sequence[Messages]) -> float:
    """Train on all answers of `conversations`. Return the fraction of right answers on `test` after training."""
    renderer = get_renderer(config.renderer, tinkerloop.get_tokenizer(config.model), model_name=config.model)
    datums = [renderer.build_supervised_example(c, "all_assistant_messages").to_datum() for c in conversations]
    held_out = [renderer.build_supervised_example(c, "all_assistant_messages").to_datum() for c in test]
    items = items_of(test)
    chance_level = chance(conversations, items)
    print(f"{len(datums)} training and {len(test)} test conversations; chance is {chance_level:.1%}")
    if config.dry_run:
        count = evaluation_count(config.steps, config.eval_every)
        # Each evaluation reads the held-out datums, and once more the prompt of each answer.
        sampled_tokens = len(items) * most_tokens(items)
        evaluations = Evaluations(count, 2 * input_tokens(held_out), sampled_tokens)
        print_run_size(config, datums, evaluations, rank=config.lora_rank)
        return 0.0
    root = Path(config.run) / "service"
    service = tinkerloop.connect(config.service, root=root, device=config.device, dtype=config.dtype)
    with Run(config.run, config=chz.asdict(config)) as run:
        record = run.checkpoints.latest()
        client = open_training_client(service, record, base_model=config.model, rank=config.lora_rank, seed=config.seed)

        def accuracy(sampler: Any) -> dict[str, float]:
            predictions = answers(sampler, renderer, items)
            return {"accuracy": sum(a == item.answer for a, item in zip(predictions, items, strict=True)) / len(items)}

        summary = Loop(
            client,
            batches(datums, min(config.batch_size, len(datums)), epochs=None, shuffle=config.seed),
            steps=config.steps,
            callbacks=[
                LRSchedule(warmup(20, cosine(config.learning_rate, 0.0, max(config.steps - 20, 1)))),
                Evaluate("test", together(nll(held_out), sampled(accuracy)), every=config.eval_every),
                Checkpoint(every=config.eval_every, keep_last=1),
                StopOnNonFinite(),
                Progress(),
            ],
            sinks=[run.metrics],
            checkpoints=run.checkpoints,
            record=record,
        ).run()
        run.finish(summary)
        predictions = answers(resolve(client.save_weights_and_get_sampling_client()), renderer, items)
        contact_sheet(items[:40], predictions[:40], run.folder / "predictions.png")
        plot_metrics(run.metrics.path, run.folder / "metrics.png", [["loss", "test/nll"], ["test/accuracy"]])
    accuracy_at_end = sum(a == item.answer for a, item in zip(predictions, items, strict=True)) / len(items)
    print(f"{accuracy_at_end:.1%} of {len(items)} answers on unseen images are right (chance {chance_level:.1%})")
    print(f"metrics, plot, checkpoints and predictions.png are in {run.folder}")
    return accuracy_at_end


def contact_sheet(items: Sequence[Item], predictions: Sequence[str], file: Path, columns: int = 8) -> None:
    """Draw the images and the model's answers in a grid. Wrong answers are red, with the expected answer below."""
    side, text = 96, 30
    rows = -(-len(items) // columns)
    sheet = Image.new("RGB", (columns * (side + 40), rows * (side + text)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, (item, answer) in enumerate(zip(items, predictions, strict=True)):
        x, y = (i % columns) * (side + 40), (i // columns) * (side + text)
        sheet.paste(open_image(item.image).convert("RGB").resize((side, side)), (x + 20, y))
        right = answer == item.answer
        pen.text((x + 4, y + side), answer[:24], fill="green" if right else "red", font=font)
        if not right:
            pen.text((x + 4, y + side + 13), f"({item.answer[:22]})", fill="gray", font=font)
    sheet.save(file)
