import doctest
import json

import pytest

import tinkerloop
from tinkerloop import hyperparams
from tinkerloop.errors import PlanError
from tinkerloop.hyperparams import lora_parameter_count, recommended_learning_rate
from tinkerloop.model_info import known_models

QWEN3_8B = {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
}
QWEN3_30B = QWEN3_8B | {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "moe_intermediate_size": 768,
    "mlp_only_layers": [],
}


def test_the_examples_of_the_module():
    assert doctest.testmod(hyperparams).failed == 0


def test_every_served_llama_and_qwen_model_has_a_learning_rate():
    covered = [name for name in known_models() if name.startswith(("meta-llama/", "Qwen/"))]
    rates = {name: recommended_learning_rate(name) for name in covered}
    assert len(rates) > 20
    assert all(1e-4 < rate < 6e-4 for rate in rates.values())
    assert recommended_learning_rate("Qwen/Qwen3.8-27B:peft:262144") == rates["Qwen/Qwen3.8-27B"]


@pytest.mark.parametrize("rank", [1, 8, 256])
def test_the_learning_rate_does_not_depend_on_the_rank_of_an_adapter(rank):
    assert recommended_learning_rate("Qwen/Qwen3-8B", rank) == recommended_learning_rate("Qwen/Qwen3-8B")


@pytest.mark.parametrize("nested", [False, True])
def test_the_sizes_of_a_model_folder_are_read_from_its_config(tmp_path, nested):
    config = {"model_type": "qwen3_vl", "text_config": QWEN3_8B | {"model_type": "qwen3_vl_text"}}
    (tmp_path / "config.json").write_text(json.dumps(config if nested else QWEN3_8B))
    assert recommended_learning_rate(str(tmp_path)) == recommended_learning_rate("Qwen/Qwen3-8B")
    assert lora_parameter_count(str(tmp_path)) == lora_parameter_count(QWEN3_8B)


@pytest.mark.parametrize("model", ["openai/gpt-oss-20b", "tiny"])
def test_a_model_that_the_rule_does_not_cover_needs_a_learning_rate(model):
    with pytest.raises(PlanError, match=f"'{model}', only for Llama and Qwen: set learning_rate"):
        recommended_learning_rate(model)


def test_the_built_in_model_is_not_looked_for_on_the_hub():
    with pytest.raises(PlanError, match="built-in model 'tiny'"):
        lora_parameter_count("tiny")


def test_a_folder_without_a_config_is_named(tmp_path):
    with pytest.raises(PlanError, match=r"has no config\.json"):
        recommended_learning_rate(str(tmp_path))


@pytest.mark.parametrize(  # the numbers that the Cookbook 0.6.1 lists for these models
    ("config", "mlp", "attention", "unembed"),
    [(QWEN3_8B, 1_769_472, 958_464, 156_032), (QWEN3_30B, 14_450_688, 835_584, 153_984)],
)
def test_the_parts_of_an_adapter_have_the_sizes_of_the_hosted_service(config, mlp, attention, unembed):
    nothing = {"train_mlp": False, "train_attn": False, "train_unembed": False}
    assert lora_parameter_count(config, 8, **nothing | {"train_mlp": True}) == 8 * mlp
    assert lora_parameter_count(config, 8, **nothing | {"train_attn": True}) == 8 * attention
    assert lora_parameter_count(config, 8, **nothing | {"train_unembed": True}) == 8 * unembed
    assert lora_parameter_count(config, 8) == 8 * (mlp + attention + unembed)


@pytest.mark.parametrize("config", [{"model_type": "mamba"}, QWEN3_30B | {"mlp_only_layers": [0]}])
def test_layers_that_are_not_counted_are_refused(config):
    with pytest.raises(NotImplementedError, match="lora_parameter_count does not"):
        lora_parameter_count(config)


def test_the_count_is_that_of_the_embedded_engine(tmp_path):
    pytest.importorskip("torch")
    client = tinkerloop.connect("local", root=tmp_path).create_lora_training_client("recipes/base", rank=4)
    sizes = client.apply(lambda state: [tensor.numel() for tensor in state.weights.named.values()]).result()
    assert sum(sizes) == lora_parameter_count("recipes/base", rank=4)


def test_the_size_of_an_adapter_is_told_for_a_folder_of_a_model():
    assert (
        hyperparams.adapter_size("recipes/base", 32)
        == f"rank 32, {lora_parameter_count('recipes/base', 32):,} parameters"
    )
    assert hyperparams.adapter_size("recipes/base", 0) == "none: all weights are trained"


def test_experts_are_counted_under_both_names_of_their_number():
    renamed = {("num_local_experts" if name == "num_experts" else name): value for name, value in QWEN3_30B.items()}
    assert lora_parameter_count(renamed) == lora_parameter_count(QWEN3_30B)


@pytest.mark.parametrize("rank", [-5, "8", 2.5, float("nan"), True, None])
def test_a_rank_that_is_no_whole_number_is_refused(rank):
    for find, model in ((lora_parameter_count, QWEN3_8B), (recommended_learning_rate, "Qwen/Qwen3-8B")):
        with pytest.raises(PlanError, match="rank must be a whole number of at least 0, got"):
            find(model, rank)


@pytest.mark.parametrize("name", ["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"])
def test_a_size_that_a_configuration_lacks_is_named(name):
    without = {key: value for key, value in QWEN3_8B.items() if key != name}
    with pytest.raises(PlanError, match=f"has no '{name}', only head_dim, "):
        lora_parameter_count(without)
    with pytest.raises(PlanError, match=f"'{name}' of the model's configuration must be a whole number"):
        lora_parameter_count(QWEN3_8B | {name: "4096"})


def test_a_number_of_experts_that_a_configuration_lacks_is_named():
    with pytest.raises(PlanError, match="has no 'num_local_experts'"):
        lora_parameter_count({key: value for key, value in QWEN3_30B.items() if key != "num_experts"})


def test_a_configuration_whose_part_for_text_is_empty_is_that_of_the_model():
    assert lora_parameter_count(QWEN3_8B | {"text_config": None}) == lora_parameter_count(QWEN3_8B)
