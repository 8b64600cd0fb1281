"""Fine-tune a chat model on the conversations of a file, evaluate it, and print sample replies.

    python -m recipes.chat_sft                                        # English to Pig Latin, a minute or two
    python -m recipes.chat_sft file=chats.jsonl model=path/to/model   # your data, your model
    python -m recipes.chat_sft service=tinker model=Qwen/Qwen3-8B     # the hosted service
    python -m recipes.chat_sft --help

If you start it again with the same folder, the run resumes, or prints that it is complete. To extend a complete run,
pass a larger `steps`.

What you should see with the defaults: held-out exact match rises from 0 % to about 95 % in 250 steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import chz
import numpy as np
import tinker

import tinkerloop
from recipes.command_line import run_from_command_line
from recipes.model_defaults import (
    BASE,
    device_field,
    dry_run_field,
    dtype_field,
    held_out_field,
    learning_rate_field,
    renderer_field,
)
from recipes.run_size import print_run_size
from tinkerloop.callbacks import (
    Checkpoint,
    Evaluate,
    LRSchedule,
    Preempt,
    Progress,
    StopOnNonFinite,
    Timing,
    nll,
    sampled,
    together,
)
from tinkerloop.clients import ServiceClientLike
from tinkerloop.connection import session
from tinkerloop.data import Conversation, Datums, batches, conversation_datums, load_conversations, train_test_split
from tinkerloop.data.estimation import Evaluations, evaluation_count, input_tokens, read_prices
from tinkerloop.hyperparams import adapter_size
from tinkerloop.loop import Loop, Run, open_training_client, resolve
from tinkerloop.loop.schedules import linear, warmup
from tinkerloop.lost_server import resume_when_lost
from tinkerloop.plots import plot_metrics
from tinkerloop.renderers import Renderer, get_renderer
from tinkerloop.report import write_report

SHOWN = 20  # replies of each evaluation that are kept for the page of the run
SHORT = 64  # tokens: longer replies are rarely equal word for word
UNSCORED = 4  # replies sampled by each evaluation where they are not scored, of at most 2 * SHORT tokens


@chz.chz
class Config:
    file: str = chz.field(
        default="recipes/data/pig_latin_train.jsonl", doc="JSONL file to train on, with `messages` in each row."
    )
    test_file: str | None = chz.field(
        default=None,
        doc="JSONL file to evaluate on. By default, the test file of the default file, or a part of your own file.",
    )
    test_size: int = held_out_field(100, "Number of held-out conversations to evaluate on.")
    model: str = chz.field(default=BASE, doc="Base model: a folder, a hub name, or a model name of the service.")
    renderer: str = renderer_field()
    service: str = chz.field(
        default="local", doc="Service to use: local (in this process), tinker (hosted, needs a key), or a URL."
    )
    device: str | None = device_field()
    dtype: str | None = dtype_field()
    run: str = chz.field(default="runs/chat_sft", doc="Folder of the run: configuration, metrics, checkpoints, plot.")
    steps: int = chz.field(default=250, doc="Total number of optimizer steps.")
    batch_size: int = chz.field(default=32, doc="Conversations per step.")
    learning_rate: float = learning_rate_field(
        4e-3, "Peak learning rate, reached after warm-up and then lowered linearly to 0"
    )
    lora_rank: int = chz.field(default=32, doc="Rank of the LoRA adapter.")
    max_length: int = chz.field(default=1024, doc="Maximum number of tokens in a conversation.")
    on_bad: Literal["error", "skip"] = chz.field(
        default="error", doc="error: stop at a bad or too long row; skip: skip and count such rows."
    )
    tags_in_replies: Literal["refuse", "text"] = chz.field(
        default="refuse",
        doc="refuse: stop at a reply that spells a tag of the format, such as <tool_call>; text: train it as text.",
    )
    score: Literal["auto", "exact_match", "none"] = chz.field(
        default="auto",
        doc="exact_match: sample a reply to each held-out prompt and compare it with the right one; none: evaluate the "
        f"loss alone, and sample {UNSCORED} replies to look at; auto: exact_match if no right reply is longer than "
        f"{SHORT} tokens.",
    )
    eval_every: int = chz.field(default=50, doc="Evaluate every this many steps.")
    save_every: int = chz.field(default=50, doc="Save a checkpoint every this many steps.")
    seed: int = chz.field(default=0, doc="Random seed for adapter initialisation and data order.")
    dry_run: bool = dry_run_field()
    prices: str | None = chz.field(
        default=None, doc="TOML or JSON file with the prices of tokens per model, which dry_run multiplies."
    )
    retry: int = chz.field(
        default=0, doc="How often the run goes on from its newest record by itself after a server or a model was lost."
    )


def read(config: Config) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
    """Return training and held-out conversations. A bad row raises an error with its line number and a remedy."""
    conversations = load_conversations(config.file, on_bad=config.on_bad)
    print(f"{config.file}: {conversations.report}")
    test_file = config.test_file
    if test_file is None and config.file == Config().file:
        test_file = "recipes/data/pig_latin_test.jsonl"
    if test_file is None:
        return train_test_split(conversations, test=min(config.test_size, len(conversations) // 5), seed=config.seed)
    return conversations, load_conversations(test_file, on_bad=config.on_bad)[: config.test_size]


def rendered(config: Config) -> tuple[Renderer, Datums, Datums, Sequence[Conversation]]:
    """Return the renderer, the training datums, the held-out datums, and the held-out conversations."""
    tokenizer = tinkerloop.get_tokenizer(config.model)
    renderer = get_renderer(config.renderer, tokenizer, tags_in_replies=config.tags_in_replies)
    train, test = read(config)
    options: dict[str, Any] = {"on_bad": config.on_bad, "on_long": config.on_bad}
    datums = conversation_datums(train, renderer, config.max_length, **options)
    held_out = conversation_datums(test, renderer, config.max_length, **options)
    print(f"rendered to train on: {datums.report}\nrendered to evaluate on: {held_out.report}")
    return renderer, datums, held_out, test


def print_size(config: Config) -> None:
    """Print rows, tokens, steps, evaluations, memory and price of a run."""
    _, datums, held_out, test = rendered(config)
    questions, max_tokens, _ = scoring(config, held_out, test)
    count = evaluation_count(config.steps, config.eval_every)
    # Each evaluation reads the held-out datums, and the prompts of the questions, which are shorter than their datums.
    read = input_tokens(held_out) + input_tokens(held_out[: len(questions)])
    evaluations = Evaluations(count, read, max_tokens * len(questions))
    prices = None if config.prices is None else read_prices(config.prices, config.model)
    print_run_size(config, datums, evaluations, rank=config.lora_rank, prices=prices)


def scoring(config: Config, held_out: Datums, test: Sequence[Conversation]) -> tuple[Sequence[Conversation], int, bool]:
    """Return the conversations to reply to, the largest number of tokens of a reply, and if replies are scored."""
    longest = max(int(np.count_nonzero(one.loss_fn_inputs["weights"].to_numpy())) for one in held_out)
    is_scored = config.score == "exact_match" or (config.score == "auto" and longest <= SHORT)
    questions = [one for one in test if one.messages[-1]["role"] == "assistant"]
    if is_scored:
        return questions, longest + 8, True
    return questions[:UNSCORED], min(longest, 2 * SHORT), False


def reply_to(sampler: Any, renderer: Renderer, conversations: Sequence[Conversation], max_tokens: int) -> list[str]:
    """Return the greedy reply of the model to the last user message of each conversation."""
    params = tinker.SamplingParams(max_tokens=max_tokens, temperature=0, stop=renderer.get_stop_sequences())
    prompts = [renderer.build_generation_prompt(one.messages[:-1], tools=one.tools) for one in conversations]
    futures = [sampler.sample(prompt=prompt, num_samples=1, sampling_params=params) for prompt in prompts]
    replies = [renderer.parse_response(future.result().sequences[0].tokens) for future in futures]
    return [text_of(message) for message, _ in replies]


def text_of(message: Any) -> str:
    """Return the text of a message, whose content is a string or a list of parts."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def main(config: Config) -> None:
    if config.dry_run:
        print_size(config)
        return

    def attempt() -> None:
        root = Path(config.run) / "service"
        service = tinkerloop.connect(config.service, root=root, device=config.device, dtype=config.dtype)
        with session(service):
            train_with(service, config)

    resume_when_lost(attempt, config.retry)


