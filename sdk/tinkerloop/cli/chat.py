"""Chat with a checkpoint of the embedded engine in the terminal.

Replies are shown while they are sampled. An empty line or the end of the input ends the command. /reset starts a new
conversation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tinkerloop._lazy import tinker
from tinkerloop.cli.run_checkpoint import checkpoint_of, naming_root, run_config
from tinkerloop.model_info import get_recommended_renderer_name
from tinkerloop.renderers import Renderer, get_renderer
from tinkerloop.renderers.parsing.parsed import StreamingTextDelta, StreamingThinkingDelta
from tinkerloop.terminal import printable

if TYPE_CHECKING:
    from tinkerloop.local import SamplingClient


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", help="A run folder (its newest checkpoint is used), a tinker:// path, or the name of a base model."
    )
    parser.add_argument(
        "--root",
        type=Path,
        help="The folder that tinker:// paths are relative to. The default is the run's own folder, or ~/.tinkerloop.",
    )
    parser.add_argument(
        "--renderer", help="The chat format. The default is that of the run, or the one recommended for the model."
    )
    parser.add_argument("--system", help="A system message at the start of the conversation.")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.7,
        help="The sampling temperature (default: 0.7); 0 always takes the most likely token.",
    )
    parser.add_argument(
        "--max-tokens", type=int, default=512, help="The largest number of tokens in a reply (default: 512)."
    )
    parser.add_argument("--seed", type=int, help="The random seed for sampling, which makes replies repeatable.")


def run(arguments: argparse.Namespace) -> int:
    sampler = open_sampler(arguments.run, arguments.root)
    name = arguments.renderer or run_renderer(arguments.run) or get_recommended_renderer_name(sampler.get_base_model())
    renderer = get_renderer(name, sampler.get_tokenizer())
    params = tinker.SamplingParams(
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
        stop=renderer.get_stop_sequences(),
    )
    opening = [{"role": "system", "content": arguments.system}] if arguments.system else []
    talk(sampler, renderer, params, opening, sys.stdin, sys.stdout)
    return 0


def open_sampler(place: str, root: Path | None) -> SamplingClient:
    """Return a sampling client for the weights that `place` refers to.

    `place` is a run folder, whose newest checkpoint is used, a tinker:// path, or the name or folder of a base model.
    """
    from tinkerloop.local import ServiceClient

    if not place.startswith("tinker://") and not (Path(place) / "checkpoints.jsonl").exists():
        return ServiceClient(root=root).create_sampling_client(base_model=place)
    root, path = checkpoint_of(place, root)
    service = ServiceClient(root=root)
    with naming_root(root):
        if "/sampler_weights/" in path:
            return service.create_sampling_client(path)
        return service.create_training_client_from_state(path).save_weights_and_get_sampling_client()


def run_renderer(place: str) -> str | None:
    """Return the renderer that the config.json of a run folder names as `renderer_name` or `renderer`, or None."""
    config = run_config(place)
    return config.get("renderer_name") or config.get("renderer")


def talk(
    sampler: SamplingClient,
    renderer: Renderer,
    params: tinker.SamplingParams,
    opening: list[dict],
    lines: Iterable[str],
    out: TextIO,
) -> None:
    """Read user messages from `lines` and write a sampled reply to each, until an empty line.

    All messages and replies remain in the conversation; the line "/reset" starts a new one.
    """
    messages = list(opening)
    print("you: ", end="", file=out, flush=True)
    for line in lines:
        question = line.strip()
        if not question:
            break
        if question == "/reset":
            messages = list(opening)
        else:
            messages.append({"role": "user", "content": question})
            prompt = renderer.build_generation_prompt(messages)
            print("assistant: ", end="", file=out, flush=True)
            parser = renderer.parser(messages=messages)
            for token in sampler.stream(prompt, params):
                for delta in parser.feed((token,)):
                    write(delta, out)
            deltas, parsed = parser.finish()
            for delta in deltas:
                write(delta, out)
            messages.append(dict(parsed.message))
            print(file=out)
        print("you: ", end="", file=out, flush=True)
    print(file=out)


def write(delta: object, out: TextIO) -> None:
    """Print a streamed piece of a reply: of its text or of its reasoning. Other deltas print nothing.

    Control characters are shown as symbols.
    """
    if isinstance(delta, StreamingTextDelta):
        print(printable(delta.text), end="", file=out, flush=True)
    elif isinstance(delta, StreamingThinkingDelta):
        print(printable(delta.thinking), end="", file=out, flush=True)
