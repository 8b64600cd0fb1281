"""Training throughput and memory of the embedded engine, compared with other ways to train on the same machine.

    python benchmarks/engine.py [--variants ours,trl-packing,...] [--rounds 3] [--vocab 4096] [--peers DIR]
    python benchmarks/engine.py --model FOLDER [--batch 8] [--dtype bfloat16] --variants ours,peft-sorted ...
    python benchmarks/engine.py --device cuda --shape 0.6b --vocab 151936 --variants ours,peft-sorted,trl-packing ...

The work is the same for all variants: conversations of lognormal length (median 180, at most 1024 tokens), batches of
32, float32, loss on the assistant's tokens, and a random Qwen3 model with 4 layers of width 256. LoRA has rank 32 and
adapts all linear layers except the output layer, like PEFT's "all-linear", which TRL uses too. "ours-unembed" and SkyRL
also adapt the output layer, as Tinker's clients do by default. Every variant runs in a separate process. The processes
take turns of a few steps, so that all run under the same conditions.

The output gives tokens per second of wall-clock time and of processor time, which a busy machine disturbs less.
Padding, the first step and the first turn are not counted. It also gives the peak memory, and the time from the start
of the process to the end of the first step. For PEFT and variants with a training client, it gives the time of a step
on one datum of 8 tokens (median of 20): the wall-clock time, and the processor time of the process.

`--peers DIR` is a folder that contains the peers:
- DIR/trl, a folder to put on the path: pip install --target DIR/trl trl
- DIR/skyrl, a virtual environment in which SkyRL's JAX server and its tinker client run:
  python -m venv DIR/skyrl; DIR/skyrl/bin/pip install torch==2.13.0 "skyrl[jax,tinker]==0.3.0" tinker==0.24.1 uv
  (tinker 0.25 and later use protobuf, which that server does not support. On Python 3.11, edit the installed
  skyrl/tinker/types.py so that it imports TypedDict from typing_extensions, as pydantic requires.) SkyRL pads a batch
  to its longest length, rounded up, and compiles a step for each such length. The first two batches have the two
  lengths that occur, 1024 and 768. Memory and processor time are those of the server and the client together.

"-onednn" variants call torch.set_float32_matmul_precision("medium") in their process. On a GPU, the base model is
bfloat16 and the adapters are float32, the peers run under autocast, a micro-batch has 16,384 tokens, and the peak
memory is that of the GPU.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinker import TrainingClient

PAUSE = 4
"""Seconds to wait before each turn, so that the step of one variant does not disturb the next variant.

