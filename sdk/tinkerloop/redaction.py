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

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+")  # of snake_case, kebab-case, a.b and camelCase
_LAST = {"password", "passwd", "passphrase", "passcode", "pwd", "secret", "secrets", "token", "credential"}
_LAST |= {"credentials", "authorization", "apikey", "authkey", "secretkey", "accesskey", "cookie"}
_LAST |= {"passwords", "passphrases", "apikeys", "cookies"}
_BEFORE_KEY = {"api", "access", "secret", "private", "auth", "account", "encryption", "signing", "master", "service"}
_BEFORE_KEY |= {"openai", "anthropic", "tinker", "wandb", "hf", "huggingface", "azure", "aws", "ssh", "session"}
_BEFORE_TOKENS = {"api", "access", "auth", "secret", "hf", "huggingface"}  # other tokens are those of a text
_PLAIN_TOKENS = {"pad", "eos", "bos", "stop", "unk", "mask", "sep", "cls", "image", "video", "audio", "begin", "end"}
_PLAIN_TOKENS |= {"start", "special", "first", "last", "next", "per", "max", "min", "new", "control", "tool", "think"}

_USER = re.compile(r"(?<![A-Za-z0-9+.-])(?P<scheme>[A-Za-z0-9+.-]++://)(?P<user>[^\s/?#'\"]*)@")
_QUERY = re.compile(r"(?P<name>[?&](?:key|sig|code|auth|(?:[\w-]+-)?signature)=)[^\s&#'\"]+", re.IGNORECASE)
_BEARER = re.compile(r"(?P<name>\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{6,}")
# A name and what stands between it and its value. The repr of a text has \n before a name and \' around it.
_NAMED = re.compile(
    r"(?:\\[nrt]|(?<![\w.-]))(?:(?P<name>[\w.-]++)(?P<sign>\\*['\"]\s*[:=]\s*|\s*=(?!=)\s*|\s*:(?!:)\s*)"
    r"|(?P<option>--?[A-Za-z][\w.-]*+)\s+(?!-))"
)
_QUOTED = re.compile(r"(?:[bru]{0,2})(?P<quote>\\*['\"])(?P<value>(?:(?!(?P=quote))(?:\\.|.))*)(?P=quote)", re.DOTALL)
_UNCLOSED = re.compile(r"(?:[bru]{0,2})\\*['\"](?P<value>.*)")  # a text that was cut
_SEVERAL = re.compile(r"(?P<value>\[[^\]]*\]|\{[^}]*\}|[\w.]*\([^)]*\))")  # also a call, such as SecretStr('k')
_BARE = re.compile(r"(?P<value>[^\s'\",;&(){}\[\]]+)")
_HEADER = re.compile(r"(?P<value>[^'\"\r\n\\]+)")  # one with several words, to its end
_LIKE_KEY = re.compile(r"[\w.~+/=-]{16,}")
_AMBIGUOUS = {"token", "credential", "credentials"}  # words of error texts, as in "unknown token: 'x'"
_NOT_SECRET = {"", "None", "True", "False", "null", "true", "false", "...", "tml-...", HIDDEN}
_PROSE = {"a", "an", "and", "as", "at", "begins", "by", "expects", "for", "from", "has", "have", "in", "into", "is"}
_PROSE |= {"it", "must", "needs", "of", "on", "or", "that", "the", "to", "too", "was", "were", "which", "with"}


def is_secret(name: str) -> bool:
    """Return true if a value of this name is a password, a key or a token for access."""
    words, is_numbered = _words(name)
    last, before = (words[-1] if words else ""), (words[-2] if len(words) > 1 else "")
    if last == "token":
        return before not in _PLAIN_TOKENS and not (is_numbered and not before)
    if last == "tokens":
        return before in _BEFORE_TOKENS
    return last in _LAST or (last in ("key", "keys") and before in _BEFORE_KEY)


