"""Choose the rollouts and sample replies that a run's page shows: early, middle and late; best, worst and random."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

_BATCH = re.compile(rb'^\{"batch": (\d+),')
_TEXT_LIMIT = 4000  # characters of one message


def shown_rollouts(file: Path, moments: int = 4) -> list[dict[str, Any]]:
    """Return trajectories of a few batches in `rollouts.jsonl`, each as a dict of plain values.

    Of each batch there are the trajectories with the highest and the lowest reward, and a random one. Only the lines of
    these batches are parsed, because the file may be large.
    """
    if not file.is_file():
        return []
    with file.open("rb") as lines:
        numbers = sorted({int(match[1]) for line in lines if (match := _BATCH.match(line))})
    batches = {one.encode() for one in map(str, spread(numbers, moments))}
    shown: list[dict[str, Any]] = []
    with file.open("rb") as lines:
        by_batch: dict[int, list[Mapping[str, Any]]] = {}
        for line in lines:
            match = _BATCH.match(line)
            if match and match[1] in batches and line.endswith(b"\n"):
                group = json.loads(line)
                by_batch.setdefault(group["batch"], []).extend(group["trajectories"])
    for batch, trajectories in by_batch.items():
        for kind, trajectory in best_worst_random(trajectories, _reward, seed=batch):
            shown.append(
                {
                    "title": f"batch {batch}",
                    "kind": kind,
                    "reward": _reward(trajectory),
                    "rewards": [turn["reward"] for turn in trajectory["turns"]],
                    "end": trajectory["end"],
                    "messages": [readable(message) for message in trajectory["messages"]],
                }
            )
    return shown


def shown_samples(samples: Sequence[Mapping[str, Any]], moments: int = 4) -> list[dict[str, Any]]:
    """Return a few sample replies of early, middle and late evaluations, each as a dict of plain values."""
    shown: list[dict[str, Any]] = []
    for step in spread(sorted({int(sample["step"]) for sample in samples}), moments):
        of_step = [sample for sample in samples if sample["step"] == step]
        if any(sample.get("score") is None for sample in of_step):
            chosen = [("sample", sample) for sample in of_step[:3]]
        else:
            chosen = best_worst_random(of_step, lambda one: float(one["score"]), seed=step)
        for kind, sample in chosen:
            messages = [readable(message) for message in sample.get("messages", ())]
            messages.append({"role": "reply", "text": _cut(str(sample.get("reply", "")))})
            if sample.get("reference") is not None:
                messages.append({"role": "reference", "text": _cut(str(sample["reference"]))})
            shown.append(
                {
                    "title": f"step {step}",
                    "kind": kind,
                    "reward": sample.get("score"),
                    "rewards": [],
                    "end": sample.get("termination"),
                    "messages": messages,
                }
            )
    return shown


def spread(values: Sequence[int], count: int) -> list[int]:
    """Return up to `count` of the values: the first, the last, and others at equal distances between them.

    >>> spread([0, 1, 2, 3, 4, 5, 6], 3)
    [0, 3, 6]
    """
    if len(values) <= count:
        return list(values)
    return [values[i * (len(values) - 1) // (count - 1)] for i in range(count)]


def best_worst_random(
    items: Sequence[Mapping[str, Any]], score: Any, *, seed: int
) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the items with the highest and the lowest score, and a random other one."""
    if not items:
        return []
    order = sorted(range(len(items)), key=lambda i: score(items[i]))
    chosen = {"best": order[-1], "worst": order[0]}
    others = [i for i in range(len(items)) if i not in chosen.values()]
    if others:
        chosen["random"] = Random(f"{seed}/shown").choice(others)
    picked: dict[int, str] = {}
    for kind, i in chosen.items():
        picked.setdefault(i, kind if len(items) > 1 else "only")
    return [(kind, items[i]) for i, kind in picked.items()]


def readable(message: Mapping[str, Any]) -> dict[str, str]:
    """Return the role and the text of a message, with its reasoning and tool calls written out."""
    content = message.get("content") or ""
    parts = [content] if isinstance(content, str) else [_part(part) for part in content]
    for call in message.get("tool_calls") or ():
        parts.append(f"[call] {json.dumps(call, ensure_ascii=False, default=str)}")
    for call in message.get("unparsed_tool_calls") or ():
        parts.append(f"[unparsed call] {json.dumps(call, ensure_ascii=False, default=str)}")
    return {"role": str(message.get("role", "")), "text": _cut("\n".join(part for part in parts if part))}


def _part(part: Any) -> str:
    if not isinstance(part, Mapping):
        return str(part)
    if part.get("type") == "thinking":
        return f"[reasoning] {part.get('thinking', '')}"
    return str(part.get("text", f"[{part.get('type', 'part')}]"))


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_LIMIT else f"{text[:_TEXT_LIMIT]} [{len(text) - _TEXT_LIMIT} more characters]"


def _reward(trajectory: Mapping[str, Any]) -> float:
    return sum(turn["reward"] for turn in trajectory["turns"])