After a step, OpenMP threads continue to spin, and the kernel of a virtual machine returns freed memory to its host two
seconds later.
"""
VARIANTS = (
    "ours",
    "ours-unembed",
    "ours-all-positions",
    "ours-onednn",
    "peft-padded",
    "peft-sorted",
    "trl-default",
    "trl-accumulated",
    "trl-grouped",
    "trl-grouped-16",
    "trl-packing",
    "trl-grouped-onednn",
    "trl-packing-onednn",
    "skyrl",
)
# For batches of 32. With packing, a row has 1024 tokens: about 7 rows have as many tokens as 32 conversations.
TRL: dict[str, dict[str, Any]] = {
    "trl-default": {},
    "trl-accumulated": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8},
    "trl-grouped": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 8,
        "train_sampling_strategy": "group_by_length",
    },
    "trl-grouped-16": {
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "train_sampling_strategy": "group_by_length",
    },
    "trl-packing": {"packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 7},
}


@dataclass(frozen=True)
class Conversation:
    tokens: list[int]
    trained: list[bool]
    """For each token, True if it is a token of the assistant."""


def conversations(count: int, vocab: int) -> list[Conversation]:
    """Return conversations of random tokens with alternating user and assistant turns, about half of each."""
    rng = random.Random("benchmark/conversations")
    made = []
    for _ in range(count):
        length = min(1024, max(16, round(rng.lognormvariate(5.19, 0.8))))
        trained: list[bool] = []
        while len(trained) < length:
            trained += [False] * rng.randint(5, 60) + [True] * rng.randint(5, 60)
        made.append(Conversation(rng.choices(range(10, vocab), k=length), trained[:length]))
    return made


def batches(data: Sequence[Conversation], size: int) -> Iterator[list[Conversation]]:
    while True:
        for start in range(0, len(data), size):
            yield list(data[start : start + size])


def _tokens(batch: Sequence[Conversation]) -> int:
    return sum(len(c.tokens) for c in batch)


SHAPES: dict[str, dict[str, int | bool]] = {
    "small": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "tie_word_embeddings": False,
    },
    # the shape of Qwen3-0.6B
    "0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
}


@dataclass(frozen=True)
class Setup:
    """The settings that all variants of a run share."""

    folder: Path
    model: Path
    vocab: int
    batch: int
    device: str
    dtype: str
    threads: int

    @property
    def budget(self) -> int:
        """The largest number of tokens in a micro-batch."""
        return 16384 if self.device == "cuda" else 2048


def write_model(folder: Path, vocab: int, shape: str = "small", dtype: str = "float32") -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from tinkerloop.tokenizers.tiny_tokenizer import tiny_tokenizer

    config = Qwen3Config(
        vocab_size=vocab, max_position_embeddings=2048, eos_token_id=1, pad_token_id=0, **SHAPES[shape]
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


# -- variants: each yields the number of trained tokens after every optimizer step ------------------------------------


def ours(setup: Setup, skip: bool = True, unembed: bool = False) -> TrainingClient:
    from tinkerloop.local import ServiceClient

    service = ServiceClient(root=setup.folder / "runs", device=setup.device, dtype=setup.dtype, skip_zero_weight=skip)
    return service.create_lora_training_client(str(setup.model), rank=32, train_unembed=unembed)


def skyrl(setup: Setup) -> TrainingClient:
    """Start SkyRL's API server and engine on a free port; return a client. The server stops when this process ends."""
    import tinker

    folder = setup.folder

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    uv = str(Path(sys.executable).with_name("uv"))
    command = [uv, "run", "--no-project", "--python", sys.executable, "-m", "skyrl.tinker.api"]
    command += ["--host", "localhost", "--port", str(port), "--base-model", str(setup.model)]
    command += ["--database-url", f"sqlite:///{folder / 'skyrl.db'}", "--checkpoints-base", str(folder / "skyrl")]
    command += ["--backend-config", '{"max_lora_adapters": 2}']  # the minimum: one is reserved for the base model
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    atexit.register(server.wait)
    atexit.register(server.terminate)
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("localhost", port)).close()
            break
        if server.poll() is not None:
            raise SystemExit("SkyRL's server exited before it accepted connections; its error output is above")
        time.sleep(0.1)
    service = tinker.ServiceClient(base_url=f"http://localhost:{port}", api_key="tml-dummy")
    return service.create_lora_training_client(str(setup.model), rank=32)


CLIENTS: dict[str, Callable[[Setup], TrainingClient]] = {
    "ours": ours,
    "ours-unembed": lambda setup: ours(setup, unembed=True),
    "ours-all-positions": lambda setup: ours(setup, skip=False),
    "skyrl": skyrl,
}


def client_step(client: TrainingClient, batch: Sequence[Conversation]) -> None:
    import tinker

    datums = [
        tinker.Datum(
            model_input=tinker.ModelInput.from_ints(c.tokens[:-1]),
            loss_fn_inputs={"target_tokens": c.tokens[1:], "weights": [float(t) for t in c.trained[1:]]},
        )
        for c in batch
    ]
    forward_backward = client.forward_backward(datums, "cross_entropy")
    client.optim_step(tinker.AdamParams(learning_rate=1e-4)).result()
    assert len(forward_backward.result().loss_fn_outputs) == len(batch)


Step = Callable[[Sequence[Conversation]], None]


def latency(step: Step) -> tuple[float, float]:
    """Return the median milliseconds of wall-clock and of processor time that a step on a datum of 8 tokens takes."""
    wall, processor = [], []
    for _ in range(23):
        start, used = time.perf_counter(), time.process_time()
        step([Conversation(list(range(10, 19)), [True] * 9)])
        wall.append(1000 * (time.perf_counter() - start))
        processor.append(1000 * (time.process_time() - used))
    return statistics.median(wall[3:]), statistics.median(processor[3:])  # the first three warm up


