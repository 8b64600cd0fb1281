"""Chat with a checkpoint in the terminal.

The embedded engine shows replies while it samples them; another service shows them when they are complete. An empty
line or the end of the input ends the command. /help lists the commands of the conversation.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tinkerloop._lazy import tinker
from tinkerloop.cli.number_options import at_least, non_negative
from tinkerloop.cli.run_checkpoint import checkpoint_of, naming_root, run_config
from tinkerloop.cli.text_options import non_empty, non_empty_path
from tinkerloop.clients import SamplingClientLike, ServiceClientLike
from tinkerloop.connection import connect
from tinkerloop.errors import TinkerloopError
from tinkerloop.loop import resolve
from tinkerloop.loop.jsonl import encode
from tinkerloop.model_info import get_recommended_renderer_name
from tinkerloop.redaction import redacted
from tinkerloop.renderers import Renderer, get_renderer
from tinkerloop.renderers.parsing.parsed import StreamingTextDelta, StreamingThinkingDelta
from tinkerloop.rollouts.trajectory import readable_message
from tinkerloop.terminal import printable
from tinkerloop.tokenizers import get_tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        type=non_empty,
        help="A run folder (its newest checkpoint is used), a tinker:// path, or the name of a base model.",
    )
    parser.add_argument(
        "--service",
        type=non_empty,
        help="The service that has the checkpoint: local (the embedded engine), tinker (the hosted service), or a URL. "
        "The default is that of the run, or local.",
    )
    parser.add_argument(
        "--root",
        type=non_empty_path,
        help="The folder that tinker:// paths are relative to. The default is the run's own folder, or ~/.tinkerloop.",
    )
    parser.add_argument(
        "--renderer",
        type=non_empty,
        help="The chat format. The default is that of the run, or the one recommended for the model.",
    )
    parser.add_argument(
        "--tokenizer",
        type=non_empty,
        help="The name or folder of the model whose tokenizer is used. The default is the checkpoint's base model.",
    )
    parser.add_argument("--system", type=non_empty, help="A system message at the start of the conversation.")
    parser.add_argument(
        "--temperature",
        type=non_negative,
        default=0.7,
        help="The sampling temperature (default: 0.7); 0 always takes the most likely token.",
    )
    parser.add_argument(
        "--max-tokens", type=at_least(1), default=512, help="The largest number of tokens in a reply (default: 512)."
    )
    parser.add_argument("--seed", type=int, help="The random seed for sampling, which makes replies repeatable.")


def run(arguments: argparse.Namespace) -> int:
    config = run_config(arguments.run)
    sampler = open_sampler(arguments.run, arguments.root, arguments.service or service_of(config))
    tokenizer = get_tokenizer(arguments.tokenizer) if arguments.tokenizer else sampler.get_tokenizer()
    name = arguments.renderer or config.get("renderer_name") or config.get("renderer")
    renderer = get_renderer(name or get_recommended_renderer_name(sampler.get_base_model()), tokenizer)
    params = tinker.SamplingParams(
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
        stop=renderer.get_stop_sequences(),
    )
    return 0 if talk(Chat(sampler, renderer, params, arguments.system), sys.stdin, sys.stdout) else 2


def service_of(config: Mapping[str, Any]) -> str:
    """Return the service of a run with this configuration; local if it was given as an object and not by its name."""
    named = config.get("service") or config.get("base_url")
    return named if isinstance(named, str) and (named == "tinker" or "://" in named) else "local"


def open_sampler(place: str, root: Path | None, service: str = "local") -> SamplingClientLike:
    """Return a sampling client for the weights that `place` refers to.

    `place` is a run folder, whose newest checkpoint is used, a tinker:// path, or the name or folder of a base model.
    """
    if service != "local" and root is not None:
        raise TinkerloopError(f"--root is for the embedded engine, not for the service {printable(redacted(service))}")
    if not place.startswith("tinker://") and not (Path(place) / "checkpoints.jsonl").exists():
        if _is_missing_folder(place):
            raise TinkerloopError(f"no run folder {place}; pass a run folder, a tinker:// path or the name of a model")
        return resolve(connect(service, root=root).create_sampling_client(base_model=place))
    own_root, path = checkpoint_of(place, root)
    if service != "local":
        return _sampler_of(connect(service), path)
    with naming_root(own_root):
        return _sampler_of(connect(service, root=own_root), path)


def _is_missing_folder(place: str) -> bool:
    """Return whether `place` can only be a path, and nothing is there.

    A name of the hub, such as OWNER/NAME, is a path only if there are run folders beside it.
    """
    path = Path(place).expanduser()
    if path.exists():
        return False
    return place.startswith((".", "~", "/")) or place.count("/") > 1 or any(path.parent.glob("*/checkpoints.jsonl"))


def _sampler_of(service: ServiceClientLike, path: str) -> SamplingClientLike:
    if "/sampler_weights/" in path:
        return resolve(service.create_sampling_client(model_path=path))
    return resolve(resolve(service.create_training_client_from_state(path)).save_weights_and_get_sampling_client())


@dataclass
class Chat:
    """A conversation with a model, and what the next reply is sampled with."""

    sampler: SamplingClientLike
    renderer: Renderer
    params: tinker.SamplingParams
    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """All messages, the system message first."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return [*opening, *self.messages]

    def reply_to(self, question: str, out: TextIO) -> None:
        """Write the model's reply to `question`, and append both to the conversation: neither after an error."""
        asked = {"role": "user", "content": question}
        prompt = [*self.conversation, asked]
        parser = self.renderer.parser(messages=prompt)
        for token in self._sampled(self.renderer.build_generation_prompt(prompt)):
            for delta in parser.feed((token,)):
                write(delta, out)
        deltas, parsed = parser.finish()
        for delta in deltas:
            write(delta, out)
        self.messages += [asked, dict(parsed.message)]

    def _sampled(self, prompt: tinker.ModelInput) -> Iterator[int]:
        stream = getattr(self.sampler, "stream", None)
        if stream is not None:
            yield from stream(prompt, self.params)
        else:
            yield from self.sampler.sample(prompt, 1, self.params).result().sequences[0].tokens


