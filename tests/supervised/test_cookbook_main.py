"""tinker-cookbook's own `supervised.train.main`, unchanged, on the embedded engine.

Skipped without it; it is not among the development dependencies because it pins what it barely uses. To run:

    pip install --target DIR --no-deps tinker-cookbook blobfile lxml termcolor
    PYTHONPATH=DIR python -m pytest tests/supervised/test_cookbook_main.py
"""

from __future__ import annotations

import asyncio
import functools
import json
from pathlib import Path

import pytest
import tinker

from tinkerloop.local import ServiceClient

train = pytest.importorskip("tinker_cookbook.supervised.train")

REPOSITORY = Path(__file__).parents[2]


def test_the_cookbooks_own_main_trains_saves_evaluates_and_resumes(tmp_path, monkeypatch):
    from tinker_cookbook.supervised.data import FromConversationFileBuilder
    from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig

    local = functools.partial(ServiceClient, tmp_path / "service", "cpu")
    monkeypatch.setattr(tinker, "ServiceClient", local)
    monkeypatch.setattr(train, "fetch_model_pricing", lambda name: None)  # a look-up on the network
    model = str(REPOSITORY / "recipes" / "base")
    rows = (REPOSITORY / "recipes" / "data" / "pig_latin_train.jsonl").read_text().splitlines()[:40]
    (tmp_path / "chats.jsonl").write_text("\n".join(rows))

    def run(epochs: int) -> list[dict]:
        common = ChatDatasetBuilderCommonConfig(
            model_name_for_tokenizer=model, renderer_name="qwen3_instruct", max_length=256, batch_size=8
        )
        config = train.Config(
            log_path=str(tmp_path / "log"),
            model_name=model,
            recipe_name="test",
            renderer_name="qwen3_instruct",
            dataset_builder=FromConversationFileBuilder(
                file_path=str(tmp_path / "chats.jsonl"), test_size=8, common_config=common
            ),
            learning_rate=3e-3,
            lr_schedule="constant",
            num_epochs=epochs,
            lora_rank=8,
            eval_every=4,
            save_every=3,
        )
        asyncio.run(train.main(config))
        return [json.loads(line) for line in (tmp_path / "log" / "metrics.jsonl").read_text().splitlines()]

    rows = run(epochs=1)
    first = [row["train_mean_nll"] for row in rows if "train_mean_nll" in row]
    assert len(first) == 4
    assert first[-1] < 0.9 * first[0]
    assert any("test/nll" in row for row in rows)
    saved = [json.loads(line) for line in (tmp_path / "log" / "checkpoints.jsonl").read_text().splitlines()]
    client = local().create_training_client_from_state_with_optimizer(saved[-1]["state_path"])
    assert client.apply(lambda state: state.step).result() == 4
    assert local().create_sampling_client(saved[-1]["sampler_path"]).get_base_model() == model