def redacted(value: Any) -> Any:
    """Return `value` (a string, or mappings and lists of strings) with every secret replaced.

    >>> redacted({"url": "https://me:pa55@host/v1?sig=1a", "api_key": "k1", "max_tokens": 9, "key": "text"})
    {'url': 'https://***@host/v1?sig=***', 'api_key': '***', 'max_tokens': 9, 'key': 'text'}
    """
    if isinstance(value, Mapping):
        return _redacted_mapping(value)
    if isinstance(value, list | tuple):
        return redacted_arguments(value)
    if not isinstance(value, str):
        return value
    text = _USER.sub(rf"\g<scheme>{HIDDEN}@", value)
    text = _QUERY.sub(rf"\g<name>{HIDDEN}", text)
    text = _BEARER.sub(rf"\g<name>{HIDDEN}", text)
    return _without_named(text)


def redacted_arguments(arguments: Sequence[Any]) -> list[Any]:
    """Return the arguments of a command with every secret replaced. Those that are no strings may be any value.

    >>> redacted_arguments(["train.py", "--api-key", "k1", "service.token=k2", "--max-tokens", "9"])
    ['train.py', '--api-key', '***', 'service.token=***', '--max-tokens', '9']
    """
    shown: list[Any] = []
    follows_name = False
    for argument in arguments:
        text = argument if isinstance(argument, str) else ""
        name, sign, _ = text.partition("=")
        if follows_name and not text.startswith("--"):
            shown.append(HIDDEN if _is_given(argument) else argument)
            follows_name = False
            continue
        is_name = not re.search(r"\s", name) and is_secret(name)
        follows_name = is_name and not sign and name.startswith("-")
        shown.append(f"{name}={HIDDEN}" if is_name and sign else redacted(argument))
    return shown


def _words(name: str) -> tuple[list[str], bool]:
    """Return the words of a name in lower case, and whether it ends in a number, which is removed."""
    without = name.rstrip("0123456789_.-")
    return [word.lower() for word in _WORDS.findall(without)], without != name


def _redacted_mapping(mapping: Mapping[Any, Any]) -> dict[Any, Any]:
    shown: dict[Any, Any] = {}
    for name, value in mapping.items():
        is_named = isinstance(name, str) and is_secret(name) and _is_given(value)
        key, number = redacted(name), 1
        while key in shown:  # two URLs that differ in their passwords
            number += 1
            key = f"{redacted(name)} ({number})"
        shown[key] = HIDDEN if is_named else redacted(value)
    return shown


def _is_given(value: Any) -> bool:
    return value is not None and value not in ("", HIDDEN) and not isinstance(value, bool)


def _without_named(text: str) -> str:
    """Return the text without the values that have the name of a secret before them."""
    parts, end = [], 0
    for named in _NAMED.finditer(text):
        if named.start() >= end and is_secret(named["name"] or named["option"]):
            value = _secret_after(named, text)
            if value is not None:
                parts += [text[end : value.start("value")], HIDDEN]
                end = value.end("value")
    return "".join([*parts, text[end:]])


def _secret_after(named: re.Match[str], text: str) -> re.Match[str] | None:
    """Return the value after a name in the text; None if there is none, or it is no secret."""
    name, sign = named["name"] or named["option"], named["sign"] or ""
    words, _ = _words(name)
    is_header = sign.strip() == ":" and words[-1] in ("authorization", "cookie")
    patterns = (_QUOTED, _UNCLOSED, _SEVERAL, _HEADER if is_header else _BARE)
    value = next(filter(None, (pattern.match(text, named.end()) for pattern in patterns)), None)
    if value is None or value["value"] in _NOT_SECRET:
        return None
    is_loose = sign.strip() == ":" or (sign.strip() == "=" and sign != "=")
    if is_loose and len(words) == 1 and words[0] in _AMBIGUOUS:
        return value if _LIKE_KEY.fullmatch(value["value"]) else None
    return None if named["option"] and value["value"].lower() in _PROSE else value