def train_with(service: ServiceClientLike, config: Config) -> None:
    """Train on the service from the newest record of the run, or from the start, to the end."""
    renderer, datums, held_out, test = rendered(config)  # all data is checked before training starts
    questions, max_tokens, is_scored = scoring(config, held_out, test)

    def replies_to_questions(sampler: Any) -> dict[str, Any]:
        replies = reply_to(sampler, renderer, questions, max_tokens)
        expected = [text_of(one.messages[-1]).strip() for one in questions]
        samples: list[dict[str, Any]] = [
            {"messages": one.messages[:-1], "reply": reply, "reference": wanted}
            for one, reply, wanted in zip(questions, replies, expected, strict=True)
        ]
        if not is_scored:
            return {"samples": samples}
        for sample in samples:
            sample["score"] = float(sample["reply"].strip() == sample["reference"])
        score = sum(sample["score"] for sample in samples) / len(samples)
        return {"exact_match": score, "samples": samples[:SHOWN]}

    delete = service.create_rest_client().delete_checkpoint_from_tinker_path  # deletes old checkpoints
    with Run(config.run, config=chz.asdict(config), delete=delete) as run:
        record = run.checkpoints.latest()
        if record and record.step >= config.steps:
            print(f"{config.run} is complete: {record.step} steps. To train further, set steps= to a larger number.")
            return
        print(f"resuming at step {record.step}" if record else f"starting in {config.run}")
        run.describe(
            training_data=f"{config.file}: {datums.report}",
            held_out_data=str(held_out.report),
            renderer=renderer.name,
            adapter=adapter_size(config.model, config.lora_rank),
        )
        evaluator = together(nll(held_out), sampled(replies_to_questions))
        client = open_training_client(service, record, base_model=config.model, rank=config.lora_rank, seed=config.seed)
        loop = Loop(
            client,
            batches(datums, config.batch_size, epochs=None, shuffle=config.seed),
            steps=config.steps,
            callbacks=[
                LRSchedule(warmup(10, linear(config.learning_rate, 0.0, max(config.steps - 10, 1)))),
                Evaluate("test", evaluator, every=config.eval_every, samples=run.folder / "samples.jsonl"),
                Checkpoint(every=config.save_every, keep_last=3),
                StopOnNonFinite(),
                Preempt(),
                Progress(),
                Timing(file=run.folder / "timings.jsonl"),
            ],
            sinks=[run.metrics],
            checkpoints=run.checkpoints,
            record=record,
        )
        summary = loop.run()
        run.finish(summary)
        show(config, service, client, renderer, questions[:3], max_tokens)
        report = write_report(run.folder)
        curves = [["loss", "test/nll"], *([["test/exact_match"]] if is_scored else [])]
        plot_metrics(run.metrics.path, run.folder / "metrics.png", curves)
        if is_scored:
            print(f"exact match on {len(questions)} unseen prompts: {summary.metrics['test/exact_match']:.1%}")
        print(f"metrics, checkpoints and plot are in {run.folder}; the page of the run is {report}")
        if summary.stopped_early:
            print(f"not complete: stopped after {summary.step} steps ({summary.reason}); start it again to go on")


def show(
    config: Config, service: Any, client: Any, renderer: Renderer, questions: Sequence[Conversation], max_tokens: int
) -> None:
    """Print the replies of the base model and of the trained model to unseen prompts."""
    before = reply_to(resolve(service.create_sampling_client(base_model=config.model)), renderer, questions, max_tokens)
    after = reply_to(resolve(client.save_weights_and_get_sampling_client()), renderer, questions, max_tokens)
    for question, old, new in zip(questions, before, after, strict=True):
        print(f"\n  user    {text_of(question.messages[-2])}\n  before  {old!r}\n  after   {new!r}")
    print()


if __name__ == "__main__":
    run_from_command_line(main)
