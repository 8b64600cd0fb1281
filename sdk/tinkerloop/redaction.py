"""Redaction of passwords, keys and tokens in what is written to files and printed.

A value is redacted for its name, as in `api_key=X`, `{"password": "X"}` or `--api-key X`, and where it stands in a URL:
`https://user:X@host`, `?sig=X`. A name such as `max_tokens`, `pad_token` or `text_key` is no secret's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"
"""The text that replaces a secret."""

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+")  # of snake_case, kebab-case, dotted.names and camelCase
_LAST = {"password", "passwd", "passphrase", "passcode", "pwd", "secret", "secrets", "token", "credential"}
_LAST |= {"credentials", "authorization", "apikey", "authkey", "secretkey", "accesskey", "cookie"}
_BEFORE_KEY = {"api", "access", "secret", "private", "auth", "account", "encryption", "signing", "master", "service"}
_BEFORE_KEY |= {"openai", "anthropic", "tinker", "wandb", "hf", "huggingface", "azure", "aws", "ssh", "session"}
_PLAIN_TOKENS = {"pad", "eos", "bos", "stop", "unk", "mask", "sep", "cls", "image", "video", "audio", "begin", "end"}
_PLAIN_TOKENS |= {"start", "special", "first", "last", "next", "per", "max", "min", "new", "control", "tool", "think"}

_USER = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>[^\s/?#'\"]*)@")
_QUERY = re.compile(r"(?P<name>[?&](?:key|sig|signature|code|auth)=)[^\s&#'\"]+", re.IGNORECASE)
_BEARER = re.compile(r"(?P<name>\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{6,}")
_ASSIGNED = re.compile(
    r"(?P<name>[\w.-]+)(?P<sign>=|['\"]\s*:\s*)(?:(?P<quote>['\"])(?P<quoted>(?:\\.|(?!(?P=quote)).)*)(?P=quote)"
    r"|(?P<bare>[^\s'\",;&(){}\[\]]+))"
)


def is_secret(name: str) -> bool:
    """Return true if a value of this name is a password, a key or a token for access."""
    words = [word.lower() for word in _WORDS.findall(name)]
    last, before = (words[-1] if words else ""), (words[-2] if len(words) > 1 else "")
    if last == "token":
        return before not in _PLAIN_TOKENS
    return last in _LAST or (last == "key" and before in _BEFORE_KEY)


def redacted(value: Any) -> Any:
    """Return `value` (a string, or mappings and lists of strings) with every secret replaced.

    >>> redacted({"url": "https://me:pa55@host/v1?sig=1a", "api_key": "k1", "max_tokens": 9, "key": "text"})
    {'url': 'https://***@host/v1?sig=***', 'api_key': '***', 'max_tokens': 9, 'key': 'text'}
    """
    if isinstance(value, Mapping):
        return {
            name: HIDDEN if isinstance(name, str) and is_secret(name) and _is_given(one) else redacted(one)
            for name, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(one) for one in value]
    if not isinstance(value, str):
        return value
    text = _USER.sub(rf"\g<scheme>{HIDDEN}@", value)
    text = _QUERY.sub(rf"\g<name>{HIDDEN}", text)
    text = _BEARER.sub(rf"\g<name>{HIDDEN}", text)
    return _ASSIGNED.sub(_assigned, text)


def redacted_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command with every secret replaced.

    >>> redacted_arguments(["train.py", "--api-key", "k1", "service.token=k2", "--max-tokens", "9"])
    ['train.py', '--api-key', '***', 'service.token=***', '--max-tokens', '9']
    """
    shown: list[str] = []
    follows_name = False
    for argument in arguments:
        name, sign, _ = argument.partition("=")
        if follows_name and not argument.startswith("--"):
            shown.append(HIDDEN)
            follows_name = False
            continue
        is_name = not re.search(r"\s", name) and is_secret(name)
        follows_name = is_name and not sign and name.startswith("-")
        shown.append(f"{name}={HIDDEN}" if is_name and sign else redacted(argument))
    return shown


def _is_given(value: Any) -> bool:
    return value not in (None, "", HIDDEN) and not isinstance(value, bool)


def _assigned(match: re.Match[str]) -> str:
    value = match["bare"] if match["quoted"] is None else match["quoted"]
    if not is_secret(match["name"]) or value in ("", "None", "True", "False", "null", HIDDEN):
        return match[0]
    quote = match["quote"] or ""
    return f"{match['name']}{match['sign']}{quote}{HIDDEN}{quote}"