def talk(chat: Chat, lines: Iterable[str], out: TextIO) -> bool:
    """Read user messages and commands from `lines`, and write the replies and answers, until an empty line.

    An error in place of a reply is written too, and the conversation goes on without the question.

    Returns:
        True if every question got a reply.
    """
    is_answered = True
    print("you: ", end="", file=out, flush=True)
    for line in lines:
        question = line.strip()
        if not question:
            break
        if question.startswith("/"):
            print(printable(obey(chat, question)), file=out)
        else:
            print("assistant: ", end="", file=out, flush=True)
            try:
                chat.reply_to(question, out)
                print(file=out)
            except (TinkerloopError, OSError, tinker.TinkerError) as error:
                is_answered = False
                print(f"\nno reply: {printable(redacted(str(error)))}\n{_AFTER_AN_ERROR}", file=out)
        print("you: ", end="", file=out, flush=True)
    print(file=out)
    return is_answered


def obey(chat: Chat, command: str) -> str:
    """Execute a command of the conversation, such as "/system Be brief.", and return the answer to the user."""
    name, _, argument = command[1:].partition(" ")
    if name not in CHAT_COMMANDS:
        return f"there is no command /{name}\n{_help(chat, '')}"
    try:
        return CHAT_COMMANDS[name](chat, argument.strip())
    except (TinkerloopError, OSError, ValueError) as error:
        return f"/{name}: {error}"


def _help(chat: Chat, argument: str) -> str:
    """List these commands."""
    return "\n".join([*(f"/{name:<12} {command.__doc__}" for name, command in CHAT_COMMANDS.items()), _LEAVE])


def _reset(chat: Chat, argument: str) -> str:
    """Start a new conversation; the system message stays."""
    chat.messages.clear()
    return "a new conversation begins"


def _system(chat: Chat, argument: str) -> str:
    """Set the system message to the text after the command, or remove it, and start a new conversation."""
    chat.system = argument or None
    chat.messages.clear()
    return "a new conversation begins " + ("with this system message" if argument else "without a system message")


def _temperature(chat: Chat, argument: str) -> str:
    """Set the sampling temperature to the number after the command; without a number, show it."""
    if argument:
        try:
            temperature = non_negative(argument)
        except argparse.ArgumentTypeError as error:
            raise TinkerloopError(str(error)) from None
        chat.params = chat.params.model_copy(update={"temperature": temperature})
    return f"the temperature is {chat.params.temperature:g}"


def _save(chat: Chat, argument: str) -> str:
    """Append the conversation to the JSON Lines file after the command, as a row with `messages`."""
    if not argument:
        raise TinkerloopError("expected the name of a file, such as /save chats.jsonl")
    row = encode({"messages": [readable_message(message) for message in chat.conversation]})  # before there is a file
    with open(argument, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            row = row if file.read() == b"\n" else b"\n" + row  # another program left the last line without an end
        file.write(row)
    return f"{len(chat.conversation)} messages written to {argument}"


CHAT_COMMANDS: dict[str, Callable[[Chat, str], str]] = {
    "help": _help,
    "reset": _reset,
    "system": _system,
    "temperature": _temperature,
    "save": _save,
}


_LEAVE = "An empty line ends the chat."
_AFTER_AN_ERROR = "the question was removed; /save FILE writes the conversation so far, and /reset starts a new one"


def write(delta: object, out: TextIO) -> None:
    """Print a streamed piece of a reply: of its text or of its reasoning. Other deltas print nothing.

    Control characters are shown as symbols.
    """
    if isinstance(delta, StreamingTextDelta):
        print(printable(delta.text), end="", file=out, flush=True)
    elif isinstance(delta, StreamingThinkingDelta):
        print(printable(delta.thinking), end="", file=out, flush=True)
