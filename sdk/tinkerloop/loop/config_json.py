"""The JSON form of a configuration, which is equal in all processes that run the same program.

>>> json_form({"stop": {"b", "a"}, "loss": json_form, "data": object()})
{'stop': ['a', 'b'], 'loss': 'tinkerloop.loop.config_json.json_form', 'data': '<object object>'}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Set
from typing import Any

_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")  # in the repr of an object without one of its own


def json_form(value: Any) -> Any:
    """Return a value that consists of dictionaries, lists, texts, numbers, truth values and None.

    The keys of dictionaries become texts. An object of chz becomes a dictionary of its fields, and a set a sorted list.
    A function or class is written as its module and name, and a service client as its class. Any other object is
    written as `str`, without memory addresses.
    """
    if isinstance(value, Mapping):
        return _object(value)
    if isinstance(value, list | tuple):
        return [json_form(one) for one in value]
    if value is None or isinstance(value, str | int | float):
        return json.loads(json.dumps(value))  # an enumeration's text or number, too
    return _stand_in(value)


def _object(value: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a mapping whose keys are texts. Keys that would have the same text are written as Python writes them."""
    texts = [_key(key) for key in value]
    names = [repr(key) if texts.count(text) > 1 else text for key, text in zip(value, texts, strict=True)]
    return {name: json_form(one) for name, one in zip(names, value.values(), strict=True)}


def _key(key: Any) -> str:
    form = json_form(key)
    return form if isinstance(form, str) else json.dumps(form)


def _stand_in(value: Any) -> Any:
    """Return what stands for a value that JSON cannot express, in its JSON form."""
    if isinstance(value, Set):
        return sorted(map(json_form, value), key=json.dumps)
    if hasattr(value, "__qualname__"):
        return _name(value)
    if hasattr(value, "create_lora_training_client"):
        return _name(type(value))
    if hasattr(value, "__chz_fields__"):
        import chz

        return {name: json_form(getattr(value, name)) for name in chz.chz_fields(value)}
    return _ADDRESS.sub("", str(value))


def _name(value: Any) -> str:
    module = getattr(value, "__module__", None)  # None for methods of built-in types
    return value.__qualname__ if module is None else f"{module}.{value.__qualname__}"
