"""The Tinker Cookbook's own scripts, unmodified, under `tinkerloop run`; and run folders that both can read.

Run them with the Cookbook (0.6.1, without its dependencies) and the few packages that its scripts import:

    pip install --no-deps --target PEERS tinker-cookbook==0.6.1 blobfile lxml termcolor pylatexenc math-verify \\
        latex2sympy2_extended
    PYTHONPATH=PEERS python -m pytest -m soak tests/server/test_cookbook_scripts.py -s

The scripts load data sets by name. The test writes small ones into folders of these names, in the working directory.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tinkerloop.cli.run_checkpoint import training_path
from tinkerloop.loop.jsonl import read_lines

pytest.importorskip("tinker_cookbook")
pytest.importorskip("blobfile")
pytestmark = pytest.mark.soak

ROOT = Path(__file__).resolve().parents[2]
MODEL = "Qwen/Qwen3-8B"
RECIPES = "tinker_cookbook.recipes"
OFF_POLICY = """
import asyncio, sys
from tinker_cookbook.distillation import train_off_policy
from tinker_cookbook.distillation.datasets import TeacherConfig
from tinker_cookbook.supervised.data import FromConversationFileBuilder
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig

model, teacher = sys.argv[1:]
common = ChatDatasetBuilderCommonConfig(
    model_name_for_tokenizer=model, renderer_name="qwen3_disable_thinking", max_length=256, batch_size=8
)
domain = train_off_policy.DatasetWithTeacher(
    dataset_builder=FromConversationFileBuilder(common_config=common, file_path="sums.jsonl"),
    teacher_config=TeacherConfig(base_model=model, load_checkpoint_path=teacher),
)
config = train_off_policy.Config(
    learning_rate=1e-3, dataset_configs=[domain], model_name=model, recipe_name="off_policy", lora_rank=8,
    renderer_name="qwen3_disable_thinking", n_teacher_targets=8, batch_size=8, max_steps=8, log_path="off_policy",
)
asyncio.run(train_off_policy.main(config))
"""
OURS = """
import asyncio
import sys
from tinkerloop.supervised import train
from tinkerloop.supervised.data import FromConversationFileBuilder
from tinkerloop.supervised.types import ChatDatasetBuilderCommonConfig

