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

    An object of chz becomes a dictionary of its fields, and a set a sorted list. A function or class is written as its
    module and name, and a service client as its class. Any other object is written as `str`, without memory addresses.
    """
    return json.loads(json.dumps(value, default=_stand_in))


def _stand_in(value: Any) -> Any:
    """Return what stands for a value that JSON cannot express."""
    if isinstance(value, Set):
        return sorted(map(json_form, value), key=json.dumps)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "__qualname__"):
        return _name(value)
    if hasattr(value, "create_lora_training_client"):
        return _name(type(value))
    if hasattr(value, "__chz_fields__"):
        import chz

        return {name: getattr(value, name) for name in chz.chz_fields(value)}
    return _ADDRESS.sub("", str(value))


def _name(value: Any) -> str:
    module = getattr(value, "__module__", None)  # None for methods of built-in types
    return value.__qualname__ if module is None else f"{module}.{value.__qualname__}"