def peft_step(setup: Setup, budget: int | None) -> Step:
    """Return a hand-written training step on transformers and PEFT.

    With `budget`, a batch is sorted by length and divided into micro-batches of at most `budget` tokens. Otherwise the
    whole batch is padded.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(setup.model, dtype=getattr(torch, setup.dtype)).to(setup.device)
    model = get_peft_model(base, LoraConfig(r=32, lora_alpha=32, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step(batch: Sequence[Conversation]) -> None:
        groups = [list(batch)]
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
            ids = torch.tensor([c.tokens + [0] * (width - len(c.tokens)) for c in group], device=setup.device)
            mask = torch.tensor(
                [[1] * len(c.tokens) + [0] * (width - len(c.tokens)) for c in group], device=setup.device
            )
            trained = torch.tensor([c.trained + [False] * (width - len(c.trained)) for c in group], device=setup.device)
            with torch.autocast(setup.device, torch.bfloat16, enabled=setup.device == "cuda"):
                logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            labels = ids[:, 1:].masked_fill(~trained[:, 1:], -100)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def trl(setup: Setup, data: Sequence[Conversation], wait: Callable[[int], bool], **options: object) -> None:
    """Train with TRL's SFTTrainer.

    After each step, `wait` is called with the number of tokens of the step; training continues if it returns True.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Turn(TrainerCallback):
        seen = 0

        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = not wait(state.num_input_tokens_seen - self.seen)
            self.seen = state.num_input_tokens_seen

    rows = [{"input_ids": c.tokens, "completion_mask": [int(t) for t in c.trained]} for c in data]
    config = SFTConfig(
        output_dir=str(setup.folder / "trl"),
        max_length=1024,
        max_steps=10_000,
        report_to=[],
        use_cpu=setup.device == "cpu",
        bf16=setup.device == "cuda",
        gradient_checkpointing=False,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_num_workers=0,
        completion_only_loss=True,
        include_num_input_tokens_seen="non_padding",
        seed=0,
        **{"per_device_train_batch_size": setup.batch, **options},
    )
    SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(setup.model, dtype=getattr(torch, setup.dtype)),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(setup.model),
        peft_config=LoraConfig(r=32, lora_alpha=32, target_modules="all-linear"),
        callbacks=[Turn()],
    ).train()


# -- the process of one variant: executes one step for each line that it reads ----------------------------------------


def usage(device: str) -> tuple[float, float]:
    """Return the peak memory in GB and the processor seconds of this process and its children.

    On a GPU, the memory is what torch has reserved on the GPU.
    """
    memory, ticks, family = 0, 0, [os.getpid()]
    for pid in family:  # the list grows during the iteration, as children are found
        status = Path(f"/proc/{pid}/status").read_text()
        memory += int(status.split("VmHWM:")[1].split()[0])
        ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            family += map(int, children.read_text().split())
    if device == "cuda":
        import torch

        memory = torch.cuda.max_memory_reserved() / 2**10
    return memory / 2**20, ticks / os.sysconf("SC_CLK_TCK")


