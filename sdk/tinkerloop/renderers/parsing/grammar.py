"""`Grammar`: what a reply of a chat format can contain, i.e. blocks and fixed texts, and what ends a reply."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from tinkerloop.messages import ToolCall, ToolSpec, UnparsedToolCall
from tinkerloop.renderers.pieces import Part

CallsRead = ToolCall | UnparsedToolCall | Sequence[ToolCall | UnparsedToolCall]
ReadCall = Callable[[Sequence[str], Sequence[ToolSpec]], CallsRead]


class ReadText(Protocol):
    """Function that splits the text of a reply into ordinary text (with None) and calls, each with its text."""

    def __call__(
        self, text: str, tools: Sequence[ToolSpec], /, *, follows_text: bool
    ) -> Iterable[tuple[str, ToolCall | UnparsedToolCall | None]]: ...


@dataclass(frozen=True)
class Block:
    """A part of a reply between two control tokens (such as `<think>`), and the fixed text around its content.

    For example, Qwen3's reasoning block is `Block(Part.REASONING, "<think>", "</think>", head="\\n", foot="\\n",
    gap="\\n\\n")`. The reply `<think>\\nhm\\n</think>\\n\\nYo` has this block with content `hm`, then the text `Yo`.
    """

    part: Part
    open: str
    close: str
    """The control token that closes the block. If it is `""`, the stop token of the reply closes it."""
    head: str = ""
    """Fixed text after `open`."""
    foot: str = ""
    """Fixed text before `close`."""
    lead: str = ""
    """Fixed text before `open`, if text precedes the block."""
    between: str = ""
    """Fixed text before `open`, if another block of the same part precedes the block."""
    gap: str = ""
    """Fixed text after `close`, if text follows the block."""
    trim: str = ""
    """Characters to remove at both ends of the content, and at the start of the text after the block."""
    separators: tuple[str, ...] = ()
    """Control tokens that divide the content into fields."""
    reopens: bool = False
    """True if `open` inside the block closes it and opens the next one, as in Mistral's `[TOOL_CALLS]f[ARGS]{}`."""


@dataclass(frozen=True)
class Grammar:
    """The blocks, the ends and the fixed texts that a reply of a chat format can have."""

    stops: tuple[str, ...]
    """Control tokens that end a reply."""
    blocks: tuple[Block, ...] = ()
    wrappers: tuple[str, ...] = ()
    """Control tokens around a group of blocks. They are not part of the message."""
    announcing: tuple[str, ...] = ()
    """The tokens of `wrappers` after which a call must follow, so that a reply without one is malformed."""
    eos: tuple[str, ...] = ()
    """Control tokens that also end a reply, although the format never writes them."""
    stop_texts: tuple[str, ...] = ()
    """Ordinary texts that end a reply."""
    text_head: str = ""
    """Fixed text at the start of a reply, in ordinary tokens."""
    text_foot: str = ""
    """Fixed text at the end of a reply, in ordinary tokens, unless one of `stop_texts` ends the reply."""
    read_call: ReadCall | None = None
    """Function that parses the fields of a tool call block to one call or several."""
    read_text: ReadText | None = None
    """Function that reads the calls in the text from `find_call` on, for formats that write calls as ordinary text."""
    find_call: Callable[[str], int] | None = None
    """Function that returns the index from which on a text may be a call, or the length of the text."""

    @cached_property
    def control(self) -> frozenset[str]:
        """All control tokens of blocks, wrappers and ends, i.e. those that the parser handles."""
        tags = {tag for b in self.blocks for tag in (b.open, b.close, *b.separators) if tag}
        return frozenset(tags | {*self.stops, *self.eos, *self.wrappers})

    @cached_property
    def tags(self) -> tuple[str, ...]:
        """All control tokens of blocks and wrappers, i.e. those inside a reply."""
        return tuple(sorted(self.control - self.ends))

    @cached_property
    def opening(self) -> dict[str, Block]:
        """Mapping from the control token that opens a block to the block."""
        return {block.open: block for block in self.blocks}

    @cached_property
    def closing(self) -> frozenset[str]:
        """The control tokens that close a block."""
        return frozenset(block.close for block in self.blocks if block.close)

    @cached_property
    def ends(self) -> frozenset[str]:
        """The control tokens that end a reply: `stops` and `eos`."""
        return frozenset((*self.stops, *self.eos))

    @cached_property
    def lead(self) -> str:
        """The longest `lead` of all blocks. It is text of the message only if no block follows."""
        return max((block.lead for block in self.blocks), key=len, default="")

    def block(self, part: Part) -> Block | None:
        """Return the block for `part`, or None if the format has no such block."""
        return next((block for block in self.blocks if block.part is part), None)
