import importlib

import pytest

from tinkerloop.errors import PlanError
from tinkerloop.hyperparams import recommended_learning_rate

SHARES = {
    "chat_sft": 1.0,
    "dpo": 0.1,
    "off_policy_distillation": 1.0,
    "on_policy_distillation": 0.1,
    "preference": 0.1,
    "prompt_distillation": 1.0,
    "rl_arithmetic": 0.1,
    "rl_guessing_game": 0.1,
    "rl_tool_use": 0.1,
}
"""The learning rate of each recipe for a model of the user, as a share of the recommended one."""


@pytest.mark.parametrize("name", SHARES)
def test_the_renderer_and_the_learning_rate_of_a_recipe_are_those_of_its_model(name):
    Config = importlib.import_module(f"recipes.{name}").Config
    assert Config().renderer == "qwen3_instruct"
    own = Config(model="meta-llama/Llama-3.1-8B-Instruct")
    assert own.renderer == "llama3"
    recommended = recommended_learning_rate("meta-llama/Llama-3.1-8B-Instruct")
    assert own.learning_rate == SHARES[name] * recommended != Config().learning_rate
    chosen = Config(model="meta-llama/Llama-3.1-8B-Instruct", renderer="template", learning_rate=1e-5)
    assert (chosen.renderer, chosen.learning_rate) == ("template", 1e-5)


HELD_OUT = {
    "chat_sft": "test_size",
    "dpo": "test_pairs",
    "preference": "test_pairs",
    "rl_tool_use": "test_questions",
    "vision_captioning": "test_size",
}
"""The option of each recipe for how much is held out."""


@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize("name", HELD_OUT)
def test_a_recipe_that_would_score_nothing_is_refused(name, number):
    Config = importlib.import_module(f"recipes.{name}").Config
    with pytest.raises(PlanError, match=f"held out for evaluation must be a whole number of at least 1, got {number}"):
        Config(**{HELD_OUT[name]: number})
