"""What the ordered service offers beyond what the loop's tests use."""

import asyncio

import pytest
import tinker

from tinkerloop.testing import MissingCheckpointError


def trained(service, batches):
    client = service.create_lora_training_client()
    client.forward_backward(list(batches[0]), "cross_entropy").result()
    client.optim_step(tinker.AdamParams(learning_rate=0.1)).result()
    return client


def test_its_checkpoints_are_listed_newest_first_and_deleted(service, batches):
    client, rest = trained(service, batches), service.create_rest_client()
    paths = [client.save_state(name).result().path for name in ("a", "b")]
    listed = rest.list_checkpoints(client.model_id).result().checkpoints
    assert [(one.tinker_path, one.checkpoint_id) for one in listed] == [
        (paths[1], "weights/b"),
        (paths[0], "weights/a"),
    ]
    rest.delete_checkpoint(client.model_id, "weights/a").result()
    rest.set_checkpoint_ttl_from_tinker_path(paths[1], 3600).result()
    assert [one.tinker_path for one in rest.list_user_checkpoints().result().checkpoints] == paths[1:]
    with pytest.raises(MissingCheckpointError):
        rest.delete_checkpoint_from_tinker_path(paths[0]).result()


def test_a_state_is_loaded_with_or_without_its_optimizer(service, batches):
    client = trained(service, batches)
    path = client.save_state("a").result().path
    whole, weights = service.create_lora_training_client(), service.create_lora_training_client()
    whole.load_state_with_optimizer(path).result()
    weights.load_state(path).result()
    assert (whole.state.updates, weights.state.updates) == (1, 0)
    assert (whole.state.logits == client.state.logits).all()
    assert (weights.state.logits == client.state.logits).all()


def test_its_samplers_score_with_the_saved_weights(service, batches):
    client, prompt = trained(service, batches), tinker.ModelInput.from_ints([1, 2, 3])
    saved = client.create_sampling_client(client.save_weights_for_sampler("a").result().path)
    live = client.save_weights_and_get_sampling_client()
    fresh = service.create_sampling_client(base_model="unigram")
    scores = [asyncio.run(one.compute_logprobs(prompt).result_async()) for one in (saved, live, fresh)]
    assert scores[0] == scores[1] != scores[2]
    assert [score[0] for score in scores] == [None] * 3