def child(variant: str, setup: Setup, started: float) -> None:
    data = conversations(512, setup.vocab)

    def report(tokens: int) -> bool:
        memory, processor = usage(setup.device)
        now = {"done": time.time() - started, "tokens": tokens, "memory": memory, "processor": processor}
        print(json.dumps(now), flush=True)
        return bool(sys.stdin.readline())

    if variant != "skyrl":
        import torch

        torch.set_num_threads(setup.threads)
        if variant.endswith("-onednn"):
            torch.set_float32_matmul_precision("medium")
            variant = variant.removesuffix("-onednn")
    if variant.startswith("trl"):
        options = dict(TRL[variant])
        if "gradient_accumulation_steps" in options:
            options["gradient_accumulation_steps"] = max(1, options["gradient_accumulation_steps"] * setup.batch // 32)
        trl(setup, data, report, **options)
        return
    if variant.startswith("peft"):
        step = peft_step(setup, setup.budget if variant == "peft-sorted" else None)
    else:
        step = partial(client_step, CLIENTS[variant](setup))
    for batch in batches(data, setup.batch):
        step(batch)
        if not report(_tokens(batch)):
            break
    print(json.dumps({"latency": latency(step)}), flush=True)


@dataclass
class Process:
    """The process of one variant, with the measurements that it has reported."""

    name: str
    handle: subprocess.Popen
    tokens: int = 0
    seconds: float = 0.0
    processor: float = 0.0
    first: float = 0.0
    memory: float = 0.0
    latency: tuple[float, float] | None = None
    _used: float = 0.0

    def read(self, key: str) -> dict[str, Any]:
        """Return the next report whose first key is `key`; skip lines that libraries print.

        The result is empty if the process has ended.
        """
        assert self.handle.stdout is not None
        for line in self.handle.stdout:
            if line.startswith(f'{{"{key}"'):
                return json.loads(line)
        return {}

    def step(self, go: bool = True, timed: bool = True) -> None:
        assert self.handle.stdin is not None
        start = time.time()
        if go:
            self.handle.stdin.write("go\n")
            self.handle.stdin.flush()
        report = self.read("done")
        if not report:
            raise SystemExit(f"the process of variant {self.name!r} ended early; its error output is above")
        self.memory = report["memory"]
        if not go:
            self.first = report["done"]
        elif timed:
            self.tokens += int(report["tokens"])
            self.seconds += time.time() - start
            self.processor += report["processor"] - self._used
        self._used = report["processor"]

    def finish(self) -> None:
        assert self.handle.stdin is not None
        self.handle.stdin.close()
        self.latency = self.read("latency").get("latency")
        self.handle.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--variants", default=",".join(VARIANTS), help="The variants to measure, comma-separated, in this order."
    )
    parser.add_argument("--rounds", type=int, default=3, help="The number of timed turns of each variant.")
    parser.add_argument("--turn", type=int, default=3, help="The number of steps per turn.")
    parser.add_argument("--vocab", type=int, default=4096, help="The size of the vocabulary.")
    parser.add_argument("--threads", type=int, default=2, help="The number of CPU threads of each variant.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="The device to train on.")
    parser.add_argument("--dtype", help="The dtype of the base model; by default float32, and bfloat16 on a GPU.")
    parser.add_argument("--batch", type=int, default=32, help="The number of conversations in a batch.")
    parser.add_argument("--shape", choices=SHAPES, default="small", help="The shape of the random model.")
    parser.add_argument("--model", type=Path, help="The folder of a model to train instead of a random one.")
    parser.add_argument("--peers", type=Path, help="The folder that contains the peers; see above.")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.variants.split(",")).difference(VARIANTS):
        parser.error(f"unknown variants {sorted(unknown)}; expected some of {', '.join(VARIANTS)}")
    dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    with tempfile.TemporaryDirectory() if not args.child else contextlib.nullcontext(args.child[1]) as folder:
        model = args.model or Path(folder)
        setup = Setup(Path(folder), model, args.vocab, args.batch, args.device, dtype, args.threads)
        if args.child:
            child(args.child[0], setup, float(args.child[2]))
            return
        if args.model is None:
            write_model(setup.model, args.vocab, args.shape, dtype)
        processes = []
        for name in args.variants.split(","):
            # XLA reads its number of threads from NPROC.
            environment = dict(os.environ, OMP_NUM_THREADS=str(args.threads), NPROC=str(args.threads))
            python = sys.executable
            if args.peers and name.startswith("trl"):
                environment["PYTHONPATH"] = str(args.peers / "trl")
            elif args.peers and name == "skyrl":
                environment.pop("PYTHONPATH", None)
                python = str(args.peers / "skyrl" / "bin" / "python")
            command = [python, __file__, "--vocab", str(args.vocab), "--threads", str(args.threads)]
            command += ["--device", args.device, "--dtype", dtype, "--batch", str(args.batch), "--model", str(model)]
            command += ["--child", name, folder, str(time.time())]
            handle = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
            processes.append(Process(name, handle))
            processes[-1].step(go=False)
            print(f"{name}: first step after {processes[-1].first:.1f} s", file=sys.stderr, flush=True)
        for turn in range(1 + args.rounds):
            for process in processes:
                time.sleep(PAUSE)
                for _ in range(args.turn):
                    process.step(timed=turn > 0)
        for process in processes:
            process.finish()
    print("| variant | tokens/s | tokens per processor second | ours / this | first step, s | peak memory, GB |")
    print("|---|---|---|---|---|---|")
    reference = processes[0].tokens / processes[0].seconds
    for process in processes:
        rate = process.tokens / process.seconds
        print(
            f"| {process.name} | {rate:,.0f} | {process.tokens / process.processor:,.0f} | {reference / rate:.2f} "
            f"| {process.first:.1f} | {process.memory:.2f} |"
        )
    print("\n| variant | step on 8 tokens, ms | processor ms |\n|---|---|---|")
    for process in processes:
        if process.latency is not None:
            print(f"| {process.name} | {process.latency[0]:.1f} | {process.latency[1]:.1f} |")


if __name__ == "__main__":
    main()
