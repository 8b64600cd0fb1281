"""`Grammar`: the blocks that replies of a format consist of, and the tokens or texts that end them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from tinkerloop.messages import ToolCall, ToolSpec, UnparsedToolCall
from tinkerloop.renderers.pieces import Part

ReadCall = Callable[[Sequence[str], Sequence[ToolSpec]], ToolCall | UnparsedToolCall]
ReadText = Callable[[str, Sequence[ToolSpec]], ToolCall | None]


@dataclass(frozen=True)
class Block:
    """A part of a reply between two control tokens, with the fixed text that the format writes around its content.

    Qwen3's `<think>\\nhm\\n</think>\\n\\nYo` is `Block(Part.REASONING, "<think>", "</think>", head="\\n", foot="\\n",
    gap="\\n\\n")` with content `hm`, then the text `Yo`.
    """

    part: Part
    open: str
    close: str
    head: str = ""
    """Written after `open`."""
    foot: str = ""
    """Written before `close`."""
    lead: str = ""
    """Written before `open` if text precedes the block."""
    between: str = ""
    """Written before `open` if another block of the same part precedes it."""
    gap: str = ""
    """Written after `close` if text follows."""
    trim: str = ""
    """Characters that the format removes at both ends of the content, and at the start of the text after the block."""
    separators: tuple[str, ...] = ()
    """Control tokens that divide the content into fields."""


@dataclass(frozen=True)
class Grammar:
    """The blocks, ends and fixed texts that a reply of a family can have."""

    stops: tuple[str, ...]
    """Control tokens that end a reply."""
    blocks: tuple[Block, ...] = ()
    wrappers: tuple[str, ...] = ()
    """Control tokens around a group of blocks; they are not part of the message."""
    eos: tuple[str, ...] = ()
    """Control tokens that also end a reply, although the format does not write them."""
    stop_texts: tuple[str, ...] = ()
    """Ordinary text that ends a reply."""
    text_head: str = ""
    """Ordinary text that begins a reply."""
    text_foot: str = ""
    """Ordinary text that precedes an end other than one of `stop_texts`."""
    read_call: ReadCall | None = None
    """Reads the fields of a tool call's block."""
    read_text: ReadText | None = None
    """Reads a whole reply as a tool call, in formats that write calls as ordinary JSON text."""

    @cached_property
    def control(self) -> frozenset[str]:
        """Every control token that the parser reacts to."""
        tags = {tag for b in self.blocks for tag in (b.open, b.close, *b.separators)}
        return frozenset(tags | {*self.stops, *self.eos, *self.wrappers})

    @cached_property
    def opening(self) -> dict[str, Block]:
        """The blocks by the token that opens them."""
        return {block.open: block for block in self.blocks}

    @cached_property
    def closing(self) -> frozenset[str]:
        """The tokens that close a block."""
        return frozenset(block.close for block in self.blocks)

    @cached_property
    def ends(self) -> frozenset[str]:
        """The tokens that end a reply."""
        return frozenset((*self.stops, *self.eos))

    @cached_property
    def lead(self) -> str:
        """The longest `lead` of a block, which may turn out not to be text of the reply."""
        return max((block.lead for block in self.blocks), key=len, default="")

    def block(self, part: Part) -> Block | None:
        """Return the block of this part, None if the format has none."""
        return next((block for block in self.blocks if block.part is part), None)
