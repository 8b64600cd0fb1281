"""Saving, listing, copying, expiring, deleting and loading of named checkpoints through the clients."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tinker

from tests.local.tiny_models import write_model
from tinkerloop.client_versions import has_field
from tinkerloop.local import ServiceClient
from tinkerloop.local.runtime.checkpoint_store import CheckpointStore


@pytest.mark.skipif(not has_field(tinker.Checkpoint, "user_metadata"), reason="tinker < 0.26 cannot list metadata")
def test_names_are_unique_unless_overwritten_and_kinds_do_not_collide(service, client, datum, adam):
    client.save_state("a", user_metadata={"k": "v"}).result()
    with pytest.raises(tinker.ConflictError):
        client.save_state("a").result()
    client.save_state("a", overwrite=True, user_metadata={"k": "w"}).result()
    client.save_weights_for_sampler("a").result()
    found = service.create_rest_client().list_checkpoints(client.model_id).result().checkpoints
    assert [(c.checkpoint_id, c.checkpoint_type, c.user_metadata) for c in found] == [
        ("weights/a", "training", {"k": "w"}),
        ("sampler_weights/a", "sampler", None),
    ]


def test_checkpoints_are_listed_described_expired_copied_and_deleted(service, client):
    rest = service.create_rest_client()
    path = client.save_state("a", ttl_seconds=3600).result().path
    assert rest.get_weights_info_by_tinker_path(path).result().lora_rank == 8
    assert rest.list_user_checkpoints().result().checkpoints[0].expires_at is not None
    rest.set_checkpoint_ttl_from_tinker_path(path, None).result()
    copied = rest.copy_weights(path).result()
    assert rest.list_training_runs().result().cursor.total_count == 2
    rest.delete_checkpoint_from_tinker_path(path).result()
    with pytest.raises(tinker.NotFoundError):
        service.create_training_client_from_state(path)
    service.create_training_client_from_state_with_optimizer(copied)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Simulate a full disk: in this context, no file can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_save_that_fails_leaves_the_previous_one_whole(service, client, datum, adam, tmp_path):
    path = client.save_state("a").result().path
    client.forward_backward([datum(0)], "cross_entropy")
    client.optim_step(adam(1e-2)).result()

    with file_size_limit(1000), pytest.raises(tinker.RequestFailedError, match="cannot save"):
        client.save_state("a", overwrite=True).result()
    rest = service.create_rest_client()
    with file_size_limit(1000), pytest.raises(tinker.RequestFailedError, match="cannot save"):
        rest.copy_weights(path).result()
    with file_size_limit(0), pytest.raises(tinker.RequestFailedError, match="cannot save"):
        rest.set_checkpoint_ttl_from_tinker_path(path, 3600).result()
    assert not list(tmp_path.glob(".writing-*"))
    again = service.create_training_client_from_state_with_optimizer(path)
    assert again.apply(lambda s: s.step).result() == 0
    client.save_state("a", overwrite=True).result()


def test_a_save_killed_between_its_two_renames_is_still_listed_and_loads(service, client, tmp_path):
    path = client.save_state("a").result().path
    folder = tmp_path / path.removeprefix("tinker://").replace(":", "_")
    folder.rename(folder.with_name(".previous-a"))
    rest = service.create_rest_client()
    assert [c.tinker_path for c in rest.list_user_checkpoints().result().checkpoints] == [path]
    service.create_training_client_from_state_with_optimizer(path)
    assert folder.exists()


def test_what_killed_saves_and_deletions_left_is_swept_after_a_day(client, tmp_path):
    old, new = [tmp_path / ".writing-old", tmp_path / ".deleting-old"], tmp_path / ".writing-new"
    for left in (*old, new):
        left.mkdir(parents=True)
    for left in old:
        os.utime(left, (0, 0))
    client.save_state("a").result()
    assert ([left.exists() for left in old], new.exists()) == ([False, False], True)


def test_an_unknown_path_fails_and_the_client_goes_on(service, client, datum):
    for path in ("tinker://nobody:train:0/weights/a", "tinker://x", "file:///etc/passwd"):
        with pytest.raises((tinker.NotFoundError, tinker.BadRequestError)):
            service.create_training_client_from_state(path)
    with pytest.raises(tinker.NotFoundError):
        service.create_sampling_client("tinker://nobody:train:0/sampler_weights/a")
    client.forward([datum(0)], "cross_entropy").result()


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "x\0", None])
def test_no_name_leaves_the_root(client, name):
    with pytest.raises(tinker.BadRequestError):
        client.save_state(name).result()


def test_load_state_must_come_first(service, client, datum):
    path = client.save_state("a").result().path
    fresh = service.create_lora_training_client("tiny", rank=8)
    assert fresh.load_state_with_optimizer(path).result().path == path
    used = service.create_lora_training_client("tiny", rank=8)
    used.forward([datum(0)], "cross_entropy").result()
    with pytest.raises(tinker.BadRequestError, match="not permitted with seq_id"):
        used.load_state(path).result()


def test_kinds_of_checkpoints_are_not_confused(service, client):
    training, sampling = client.save_state("a").result().path, client.save_weights_for_sampler("a").result().path
    with pytest.raises(tinker.BadRequestError):
        service.create_training_client_from_state(sampling)
    with pytest.raises(tinker.BadRequestError, match="must point to a sampler"):
        service.create_sampling_client(training)


@pytest.mark.parametrize(
    "option",
    [
        *({"seed": seed} for seed in (2.5, True, False, "x", "")),
        *({flag: 1} for flag in ("train_mlp", "train_attn", "train_unembed")),
        {"train_mlp": 0},
        {"train_unembed": None},
        {"rank": True},
        {"rank": 4.0},
    ],
)
def test_a_client_is_not_created_with_an_option_that_no_checkpoint_could_record(service, option):
    with pytest.raises(tinker.BadRequestError, match=next(iter(option))):
        service.create_lora_training_client("tiny", **{"rank": 4, **option})


@pytest.mark.parametrize(
    "options",
    [{"seed": np.int64(3)}, {"seed": -1}, {"seed": 2**70}, {"train_mlp": np.bool_(False)}, {"rank": np.int8(2)}],
)
def test_a_client_with_numbers_of_numpy_is_saved_and_loaded(service, options):
    client = service.create_lora_training_client("tiny", **{"rank": 4, **options})
    path = client.save_state("a").result().path
    again = service.create_training_client_from_state_with_optimizer(path)
    assert again.apply(lambda s: s.weights.flat.clone()).result().equal(client._run.state.weights.flat)


def test_an_adapter_option_beside_rank_0_is_refused(service):
    with pytest.raises(tinker.BadRequestError, match="train_attn=False has no effect"):
        service.create_lora_training_client("tiny", rank=0, train_attn=False)


def test_whether_to_train_vision_is_a_bool(tmp_path):
    with pytest.raises(ValueError, match="train_vision"):
        ServiceClient(root=tmp_path, train_vision=1)


@pytest.mark.parametrize(
    "change", [{"step": 1.5}, {"step": np.int64(1)}, {"run_metadata": {"a": "\udce9"}}, {"time": "x"}]
)
def test_a_record_that_could_not_be_read_is_not_written(service, client, tmp_path, change):
    path = client.save_state("a").result().path
    store = CheckpointStore(tmp_path)
    with pytest.raises(tinker.BadRequestError, match="cannot be saved"):
        store.update(path, **change)
    assert store.read(path).step == 0


def relative_models(tmp_path) -> list[Path]:
    """Return two folders. Each has another model at the relative path `models/base`."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, size in zip(folders, (64, 32), strict=True):
        write_model("qwen2", folder / "models" / "base", intermediate_size=size)
    return folders