model, start = sys.argv[1:]
common = ChatDatasetBuilderCommonConfig(
    model_name_for_tokenizer=model, renderer_name="qwen3_disable_thinking", max_length=256, batch_size=8
)
config = train.Config(
    model_name=model, dataset_builder=FromConversationFileBuilder(common_config=common, file_path="sums.jsonl"),
    log_path="ours", load_checkpoint_path=start, lora_rank=8, learning_rate=1e-3, max_steps=4, eval_every=0,
)
asyncio.run(train.main(config))
"""


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_data(folder: Path) -> None:
    """Write the data sets: sums of two numbers, pairs of a right and a wrong answer, questions with two choices."""
    draw = random.Random("sums")
    sums = [(draw.randint(0, 100), draw.randint(0, 100)) for _ in range(400)]
    asked = [(f"What is {x} + {y}?", str(x + y)) for x, y in sums]
    chats = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in asked
    ]
    write_rows(folder / "sums.jsonl", chats)
    write_rows(folder / "allenai/tulu-3-sft-mixture/train.jsonl", chats)
    pairs = [
        {side: f"\n\nHuman: {question}\n\nAssistant: {before}{answer}" for side, before in SIDES.items()}
        for question, answer in asked[:64]
    ]
    write_rows(folder / "Anthropic/hh-rlhf/train.jsonl", pairs)
    write_rows(folder / "Anthropic/hh-rlhf/test.jsonl", pairs[:8])
    choices = {"label": ["A", "B"], "text": ["the first", "the last"]}
    questions = [
        {"domain": "Chemistry", "type": "mcq", "details": {"level": "L3"}, "choices": choices}
        | {"question": f"Which one is it in case {number}?", "answerKey": "AB"[number % 2]}
        for number in range(40)
    ]
    write_rows(folder / "hicai-zju/SciKnowEval/test.jsonl", questions)
    (folder / "off_policy.py").write_text(OFF_POLICY)
    (folder / "ours.py").write_text(OURS)


SIDES = {"chosen": "", "rejected": "no"}


class Workplace:
    """A folder with the data sets, in which scripts run one after another, all with one root of checkpoints."""

    def __init__(self, folder: Path):
        self.folder = folder
        write_data(folder)

    def run(self, name: str, *script: str) -> list[dict[str, Any]]:
        """Run a script that logs to the folder `name`, and return the rows of its metrics."""
        command = [sys.executable, "-m", "tinkerloop.cli", "run", "--root", "root"]
        command += ["--model", f"{MODEL}={ROOT / 'recipes/base'}", *script]
        caches = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(self.folder / "cache")}
        start = time.monotonic()
        with (self.folder / f"{name}.txt").open("w") as output:
            done = subprocess.run(command, cwd=self.folder, env={**os.environ, **caches}, stdout=output, stderr=output)
        print(f"\n| {name} | {' '.join(script)} | exit {done.returncode} | {time.monotonic() - start:.0f} s |")
        assert done.returncode == 0, (self.folder / f"{name}.txt").read_text()[-3000:]
        return list(read_lines(self.folder / name / "metrics.jsonl"))

    def recipe(self, name: str, module: str, **options: object) -> list[dict[str, Any]]:
        given = {"model_name": MODEL, "log_path": name, "behavior_if_log_dir_exists": "delete", **options}
        return self.run(name, "-m", f"{RECIPES}.{module}", *(f"{key}={value}" for key, value in given.items()))

    def sampler_path(self, name: str) -> str:
        return list(read_lines(self.folder / name / "checkpoints.jsonl"))[-1]["sampler_path"]

    def state_path(self, name: str) -> str:
        return training_path(str(self.folder / name))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("workplace"))


SFT = {"renderer_name": "qwen3_disable_thinking", "lora_rank": 8, "max_length": 256, "batch_size": 8}
RL = {"env": "arithmetic", "loss_fn": "ppo", "lora_rank": 8, "group_size": 8, "groups_per_batch": 8, "max_tokens": 4}


@pytest.fixture(scope="module")
def sft(workplace: Workplace) -> list[dict[str, Any]]:
    options = {"dataset": "sums.jsonl", "learning_rate": 3e-3, "eval_every": 20, "save_every": 20, "max_steps": 40}
    return workplace.recipe("sft", "chat_sl.train", **SFT, **options)


def values(rows: list[dict[str, Any]], name: str) -> list[float]:
    found = [row[name] for row in rows if name in row]
    print(name, [round(value, 4) for value in found])
    return found


def test_supervised_fine_tuning_lowers_the_loss(sft):
    losses = values(sft, "train_mean_nll")
    assert losses[-1] < 0.7 * losses[0]


def test_preference_optimisation_prefers_the_chosen_replies(workplace):
    options = {"dataset": "hhh", "batch_size": 8, "learning_rate": 1e-3, "max_length": 256, "max_steps": 6}
    losses = values(workplace.recipe("dpo", "preference.dpo.train", **options), "dpo_loss")
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name, options", [("rl", {}), ("rl_async", {"max_steps_off_policy": 1})])
def test_reinforcement_learning_raises_the_reward(workplace, sft, name, options):
    begin = {"load_checkpoint_path": workplace.state_path("sft"), "learning_rate": 3e-4, "max_steps": 8}
    rows = workplace.recipe(name, "math_rl.train", **RL, **begin, eval_every=0, save_every=4, **options)
    rewards = values(rows, "env/all/reward/total")
    assert sum(rewards[-3:]) > sum(rewards[:3])


def test_on_policy_distillation_comes_closer_to_the_teacher(workplace, sft):
    teacher = {"teacher_model": MODEL, "teacher_checkpoint": workplace.sampler_path("sft")}
    options = {"dataset": "tulu3", "group_size": 2, "groups_per_batch": 8, "max_tokens": 6, "max_steps": 6}
    options |= {"renderer_name": "qwen3_disable_thinking", "lora_rank": 8, "learning_rate": 1e-3, "eval_every": 0}
    rows = workplace.recipe("on_policy", "distillation.on_policy_distillation", **teacher, **options)
    divergences = values(rows, "teacher_kl")
    assert divergences[-1] < divergences[0]


def test_off_policy_distillation_with_soft_targets_lowers_the_loss(workplace, sft):
    rows = workplace.run("off_policy", "off_policy.py", MODEL, workplace.sampler_path("sft"))
    losses = values(rows, "train/loss:sum")
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name, options", [("sdft", {}), ("sdft_reverse", {"reverse": True})])
def test_self_distillation_from_a_demonstration_runs(workplace, name, options):
    # Without evaluations, because this recipe's own evaluation fails on every service: it passes lists as environments.
    given = {"groups_per_batch": 4, "max_tokens": 8, "max_steps": 3, "lora_rank": 8, "topk": 8, "eval_every": 0}
    options = {**given, **options}
    assert workplace.recipe(name, "sdft.train", **options)


def test_prompt_distillation_lowers_the_loss(workplace):
    options = {"file_path": "sums.jsonl", "learning_rate": 1e-3, "eval_every": 0, "max_steps": 6}
    losses = values(workplace.recipe("prompt", "prompt_distillation.train", **SFT, **options), "train_mean_nll")
    assert losses[-1] < losses[0]


def test_a_script_that_is_started_again_resumes_from_its_checkpoint(workplace, sft):
    # The record of its end stands for a whole epoch, of 50 steps, although the script stopped after 40.
    options = {"dataset": "sums.jsonl", "learning_rate": 3e-3, "num_epochs": 2, "max_steps": 54}
    rows = workplace.recipe("sft", "chat_sl.train", **SFT, **options, behavior_if_log_dir_exists="resume")
    assert [row["step"] for row in rows[len(sft) :]] == [50, 51, 52, 53]


def test_each_reads_the_run_folders_of_the_other_and_trains_on(workplace, sft):
    from tinker_cookbook.checkpoint_utils import get_last_checkpoint, load_checkpoints_file

    losses = values(workplace.run("ours", "ours.py", MODEL, "sft"), "loss")
    first = values(sft, "train_mean_nll")
    assert losses[0] < 0.7 * first[0]
    newest, folder = get_last_checkpoint(str(workplace.folder / "ours")), str(workplace.folder / "ours")
    assert newest is not None
    assert (newest.batch, newest.state_path) == (4, workplace.state_path("ours"))
    assert get_last_checkpoint(folder, "sampler_path") == newest
    assert [record.name for record in load_checkpoints_file(folder)] == [newest.state_path.rpartition("/")[2]]
    options = {"dataset": "sums.jsonl", "learning_rate": 1e-3, "eval_every": 0, "max_steps": 2}
    rows = workplace.recipe("theirs", "chat_sl.train", load_checkpoint_path=newest.state_path, **SFT, **options)
    assert values(rows, "train_mean_nll")[0] < 0.7 * first[0]
