"""LoRA covers every layer of the decoder, or the client is refused: nothing is left untrained in silence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.local.tiny_models import write_model
from tinkerloop.local import ServiceClient
from tinkerloop.local.runtime.checkpoint_export import export_checkpoint


def trained(client) -> set[str]:
    """Return the last two parts of the names of the adapted layers."""
    names = client.apply(lambda state: list(state.weights.named)).result()
    return {".".join(name.removesuffix(".lora_A").split(".")[-2:]) for name in names if name.endswith("lora_A")}


def test_layers_that_no_adapter_covers_are_named_and_refused(service, tmp_path):
    folder = str(write_model("jetmoe", tmp_path / "model"))
    with pytest.raises(NotImplementedError, match=r"rank=0.*JetMoe.*layers\.\*\.mlp\.input_linear\.weight"):
        service.create_lora_training_client(folder, rank=4)
    assert trained(service.create_lora_training_client(folder, rank=4, train_mlp=False, train_attn=False)) == {
        "lm_head"
    }
    service.create_lora_training_client(folder, rank=0)
    service.create_sampling_client(base_model=folder)


def test_layers_of_gpt2_are_adapted_and_split_into_attention_and_mlp(service, tmp_path):
    folder = str(write_model("gpt2", tmp_path / "model"))
    attention, mlp = {"attn.c_attn", "attn.c_proj"}, {"mlp.c_fc", "mlp.c_proj"}
    options = {"rank": 4, "train_unembed": False}
    assert trained(service.create_lora_training_client(folder, rank=4)) == attention | mlp | {"lm_head"}
    assert trained(service.create_lora_training_client(folder, **options, train_mlp=False)) == attention
    assert trained(service.create_lora_training_client(folder, **options, train_attn=False)) == mlp


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.3)])
def test_a_merged_export_of_gpt2_computes_what_was_trained(tmp_path, datum, adam, tokens, dtype, tolerance):
    folder = str(write_model("gpt2", tmp_path / "model"))
    with ServiceClient(root=tmp_path, device="cpu", dtype=dtype) as service:
        client = service.create_lora_training_client(folder, rank=4)
        (before,) = client.forward([datum(0)], "cross_entropy").result().loss_fn_outputs
        for _ in range(3):
            client.forward_backward([datum(0)], "cross_entropy")
            client.optim_step(adam(1e-1))
        (output,) = client.forward([datum(0)], "cross_entropy").result().loss_fn_outputs
        export_checkpoint(tmp_path, client.save_state("a").result().path, tmp_path / "merged", merged=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    ids = tokens(0, 13)
    with torch.no_grad():
        lp = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    merged = lp.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()
    np.testing.assert_allclose(merged, output["logprobs"].to_numpy(), atol=tolerance)
    assert np.abs(merged - before["logprobs"].to_numpy()).max() > 1


def test_fc1_and_fc2_are_the_mlp_where_no_block_has_that_name(service, tmp_path):
    folder = str(write_model("opt", tmp_path / "model"))
    client = service.create_lora_training_client(folder, rank=4, train_attn=False, train_unembed=False)
    assert {name.split(".")[-1] for name in trained(client)} == {"fc1", "fc2"}


def test_a_choice_of_layers_that_the_model_does_not_have_is_refused(service, monkeypatch):
    model = service.create_lora_training_client("tiny", rank=4)._run.model
    kinds = {name: "attn" if kind == "mlp" else kind for name, kind in model.kinds.items()}
    monkeypatch.setattr(model, "kinds", kinds)
    with pytest.raises(NotImplementedError, match="no layer to adapt with train_attn=False and train_mlp=True"):
        service.create_lora_training_client("tiny", rank=4, train_attn=False)
