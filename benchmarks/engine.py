"""Training throughput and memory of the embedded engine beside what one would otherwise run on the same machine.

    python benchmarks/engine.py [--variants ours,trl-packing,...] [--rounds 3] [--vocab 4096] [--peers DIR]

The work: conversations of lognormal length (median 180, at most 1024 tokens), batches of 32, LoRA rank 32 on all linear
layers, float32, loss on the assistant's tokens, a 4-layer 256-wide random Qwen3. Every variant is its own process and
waits its turn for each step, so that all see the same machine. Printed are tokens (padding not counted) per second of
wall-clock time and of processor time (which a busy machine disturbs less) over all steps but the first, peak memory,
and the time from process start to the first step's end.
`--peers DIR` is a folder that holds a `trl` folder to put on the path (pip install --target DIR/trl trl).

"-onednn" variants call torch.set_float32_matmul_precision("medium") in their own process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BATCH = 32
VARIANTS = (
    "ours",
    "ours-all-positions",
    "ours-onednn",
    "peft-padded",
    "peft-sorted",
    "trl-default",
    "trl-accumulated",
    "trl-grouped",
    "trl-packing",
    "trl-grouped-onednn",
    "trl-packing-onednn",
)
# Packing fills rows of 1024 tokens: about 7 make up the tokens of 32 conversations.
TRL: dict[str, dict[str, object]] = {
    "trl-default": {},
    "trl-accumulated": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8},
    "trl-grouped": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 8,
        "train_sampling_strategy": "group_by_length",
    },
    "trl-packing": {"packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 7},
}


@dataclass(frozen=True)
class Conversation:
    tokens: list[int]
    trained: list[bool]
    """Whether a token is the assistant's."""


def conversations(count: int, vocab: int) -> list[Conversation]:
    """Alternating user and assistant turns of random tokens, about half of them the assistant's."""
    rng = random.Random("benchmark/conversations")
    found = []
    for _ in range(count):
        length = min(1024, max(16, round(rng.lognormvariate(5.19, 0.8))))
        trained: list[bool] = []
        while len(trained) < length:
            trained += [False] * rng.randint(5, 60) + [True] * rng.randint(5, 60)
        found.append(Conversation(rng.choices(range(10, vocab), k=length), trained[:length]))
    return found


def batches(data: Sequence[Conversation]) -> Iterator[list[Conversation]]:
    while True:
        for start in range(0, len(data), BATCH):
            yield list(data[start : start + BATCH])


def _tokens(batch: Sequence[Conversation]) -> int:
    return sum(len(c.tokens) for c in batch)


def write_model(folder: Path, vocab: int) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from tinkerloop.local.tiny import tiny_tokenizer

    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


# -- variants: each yields after every optimizer step the tokens that it trained on ------------------------------------


def ours(folder: Path, data: Sequence[Conversation], skip: bool) -> Iterator[int]:
    import tinker

    from tinkerloop.local import ServiceClient

    service = ServiceClient(root=folder / "runs", device="cpu", skip_zero_weight=skip)
    client = service.create_lora_training_client(str(folder), rank=32)
    for batch in batches(data):
        datums = [
            tinker.Datum(
                model_input=tinker.ModelInput.from_ints(c.tokens[:-1]),
                loss_fn_inputs={"target_tokens": c.tokens[1:], "weights": [float(t) for t in c.trained[1:]]},
            )
            for c in batch
        ]
        future = client.forward_backward(datums, "cross_entropy")
        client.optim_step(tinker.AdamParams(learning_rate=1e-4)).result()
        assert future.result().metrics["loss:sum"] > 0
        yield _tokens(batch)


