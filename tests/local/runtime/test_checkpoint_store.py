"""Checkpoints that are read, deleted and overwritten at the same time, and leftovers of interrupted operations."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import tinker
import torch
from safetensors.torch import load_file, save_file

from tinkerloop.client_versions import has_field
from tinkerloop.local import RestClient


def folder_of(root, path: str):
    return root / path.removeprefix("tinker://").replace(":", "_")


def test_a_checkpoint_can_be_read_and_listed_at_any_moment_while_others_save_and_delete(service, client, tmp_path):
    path = client.save_state("last").result().path
    finished = threading.Event()
    failures: list[Exception] = []

    def read() -> None:
        rest = RestClient(tmp_path)
        while not finished.is_set():
            try:
                rest.get_weights_info_by_tinker_path(path).result()
                rest.list_user_checkpoints().result()
                rest.list_training_runs().result()
            except Exception as error:
                failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for i in range(25):
            client.save_state("last", overwrite=True).result()
            service.create_rest_client().delete_checkpoint_from_tinker_path(client.save_state(f"{i}").result().path)
    finally:
        finished.set()
        for reader in readers:
            reader.join()
    assert not failures


def test_a_deleted_checkpoint_stays_deleted_where_a_killed_save_left_its_backup(service, client, tmp_path):
    path = client.save_state("a").result().path
    folder = folder_of(tmp_path, path)
    shutil.copytree(folder, folder.with_name(".previous-a"))  # as if killed before the backup was removed
    rest = service.create_rest_client()
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert rest.list_user_checkpoints().result().checkpoints == []
    with pytest.raises(tinker.NotFoundError):
        service.create_training_client_from_state(path)


def test_a_copy_of_a_checkpoint_that_is_overwritten_meanwhile_is_not_made_of_both(service, client):
    store = service._engine.store
    path = client.save_state("a").result().path
    before = store.read(path)
    store.confirm(before)
    client.save_state("a", overwrite=True).result()
    with pytest.raises(tinker.ConflictError, match="try again"):
        store.confirm(before)


def expire(folder):
    file = folder / "checkpoint.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "expires_at": "2020-01-01T00:00:00+00:00"}))


def test_an_expired_checkpoint_leaves_the_disk_when_its_run_next_saves(client, tmp_path):
    folder = folder_of(tmp_path, client.save_state("a", ttl_seconds=3600).result().path)
    kept = folder_of(tmp_path, client.save_state("b", ttl_seconds=3600).result().path)
    expire(folder)
    client.save_state("c").result()
    assert kept.exists()
    assert not folder.exists()


def test_the_name_of_an_expired_checkpoint_is_free(service, client, tmp_path):
    path = client.save_state("a", ttl_seconds=3600).result().path
    expire(folder_of(tmp_path, path))
    with pytest.raises(tinker.NotFoundError, match="expired"):
        service.create_training_client_from_state(path)
    assert client.save_state("a").result().path == path
    service.create_training_client_from_state(path)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', '{"format": 1, "lora": {}}'])
def test_a_damaged_record_is_named_and_does_not_stop_saving(service, client, tmp_path, text):
    path = client.save_state("a").result().path
    (folder_of(tmp_path, path) / "checkpoint.json").write_text(text)
    client.save_state("b").result()
    with pytest.raises(tinker.RequestFailedError, match="is not the record"):
        service.create_training_client_from_state(path)


@pytest.mark.parametrize("version", [2, 99, "1", None])
def test_a_checkpoint_of_another_format_is_refused_with_both_formats(service, client, tmp_path, version):
    path = client.save_state("a").result().path
    file = folder_of(tmp_path, path) / "checkpoint.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": version}))
    with pytest.raises(tinker.RequestFailedError, match=f"has format {version!r}, but .* only format 1"):
        service.create_training_client_from_state(path)


@pytest.mark.parametrize(
    "change",
    [{"step": "3"}, {"time": "yesterday"}, {"expires_at": "2099-01-01T00:00:00"}, {"user_metadata": {"a": 1}}],
)
def test_a_record_whose_values_have_another_type_is_damaged(service, client, tmp_path, change):
    path = client.save_state("a").result().path
    file = folder_of(tmp_path, path) / "checkpoint.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(tinker.RequestFailedError, match="is not the record"):
        service.create_training_client_from_state(path)


def copied(root, path: str, name: str) -> tuple[str, Path]:
    """Copy a checkpoint's folder beside it, as `cp -r` does. Return the copy's path and folder."""
    folder = folder_of(root, path)
    shutil.copytree(folder, folder.with_name(name))
    return path.rsplit("/", 1)[0] + f"/{name}", folder.with_name(name)


def scale_file(file: Path, factor: float) -> None:
    save_file({name: tensor * factor for name, tensor in load_file(file).items()}, file)


def test_a_copied_folder_is_a_checkpoint_with_its_own_tensors(service, client, tmp_path, datum, adam):
    client.forward_backward([datum(0)], "cross_entropy")
    client.optim_step(adam(1e-2))
    original = client.save_state("a").result().path
    copy, folder = copied(tmp_path, original, "copy")
    scale_file(folder / "adapter_model.safetensors", 2)
    scale_file(folder / "optimizer.safetensors", 3)

    def tensors(path: str) -> list[torch.Tensor]:
        opened = service.create_training_client_from_state_with_optimizer(path)
        return opened.apply(lambda s: [s.weights.flat.clone(), s.exp_avg.clone()]).result()

    for own, other, factor in zip(tensors(copy), tensors(original), (2, 3), strict=True):
        assert other.abs().max() > 0
        assert torch.equal(own, factor * other)


def test_a_copied_sampler_checkpoint_samples_with_its_own_tensors(service, client, tmp_path, datum, adam, tokens):
    client.forward_backward([datum(0)], "cross_entropy")
    client.optim_step(adam(1e-1))
    original = client.save_weights_for_sampler("a").result().path
    copy, folder = copied(tmp_path, original, "copy")
    scale_file(folder / "adapter_model.safetensors", 0)
    prompt = tinker.ModelInput.from_ints(tokens(0, 8))

    def scores(**source: str) -> list[float | None]:
        return service.create_sampling_client(**source).compute_logprobs(prompt).result()

    assert scores(model_path=copy) == scores(base_model="tiny") != scores(model_path=original)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "optimizer.safetensors"])
def test_damage_in_a_copied_folder_is_found_and_named(service, client, tmp_path, file):
    copy, folder = copied(tmp_path, client.save_state("a").result().path, "copy")
    (folder / file).write_bytes((folder / file).read_bytes()[:-8])
    with pytest.raises(tinker.RequestFailedError, match=f"{copy} cannot be loaded: .*copy/{file} is missing"):
        service.create_training_client_from_state_with_optimizer(copy)


def test_a_copied_folder_is_listed_copied_and_deleted_under_its_own_path(service, client, tmp_path):
    original = client.save_state("a").result().path
    copy, folder = copied(tmp_path, original, "copy")
    rest = service.create_rest_client()
    assert {c.tinker_path for c in rest.list_user_checkpoints().result().checkpoints} == {original, copy}
    rest.set_checkpoint_ttl_from_tinker_path(copy, 3600).result()
    scale_file(folder / "adapter_model.safetensors", 2)
    again = folder_of(tmp_path, rest.copy_weights(copy).result())
    assert (again / "adapter_model.safetensors").read_bytes() == (folder / "adapter_model.safetensors").read_bytes()
    rest.delete_checkpoint_from_tinker_path(copy).result()
    left = rest.list_checkpoints(client.model_id).result().checkpoints
    assert [(c.tinker_path, c.expires_at) for c in left] == [(original, None)]


def stray(folder: Path, kind: str) -> None:
    """Put something that is no checkpoint at `folder`."""
    if kind == "file":
        folder.write_text("notes")
    elif kind == "link":
        folder.symlink_to("/nowhere")
    else:
        folder.mkdir()
        if kind == "record that is a folder":
            (folder / "checkpoint.json").mkdir()
        elif kind == "damaged record":
            (folder / "checkpoint.json").write_bytes(b"\xff\xfe{")
        elif kind == "deep record":
            (folder / "checkpoint.json").write_text("[" * 100_000)
        elif kind == "record with a wrong field":
            fields = json.loads((folder.with_name("a") / "checkpoint.json").read_text())
            (folder / "checkpoint.json").write_text(json.dumps({**fields, "step": "none"}))


STRAYS = [
    "file",
    "link",
    "folder",
    "record that is a folder",
    "damaged record",
    "deep record",
    "record with a wrong field",
]


@pytest.mark.parametrize("kind", STRAYS)
def test_what_is_no_checkpoint_is_named_once_and_stops_no_list_and_no_save(service, client, tmp_path, kind, caplog):
    path = client.save_state("a").result().path
    stray(folder_of(tmp_path, path).with_name("stray"), kind)
    client.save_state("b").result()
    rest = service.create_rest_client()
    for _ in range(2):
        assert len(rest.list_user_checkpoints().result().checkpoints) == 2
    assert len(rest.list_checkpoints(client.model_id).result().checkpoints) == 2
    assert rest.list_training_runs().result().cursor.total_count == 1
    (message,) = [record.message for record in caplog.records if record.message.startswith("skipped")]
    assert "weights/stray" in message
    assert "\n" not in message


@pytest.mark.parametrize("kind", STRAYS)
def test_what_is_no_checkpoint_can_be_deleted(service, client, tmp_path, kind):
    path = client.save_state("a").result().path
    place = folder_of(tmp_path, path).with_name("stray")
    stray(place, kind)
    service.create_rest_client().delete_checkpoint(client.model_id, "weights/stray").result()
    assert not place.is_symlink()
    assert not place.exists()
    assert not list(tmp_path.glob(".deleting-*"))


def test_other_folders_under_the_root_are_not_named(service, client, tmp_path, caplog):
    client.save_state("a").result()
    (tmp_path / "experiment" / "plots" / "loss").mkdir(parents=True)
    assert len(service.create_rest_client().list_user_checkpoints().result().checkpoints) == 1
    assert not [record for record in caplog.records if record.message.startswith("skipped")]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_planted_link_is_not_followed_when_a_checkpoint_is_written(service, client, tmp_path, depth):
    path = client.save_state("a").result().path
    folder, elsewhere = folder_of(tmp_path, path), tmp_path / "elsewhere"
    link = [folder.parent.parent, folder.parent, folder][depth]
    link.rename(elsewhere)
    link.symlink_to(elsewhere)
    before = {file: file.stat().st_mtime_ns for file in elsewhere.rglob("*")}
    with pytest.raises(tinker.RequestFailedError, match="is a symbolic link"):
        client.save_state("a", overwrite=True).result()
    with pytest.raises(tinker.RequestFailedError, match="is a symbolic link"):
        service.create_rest_client().set_checkpoint_ttl_from_tinker_path(path, 3600).result()
    assert {file: file.stat().st_mtime_ns for file in elsewhere.rglob("*")} == before


def test_a_link_in_the_place_of_a_backup_is_removed_and_its_target_stays(client, tmp_path):
    path = client.save_state("a").result().path
    folder, elsewhere = folder_of(tmp_path, path), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("mine")
    folder.with_name(".previous-a").symlink_to(elsewhere)
    client.save_state("a", overwrite=True).result()
    assert [file.name for file in folder.parent.iterdir()] == ["a"]
    assert (elsewhere / "file").read_text() == "mine"


def test_a_checkpoint_without_moments_changes_nothing_when_they_are_asked_for(service, client, tmp_path):
    client.apply(lambda s: s.weights.flat.fill_(1)).result()
    path = client.save_state("a").result().path
    (folder_of(tmp_path, path) / "optimizer.safetensors").unlink()
    fresh = service.create_lora_training_client("tiny", rank=8)
    before = fresh._run.state.weights.flat.clone()
    with pytest.raises(tinker.NotFoundError, match="no optimizer state"):
        fresh.load_state_with_optimizer(path).result()
    assert torch.equal(fresh._run.state.weights.flat, before)


def vectors(client) -> list[torch.Tensor]:
    names = ("exp_avg", "exp_avg_sq")
    return client.apply(lambda s: [s.weights.flat.clone(), *(getattr(s, name).clone() for name in names)]).result()


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_a_load_of_moments_that_do_not_fit_changes_nothing(service, client, tmp_path, datum, adam, change):
    client.forward_backward([datum(0)], "cross_entropy")
    client.optim_step(adam(1e-2)).result()
    path = client.save_state("a").result().path
    file = folder_of(tmp_path, path) / "optimizer.safetensors"
    tensors = load_file(file)
    name = max(tensors)
    assert name.startswith("exp_avg_sq.")
    save_file({k: t if k != name else t[1:] for k, t in tensors.items() if (k, change) != (name, "missing")}, file)
    other = service.create_lora_training_client("tiny", rank=8, seed=2)
    before = [vector.clone() for vector in (other._run.state.weights.flat, other._run.state.exp_avg)]
    with pytest.raises(tinker.BadRequestError, match="does not fit"):
        other.load_state_with_optimizer(path).result()
    for now, old in zip(vectors(other), [*before, before[1]], strict=True):
        assert now.equal(old)


def test_a_load_of_a_checkpoint_that_is_overwritten_meanwhile_changes_nothing(
    service, client, tmp_path, datum, adam, monkeypatch
):
    client.forward_backward([datum(0)], "cross_entropy")
    client.optim_step(adam(1e-2)).result()
    path = client.save_state("a").result().path
    other = service.create_lora_training_client("tiny", rank=8, seed=2)
    before, store = other._run.state.weights.flat.clone(), other._engine.store
    load = store.load_moments

    def load_and_be_overwritten(path: str):
        moments = load(path)
        file = folder_of(tmp_path, path) / "checkpoint.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "time": "2030-01-01T00:00:00+00:00"}))
        return moments

    monkeypatch.setattr(store, "load_moments", load_and_be_overwritten)
    with pytest.raises(tinker.ConflictError):
        other.load_state_with_optimizer(path).result()
    assert vectors(other)[0].equal(before)


@pytest.mark.parametrize("path", ["tinker://r/weights/" + "a" * 201, "tinker://r/weights", 5, None])
def test_what_cannot_be_a_path_is_a_bad_request_everywhere(service, path):
    with pytest.raises(tinker.BadRequestError, match="Invalid tinker path"):
        service.create_rest_client().get_weights_info_by_tinker_path(path).result()
    with pytest.raises(tinker.BadRequestError, match="Invalid tinker path"):
        service.create_training_client_from_state(path)


def test_pages_begin_at_0(service, client):
    client.save_state("a").result()
    rest = service.create_rest_client()
    assert rest.list_user_checkpoints(limit=0).result().checkpoints == []
    with pytest.raises(tinker.BadRequestError, match="offset must be an integer >= 0"):
        rest.list_training_runs(offset=-1).result()


NOT_UTF_8 = {"file": os.fsdecode(b"donn\xe9es.jsonl")}


@pytest.mark.skipif(not has_field(tinker.Checkpoint, "user_metadata"), reason="tinker < 0.26 cannot list metadata")
@pytest.mark.parametrize("metadata", [{"epoch": 1}, {1: "a"}, {"a": None}, "text", NOT_UTF_8, {"a\udc00": ""}])
def test_metadata_that_could_not_be_listed_is_refused_and_nothing_is_left_behind(service, client, tmp_path, metadata):
    for save in (client.save_state, client.save_weights_for_sampler):
        with pytest.raises(tinker.BadRequestError, match="user_metadata"):
            save("a", user_metadata=metadata).result()
    with pytest.raises(tinker.BadRequestError, match="user_metadata"):
        service.create_lora_training_client("tiny", rank=8, user_metadata=metadata)
    assert not list(tmp_path.iterdir())
    client.save_state("a", user_metadata={"epoch": "1"}).result()
    (found,) = service.create_rest_client().list_checkpoints(client.model_id).result().checkpoints
    assert found.user_metadata == {"epoch": "1"}
