"""Tokens per second that the embedded engine samples, beside `generate` of transformers on the same model.

    python benchmarks/sampling.py --model DIR [--requests 1,16,64] [--tokens 32] [--rounds 3] [--device cpu]

DIR is a folder of transformers, for example of SmolLM2-135M, or `tiny`. Every request has a prompt of its own and a
seed of its own. With more than one request the lengths are unequal: prompts of 10 to 60 tokens, and a half to all of
--tokens new ones. The requests of a round are submitted at once. `generate` gets them as one padded batch and stops
after the longest, as it does for its users; only the tokens that were asked for count.

Then a line gives the processor time of a prompt of 512 tokens with one sample and with eight samples of one token. The
last line gives that of the prompts of an episode: eight turns of 100 tokens, each prompt with all turns before it.

Processor time is given beside wall-clock time, because other work on the machine disturbs it less. Both take turns. The
models are float32 on a CPU and bfloat16 on a GPU.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable

import tinker
import torch
from transformers import AutoModelForCausalLM

from tinkerloop.local import SamplingClient, ServiceClient

Request = tuple[list[int], int]
"""A prompt, and the number of tokens to sample after it."""


def requests(count: int, tokens: int, vocab_size: int) -> list[Request]:
    rng = random.Random(f"requests/{count}")
    if count == 1:
        return [(rng.choices(range(vocab_size), k=30), tokens)]
    return [
        (rng.choices(range(vocab_size), k=rng.randint(10, 60)), rng.randint(tokens // 2, tokens)) for _ in range(count)
    ]


def ours(sampler: SamplingClient, work: list[Request], samples: int = 1) -> None:
    futures = [
        sampler.sample(
            tinker.ModelInput.from_ints(prompt), samples, tinker.SamplingParams(max_tokens=n, seed=i, stop=[])
        )
        for i, (prompt, n) in enumerate(work)
    ]
    for future in futures:
        future.result()


@torch.no_grad()
def theirs(model, work: list[Request]) -> None:
    width, most = max(len(prompt) for prompt, _ in work), max(n for _, n in work)
    device = model.device
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt, _ in work], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt, _ in work], device=device)
    model.generate(
        input_ids=ids, attention_mask=mask, do_sample=True, min_new_tokens=most, max_new_tokens=most, pad_token_id=0
    )


def seconds(function: Callable[[], None]) -> tuple[float, float]:
    """Return the processor time and the wall-clock time of a call."""
    processor, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - processor, time.perf_counter() - wall


def compare(sampler: SamplingClient, peer, work: list[Request], rounds: int) -> None:
    own, other = [], []
    for _ in range(rounds):
        own.append(seconds(lambda: ours(sampler, work)))
        if peer is not None:
            other.append(seconds(lambda: theirs(peer, work)))
    tokens, (processor, wall) = sum(n for _, n in work), medians(own)
    line = f"{len(work):3} requests: {tokens / processor:.1f} tokens per CPU second, {tokens / wall:.1f} per second"
    if other:
        peer_processor, peer_wall = medians(other)
        line += (
            f"; {peer_processor / processor:.2f} x generate by processor time, {peer_wall / wall:.2f} x by wall clock"
        )
    print(line, flush=True)


def share_prompt(sampler: SamplingClient, rounds: int) -> None:
    times: dict[int, list[tuple[float, float]]] = {1: [], 8: []}
    for i in range(rounds):
        for samples, turns in times.items():
            # A prompt of its own for each turn: a prompt that is repeated is not computed again.
            prompt = random.Random(f"prompt/{i}/{samples}").choices(range(256), k=512)
            turns.append(seconds(lambda samples=samples, prompt=prompt: ours(sampler, [(prompt, 1)], samples)))
    one, eight = medians(times[1])[0], medians(times[8])[0]
    print(f"a prompt of 512 tokens: {one:.3f} CPU seconds for one sample, {eight / one:.2f} x as long for eight")


def episode(sampler: SamplingClient, peer, rounds: int, turns: int = 8, new: int = 100) -> None:
    own, other = [], []
    for i in range(rounds):
        history = random.Random(f"episode/{i}").choices(range(256), k=turns * new)
        work = [(history[: turn * new], 1) for turn in range(1, turns + 1)]
        own.append(seconds(lambda work=work: [ours(sampler, [prompt]) for prompt in work]))
        if peer is not None:
            other.append(seconds(lambda work=work: [theirs(peer, [prompt]) for prompt in work]))
    line = f"the prompts of an episode of {turns} turns of {new} tokens: {medians(own)[0]:.3f} CPU seconds"
    print(line + (f"; {medians(other)[0] / medians(own)[0]:.2f} x generate" if other else ""))


def medians(times: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the median processor time and the median wall-clock time."""
    return statistics.median(processor for processor, _ in times), statistics.median(wall for _, wall in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="A model folder, or `tiny`, which has no peer.")
    parser.add_argument("--requests", default="1,16,64", help="The numbers of requests, comma-separated.")
    parser.add_argument("--tokens", type=int, default=32, help="The largest number of tokens to sample in a request.")
    parser.add_argument("--rounds", type=int, default=3, help="The number of turns; medians are printed.")
    parser.add_argument("--threads", type=int, default=1, help="The number of threads of torch.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="The device of both.")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as root:
        sampler = ServiceClient(root=root, device=args.device).create_sampling_client(base_model=args.model)
        peer = None
        if args.model != "tiny":
            dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
            peer = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(args.device).eval()
        ours(sampler, requests(1, 4, 256))
        for count in map(int, args.requests.split(",")):
            compare(sampler, peer, requests(count, args.tokens, 256), args.rounds)
        if sampler._sampler.model.max_length > 512:
            share_prompt(sampler, args.rounds)
            episode(sampler, peer, args.rounds)


if __name__ == "__main__":
    main()
