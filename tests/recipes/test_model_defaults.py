import importlib

import pytest

from tinkerloop.hyperparams import recommended_learning_rate

RESEARCH = [
    "chat_sft",
    "dpo",
    "off_policy_distillation",
    "on_policy_distillation",
    "preference",
    "prompt_distillation",
    "rl_arithmetic",
    "rl_guessing_game",
    "rl_tool_use",
]


@pytest.mark.parametrize("name", RESEARCH)
def test_the_renderer_and_the_learning_rate_of_a_recipe_are_those_of_its_model(name):
    Config = importlib.import_module(f"recipes.{name}").Config
    assert Config().renderer == "qwen3_instruct"
    own = Config(model="meta-llama/Llama-3.1-8B-Instruct")
    assert own.renderer == "llama3"
    assert own.learning_rate == recommended_learning_rate("meta-llama/Llama-3.1-8B-Instruct") != Config().learning_rate
    chosen = Config(model="meta-llama/Llama-3.1-8B-Instruct", renderer="template", learning_rate=1e-5)
    assert (chosen.renderer, chosen.learning_rate) == ("template", 1e-5)
