"""Tokenizers from a `tiktoken.model` file, which Kimi models have instead of a `tokenizer.json`.

The file lists the byte strings of the vocabulary with their ranks, which give the order of the BPE merges. The pattern
that splits text before merging is only in the model's Python code, which is never run here. This module contains the
patterns of the supported models.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tinkerloop.errors import TinkerloopError
from tinkerloop.tokenizers.notations import byte_of_character

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RANKS_FILE = "tiktoken.model"
_RESERVED = 256  # number of ids for control tokens (such as <|im_end|>), after those of the vocabulary

_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = (rf"[{case}\p{{Lm}}\p{{Lo}}\p{{M}}&&[^\p{{Han}}]]" for case in (r"\p{Lu}\p{Lt}", r"\p{Ll}"))
KIMI_PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDING}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDING}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_PATTERNS = {"tokenization_kimi.TikTokenTokenizer": KIMI_PATTERN}
"""Mapping from the tokenizer class in a model's configuration to the split pattern of this class."""


def tokenizer_from_ranks(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a folder that contains `tiktoken.model` and `tokenizer_config.json`.

    It splits text with the pattern of the model's code and merges like tiktoken. The 256 ids after the vocabulary are
    control tokens. Those without a name in the configuration get the name `<|reserved_token_ID|>`.

    Raises:
        TinkerloopError: the configuration names a tokenizer class whose split pattern is not known here.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    config = json.loads((folder / "tokenizer_config.json").read_text())
    code = next(iter(config.get("auto_map", {}).get("AutoTokenizer") or ()), None)
    if code not in _PATTERNS:
        known = ", ".join(_PATTERNS)
        raise TinkerloopError(
            f"cannot read the tokenizer in {folder}: it has a {RANKS_FILE} for {code!r}, but split patterns are only "
            f"known for {known}; convert it to a tokenizer.json with the model's own code"
        )
    ranks = read_ranks(folder / RANKS_FILE)
    spelling = {byte: character for character, byte in byte_of_character().items()}
    spelled = {token: "".join([spelling[byte] for byte in token]) for token in ranks}
    merges = [(spelled[a], spelled[b]) for a, b in _merges(ranks)]
    core = Tokenizer(models.BPE(vocab={spelled[token]: rank for token, rank in ranks.items()}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERNS[code]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    named = {int(i): token for i, token in config["added_tokens_decoder"].items()}
    added = [named.get(i) or {"content": f"<|reserved_token_{i}|>"} for i in range(len(ranks), len(ranks) + _RESERVED)]
    core.add_tokens([AddedToken(t["content"], normalized=False, special=t.get("special", True)) for t in added])
    template = folder / "chat_template.jinja"
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=template.read_text() if template.is_file() else config.get("chat_template"),
        clean_up_tokenization_spaces=False,
        **{key: config[key] for key in ("bos_token", "eos_token", "pad_token", "unk_token") if config.get(key)},
    )


def read_ranks(file: Path) -> dict[bytes, int]:
    """Return the mapping from byte string to rank in `file`. Each line has a byte string in base64 and its rank."""
    lines = (line.split() for line in file.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Return all pairs of tokens that merge to a token, in the order of the rank of the merged token."""
    merges: list[tuple[bytes, bytes]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = ((token[:i], token[i:]) for i in range(1, len(token)))
        valid = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        merges += sorted(valid, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges
