"""Training data for the loop: rows of files, streams and datasets, checked and grouped into resumable batches."""

from tinkerloop.data.adapters import ADAPTERS, Adapter, alpaca, prompt_completion, sharegpt
from tinkerloop.data.batches import Batches, RowBatches, SampledBatches, batches
from tinkerloop.data.conversations import (
    Conversation,
    Conversations,
    ConversationSource,
    Report,
    Skipped,
    load_conversations,
    parse_conversation,
    stream_conversations,
)
from tinkerloop.data.datums import Datums, conversation_datums, conversation_to_datum, conversation_to_datums
from tinkerloop.data.file_search import find_files
from tinkerloop.data.files import FileSource, JsonlFile, RawRow
from tinkerloop.data.mixing import MixedBatches, mix
from tinkerloop.data.prefetch import Prefetched, prefetch
from tinkerloop.data.rendering import DatumStore, render_files
from tinkerloop.data.row_checks import check_messages, check_tools
from tinkerloop.data.split import Subset, train_test_split
from tinkerloop.data.streams import HFSource, IterableSource, Source, StreamBatches, stream

__all__ = [
    "ADAPTERS",
    "Adapter",
    "Batches",
    "Conversation",
    "ConversationSource",
    "Conversations",
    "DatumStore",
    "Datums",
    "FileSource",
    "HFSource",
    "IterableSource",
    "JsonlFile",
    "MixedBatches",
    "Prefetched",
    "RawRow",
    "Report",
    "RowBatches",
    "SampledBatches",
    "Skipped",
    "Source",
    "StreamBatches",
    "Subset",
    "alpaca",
    "batches",
    "check_messages",
    "check_tools",
    "conversation_datums",
    "conversation_to_datum",
    "conversation_to_datums",
    "find_files",
    "load_conversations",
    "mix",
    "parse_conversation",
    "prefetch",
    "prompt_completion",
    "render_files",
    "sharegpt",
    "stream",
    "stream_conversations",
    "train_test_split",
]