def scores(client) -> list[float | None]:
    return client.compute_logprobs(tinker.ModelInput.from_ints([5, 6, 7])).result()


def test_a_relative_model_folder_means_the_same_model_after_a_change_of_the_working_directory(tmp_path, monkeypatch):
    one, two = relative_models(tmp_path)
    monkeypatch.chdir(one)
    service = ServiceClient(root=tmp_path / "root")
    client = service.create_lora_training_client("models/base", rank=4)
    sampler_path, path = client.save_weights_for_sampler("a").result().path, client.save_state("a").result().path
    expected = scores(client.create_sampling_client(sampler_path))
    assert scores(service.create_sampling_client(sampler_path, base_model="models/base")) == expected
    monkeypatch.chdir(two)
    assert scores(service.create_sampling_client(base_model="models/base")) != expected
    again = ServiceClient(root=tmp_path / "root")
    assert scores(again.create_sampling_client(sampler_path)) == expected
    with pytest.raises(tinker.BadRequestError, match="does not match"):
        again.create_training_client_from_state(path, base_model="models/base")
    assert again.create_training_client_from_state(path).get_info().model_name == str(one / "models" / "base")


def test_a_record_with_a_relative_model_folder_opens_where_the_folder_is(tmp_path, monkeypatch):
    one, _ = relative_models(tmp_path)
    monkeypatch.chdir(one)
    path = ServiceClient(root=tmp_path).create_lora_training_client("models/base", rank=4).save_state("a").result().path
    CheckpointStore(tmp_path).update(path, base_model="models/base")  # as older versions wrote it
    again = ServiceClient(root=tmp_path)
    again.create_training_client_from_state(path, base_model="models/base")
    again.create_lora_training_client("models/base", rank=4).load_state(path).result()
