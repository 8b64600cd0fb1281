"""The files of a finished run, to compare two runs bit for bit."""

import json
from pathlib import Path


def newest_state(folder: Path) -> dict[str, bytes]:
    """Return the files of the adapter and of the optimizer in the newest checkpoint of a run."""
    record = json.loads((folder / "checkpoints.jsonl").read_text().splitlines()[-1])
    client, kind, name = record["path"].removeprefix("tinker://").split("/")
    files = (folder / "service" / client.replace(":", "_") / kind / name).glob("*.safetensors")
    state = {file.name: file.read_bytes() for file in files}
    assert {"adapter_model.safetensors", "optimizer.safetensors"} <= state.keys()
    return state


def steps(folder: Path) -> list[str]:
    """Return the rows of the metrics that belong to a step, without those of evaluations."""
    return [row for row in (folder / "metrics.jsonl").read_text().splitlines() if "loss" in json.loads(row)]


def rollouts(folder: Path) -> str:
    """Return the content of the log of rollouts; it is empty if the run has none."""
    log = folder / "rollouts.jsonl"
    return log.read_text() if log.exists() else ""
