"""Chat formats: convert messages to tokens with weights, build prompts, and parse sampled tokens to messages."""

from tinkerloop.messages import (
    Content,
    ContentPart,
    ImagePart,
    Message,
    Role,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolSpec,
    UnparsedToolCall,
)
from tinkerloop.renderers.base import Options, Renderer
from tinkerloop.renderers.episode import Episode
from tinkerloop.renderers.format import LEFT_OUT_BY_TEMPLATES
from tinkerloop.renderers.message_text import (
    ParseFailureKind,
    classify_parse_failure,
    ensure_text,
    format_content_as_string,
    get_text_content,
)
from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.parsing.parsed import (
    MessageDelta,
    Parsed,
    ParseTermination,
    StreamingMessageHeader,
    StreamingTextDelta,
    StreamingThinkingDelta,
    StreamingToolCallDelta,
)
from tinkerloop.renderers.parsing.reply_parser import ReplyParser
from tinkerloop.renderers.pieces import SEAM, Part, Piece, Pieces, markup, scaffold, stop, text
from tinkerloop.renderers.registry import (
    get_registered_renderer_names,
    get_renderer,
    is_renderer_registered,
    register_renderer,
    unregister_renderer,
)
from tinkerloop.renderers.rendered import Rendered, Span
from tinkerloop.renderers.tool_calls import read_json_call, write_json_call
from tinkerloop.renderers.train_on_what import TrainOnWhat

__all__ = [
    "LEFT_OUT_BY_TEMPLATES",
    "SEAM",
    "Block",
    "Content",
    "ContentPart",
    "Episode",
    "Grammar",
    "ImagePart",
    "Message",
    "MessageDelta",
    "Options",
    "ParseFailureKind",
    "ParseTermination",
    "Parsed",
    "Part",
    "Piece",
    "Pieces",
    "Rendered",
    "Renderer",
    "ReplyParser",
    "Role",
    "Span",
    "StreamingMessageHeader",
    "StreamingTextDelta",
    "StreamingThinkingDelta",
    "StreamingToolCallDelta",
    "TextPart",
    "ThinkingPart",
    "ToolCall",
    "ToolSpec",
    "TrainOnWhat",
    "UnparsedToolCall",
    "classify_parse_failure",
    "ensure_text",
    "format_content_as_string",
    "get_registered_renderer_names",
    "get_renderer",
    "get_text_content",
    "is_renderer_registered",
    "markup",
    "read_json_call",
    "register_renderer",
    "scaffold",
    "stop",
    "text",
    "unregister_renderer",
    "write_json_call",
]