def peft_loop(folder: Path, data: Sequence[Conversation], budget: int | None) -> Iterator[int]:
    """Written by hand on transformers + PEFT: whole padded batches, or length-sorted ones of `budget` tokens."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=32, lora_alpha=32, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    for batch in batches(data):
        groups = [batch]
        if budget is not None:
            groups, width = [], 0
            for c in sorted(batch, key=lambda c: len(c.tokens), reverse=True):
                width = width if groups and width * (len(groups[-1]) + 1) <= budget else 0
                if not width:
                    groups.append([])
                    width = len(c.tokens)
                groups[-1].append(c)
        for group in groups:
            width = max(len(c.tokens) for c in group)
            ids = torch.tensor([c.tokens + [0] * (width - len(c.tokens)) for c in group])
            mask = torch.tensor([[1] * len(c.tokens) + [0] * (width - len(c.tokens)) for c in group])
            trained = torch.tensor([c.trained + [False] * (width - len(c.trained)) for c in group])
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            labels = ids[:, 1:].masked_fill(~trained[:, 1:], -100)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield _tokens(batch)


def trl(folder: Path, data: Sequence[Conversation], wait: Callable[[int], None], **options: object) -> None:
    """TRL's SFTTrainer on the tokens as they are; `wait` is called after every optimizer step with its tokens."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Turn(TrainerCallback):
        seen = 0

        def on_step_end(self, args, state, control, **kwargs):
            wait(state.num_input_tokens_seen - self.seen)
            self.seen = state.num_input_tokens_seen

    rows = [{"input_ids": c.tokens, "completion_mask": [int(t) for t in c.trained]} for c in data]
    config = SFTConfig(
        output_dir=str(folder / "trl"),
        max_length=1024,
        max_steps=10_000,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_num_workers=0,
        completion_only_loss=True,
        include_num_input_tokens_seen="non_padding",
        seed=0,
        **{"per_device_train_batch_size": BATCH, **options},
    )
    SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(r=32, lora_alpha=32, target_modules="all-linear"),
        callbacks=[Turn()],
    ).train()


# -- one process: does a step whenever told to -----------------------------------------------------------------------


def child(variant: str, folder: Path, vocab: int, threads: int, started: float) -> None:
    import torch

    torch.set_num_threads(threads)
    if variant.endswith("-onednn"):
        torch.set_float32_matmul_precision("medium")
        variant = variant.removesuffix("-onednn")
    data = conversations(512, vocab)

    def report(tokens: int) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        now = {
            "done": time.time() - started,
            "tokens": tokens,
            "memory": usage.ru_maxrss / 2**20,
            "processor": usage.ru_utime + usage.ru_stime,
        }
        print(json.dumps(now), flush=True)
        if not sys.stdin.readline():
            sys.exit()

    if variant.startswith("trl"):
        trl(folder, data, report, **TRL[variant])
        return
    steps = {
        "ours": lambda: ours(folder, data, skip=True),
        "ours-all-positions": lambda: ours(folder, data, skip=False),
        "peft-padded": lambda: peft_loop(folder, data, None),
        "peft-sorted": lambda: peft_loop(folder, data, 2048),
    }[variant]()
    for tokens in steps:
        report(tokens)


@dataclass
class Process:
    """A variant's process and what it reported."""

    name: str
    handle: subprocess.Popen
    tokens: int = 0
    seconds: float = 0.0
    processor: float = 0.0
    first: float = 0.0
    memory: float = 0.0
    _used: float = 0.0

    def step(self, go: bool = True) -> None:
        assert self.handle.stdin is not None
        assert self.handle.stdout is not None
        start = time.time()
        if go:
            self.handle.stdin.write("go\n")
            self.handle.stdin.flush()
        line = self.handle.stdout.readline()
        while line and not line.startswith('{"done"'):
            line = self.handle.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} failed; run it alone with --child to see why")
        report = json.loads(line)
        self.memory = report["memory"]
        if go:
            self.tokens += report["tokens"]
            self.seconds += time.time() - start
            self.processor += report["processor"] - self._used
        else:
            self.first = report["done"]
        self._used = report["processor"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated, measured in this order")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each variant")
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", type=Path, help="folder of the peers' packages")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        variant, folder, started = args.child
        child(variant, Path(folder), args.vocab, args.threads, float(started))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), args.vocab)
        processes = []
        for name in args.variants.split(","):
            environment = dict(os.environ, OMP_NUM_THREADS=str(args.threads))
            if args.peers and name.startswith("trl"):
                environment["PYTHONPATH"] = str(args.peers / "trl")
            command = [sys.executable, __file__, "--vocab", str(args.vocab), "--threads", str(args.threads)]
            command += ["--child", name, folder, str(time.time())]
            handle = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
            processes.append(Process(name, handle))
            processes[-1].step(go=False)
            print(f"{name}: first step after {processes[-1].first:.1f} s", file=sys.stderr, flush=True)
        for _ in range(args.rounds):
            for process in processes:
                process.step()
        for process in processes:
            assert process.handle.stdin
            process.handle.stdin.close()
            process.handle.wait()
    print("| variant | tokens/s | tokens per processor second | ours / this | first step, s | peak memory, GB |")
    print("|---|---|---|---|---|---|")
    reference = processes[0].tokens / processes[0].seconds
    for process in processes:
        rate = process.tokens / process.seconds
        print(
            f"| {process.name} | {rate:,.0f} | {process.tokens / process.processor:,.0f} | {reference / rate:.2f} "
            f"| {process.first:.1f} | {process.memory:.2f} |"
        )


if __name__ == "__main__":
    main()
