"""What the vision recipes share: train on conversations with images, score every answer, draw the contact sheet.

Not a recipe itself. An answer counts when it is, letter for letter, what the test conversation says. Chance is the
share that would be right by always giving the commonest answer to a question.
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
from tinkerloop.callbacks import Checkpoint, Evaluate, LRSchedule, Progress, StopOnNonFinite, nll, sampled, together
from tinkerloop.data import batches
from tinkerloop.images import open_image
from tinkerloop.loop import Loop, Run, open_training_client, resolve
from tinkerloop.loop.schedules import cosine, warmup
from tinkerloop.plots import plot_metrics
from tinkerloop.renderers import Renderer, get_renderer

Messages = list[dict[str, Any]]


@chz.chz
class Config:
    model: str = chz.field(default="tiny-vl", doc="A built-in model, a folder, or a name the service knows.")
    renderer: str = chz.field(default="qwen3_vl_instruct", doc="The model's chat format.")
    service: str = chz.field(default="local", doc="local, tinker, or a URL.")
    run: str = chz.field(default="runs/vision", doc="The run's folder.")
    steps: int = chz.field(default=300, doc="Optimizer steps in all.")
    batch_size: int = chz.field(default=32, doc="Conversations in a step.")
    learning_rate: float = chz.field(default=2e-3, doc="The peak; warmed up, then falling as a cosine.")
    lora_rank: int = chz.field(
        default=0,
        doc="Rank of the adapter. 0 trains every weight, which tiny-vl needs: its vision tower is random. 32 suits a "
        "pretrained model.",
    )
    eval_every: int = chz.field(default=100, doc="Steps between evaluations.")
    test_size: int = chz.field(default=200, doc="Test conversations to score, at most.")
    seed: int = chz.field(default=0, doc="Of the weights and the order of the data.")


class Item(NamedTuple):
    """One question to the model, and what is expected."""

    messages: Messages
    answer: str

    @property
    def question(self) -> str:
        return "".join(part["text"] for part in parts(self.messages[-1]) if part["type"] == "text")

    @property
    def image(self) -> Any:
        """The last image before the answer."""
        return [part["image"] for message in self.messages for part in parts(message) if part["type"] == "image"][-1]


def parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def ask(image: Any, question: str) -> dict[str, Any]:
    """A user's message: an image, then a question."""
    return {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}


def reply(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def pictures(folder: str, kind: str) -> Path:
    """`folder`, or the recipes' own pictures of this kind, drawn when they are first needed."""
    if folder:
        return Path(folder)
    drawn = make_images.Config()
    if not (Path(drawn.folder) / kind).exists():
        make_images.main(drawn)
    return Path(drawn.folder) / kind


def items_of(conversations: Sequence[Messages]) -> list[Item]:
    """Every answer of every conversation, asked for with the true history before it."""
    return [
        Item(messages[:i], message["content"])
        for messages in conversations
        for i, message in enumerate(messages)
        if message["role"] == "assistant"
    ]


def chance(train: Sequence[Messages], items: Sequence[Item]) -> float:
    """The share of items that the commonest training answer to the same question gets right."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items_of(train):
        seen[item.question][item.answer] += 1
    commonest = {question: answers.most_common(1)[0][0] for question, answers in seen.items()}
    return sum(commonest.get(item.question) == item.answer for item in items) / len(items)


def answers(sampler: Any, renderer: Renderer, items: Sequence[Item]) -> list[str]:
    """The model's greedy answers."""
    longest = max(len(item.answer) for item in items)
    params = tinker.SamplingParams(max_tokens=longest + 4, temperature=0, stop=renderer.get_stop_sequences())
    prompts = [renderer.build_generation_prompt(item.messages) for item in items]
    futures = [sampler.sample(prompt=prompt, num_samples=1, sampling_params=params) for prompt in prompts]
    replies = [renderer.parse_response(future.result().sequences[0].tokens) for future in futures]
    return [str(message["content"]) for message, _ in replies]


def train(config: Config, conversations: Sequence[Messages], test: Sequence[Messages]) -> float:
    """Train on all answers of `conversations`; the share of right answers on `test` at the end."""
    service = tinkerloop.connect(config.service, root=Path(config.run) / "service")
    with Run(config.run, config=chz.asdict(config)) as run:
        record = run.checkpoints.latest()
        client = open_training_client(service, record, base_model=config.model, rank=config.lora_rank, seed=config.seed)
        renderer = get_renderer(config.renderer, client.get_tokenizer(), model_name=config.model)
        datums = [renderer.build_supervised_example(c, "all_assistant_messages").to_datum() for c in conversations]
        held_out = [renderer.build_supervised_example(c, "all_assistant_messages").to_datum() for c in test]
        items = items_of(test)
        lucky = chance(conversations, items)
        print(f"{len(datums)} training and {len(test)} test conversations; chance is {lucky:.1%}")

        def accuracy(sampler: Any) -> dict[str, float]:
            found = answers(sampler, renderer, items)
            return {"accuracy": sum(a == item.answer for a, item in zip(found, items, strict=True)) / len(items)}

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
        found = answers(resolve(client.save_weights_and_get_sampling_client()), renderer, items)
        contact_sheet(items[:40], found[:40], run.folder / "predictions.png")
        plot_metrics(run.metrics.path, run.folder / "metrics.png", [["loss", "test/nll"], ["test/accuracy"]])
    right = sum(a == item.answer for a, item in zip(found, items, strict=True)) / len(items)
    print(f"{right:.1%} of {len(items)} answers on unseen pictures are right (chance {lucky:.1%})")
    print(f"metrics, plot, checkpoints and predictions.png are in {run.folder}")
    return right


def contact_sheet(items: Sequence[Item], found: Sequence[str], file: Path, columns: int = 8) -> None:
    """The pictures in a grid with what the model said: green where it is right, else red with what was expected."""
    side, text = 96, 30
    rows = -(-len(items) // columns)
    sheet = Image.new("RGB", (columns * (side + 40), rows * (side + text)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, (item, answer) in enumerate(zip(items, found, strict=True)):
        x, y = (i % columns) * (side + 40), (i // columns) * (side + text)
        sheet.paste(open_image(item.image).convert("RGB").resize((side, side)), (x + 20, y))
        right = answer == item.answer
        pen.text((x + 4, y + side), answer[:24], fill="green" if right else "red", font=font)
        if not right:
            pen.text((x + 4, y + side + 13), f"({item.answer[:22]})", fill="gray", font=font)
    sheet.save(file)
