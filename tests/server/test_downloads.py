"""The files of a checkpoint are downloaded from a server, and `tinkerloop export` fetches them."""

from __future__ import annotations

import json
import tarfile
import urllib.request
from io import BytesIO
from pathlib import Path
from urllib.error import HTTPError

import pytest
import tinker
from safetensors.torch import load_file

from tinkerloop.cli.checkpoint_download import fetch_archive
from tinkerloop.cli.main import main
from tinkerloop.errors import CheckpointError
from tinkerloop.local.runtime.checkpoint_store import CheckpointStore
from tinkerloop.loop.futures import resolve

ADAM = tinker.AdamParams(learning_rate=1e-2)


@pytest.fixture
def trained(client, datum) -> tinker.TrainingClient:
    client.forward_backward([datum(0)], "cross_entropy")
    client.optim_step(ADAM).result()
    return client


def adapter(place: Path) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in load_file(place / "adapter_model.safetensors").items()}


def test_weights_saved_for_other_programs_have_a_link_to_each_file(service, trained, root):
    path = trained.save_weights_external("end", ttl_seconds=3600).result().path
    assert path == f"tinker://{trained.model_id}/external_weights/end"
    answer = service.create_rest_client().get_external_weights_urls(path).result()
    assert sorted(answer.urls) == ["adapter_config.json", "adapter_model.safetensors"]
    with urllib.request.urlopen(answer.urls["adapter_config.json"]) as file:
        assert json.load(file)["base_model_name_or_path"] == "tiny"
    with urllib.request.urlopen(answer.urls["adapter_model.safetensors"]) as file:
        folder = CheckpointStore(root).folder(path)
        assert file.read() == (folder / "adapter_model.safetensors").read_bytes()
    listed = service.create_rest_client().list_checkpoints(trained.model_id).result().checkpoints
    assert [(c.checkpoint_type, c.expires_at is None) for c in listed] == [("external", False)]


def test_an_archive_holds_the_files_of_a_checkpoint_but_no_moments(trained, raw, root, tmp_path):
    path = trained.save_state("end").result().path
    run, kind, name = path.removeprefix("tinker://").split("/")
    answer = raw.get(f"training_runs/{run}/checkpoints/{kind}/{name}/archive").raise_for_status().json()
    (tmp_path / "files").mkdir()
    fetch_archive(answer["url"], tmp_path / "files")
    names = [file.name for file in (tmp_path / "files").iterdir()]
    assert sorted(names) == ["adapter_config.json", "adapter_model.safetensors"]
    assert adapter(tmp_path / "files") == adapter(CheckpointStore(root).folder(path))


def test_an_archive_that_leads_out_of_the_folder_is_rejected(tmp_path, monkeypatch):
    (tmp_path / "files").mkdir()

    def fetch(url: str, target: Path) -> None:
        with tarfile.open(target, "w") as tar:
            tar.addfile(tarfile.TarInfo("../escaped"), BytesIO())

    monkeypatch.setattr("tinkerloop.cli.checkpoint_download._fetch", fetch)
    with pytest.raises(CheckpointError, match="escaped"):
        fetch_archive("http://127.0.0.1:1", tmp_path / "files")
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize(
    "change", [("signature=", "signature=0"), ("expires=", "expires=1"), ("adapter_config", "checkpoint"), ("?", "?x=")]
)
def test_a_link_that_was_changed_opens_nothing(service, trained, change):
    path = trained.save_weights_external("end").result().path
    link = service.create_rest_client().get_external_weights_urls(path).result().urls["adapter_config.json"]
    with pytest.raises(HTTPError, match="404"):
        urllib.request.urlopen(link.replace(*change))


def test_a_link_opens_nothing_after_an_hour(service, trained, monkeypatch):
    path = trained.save_weights_external("end").result().path
    link = service.create_rest_client().get_external_weights_urls(path).result().urls["adapter_config.json"]
    monkeypatch.setattr("tinkerloop.server.downloads._SECONDS", -1)
    late = service.create_rest_client().get_external_weights_urls(path).result().urls["adapter_config.json"]
    assert urllib.request.urlopen(link).status == 200
    with pytest.raises(HTTPError, match="404"):
        urllib.request.urlopen(late)


def test_weights_for_other_programs_are_neither_trained_nor_sampled_from(service, trained):
    path = trained.save_weights_external("end").result().path
    with pytest.raises(tinker.RequestFailedError, match="a checkpoint for other programs"):
        resolve(service.create_training_client_from_state(path))
    with pytest.raises(tinker.BadRequestError, match="a checkpoint for other programs"):
        resolve(service.create_sampling_client(model_path=path))


def test_a_published_checkpoint_is_listed_as_public_until_it_is_unpublished(service, trained):
    path, rest = trained.save_state("end").result().path, service.create_rest_client()

    def is_public() -> bool:
        return rest.list_checkpoints(trained.model_id).result().checkpoints[0].public

    rest.publish_checkpoint_from_tinker_path(path).result()
    assert is_public()
    rest.unpublish_checkpoint_from_tinker_path(path).result()
    assert not is_public()


@pytest.mark.parametrize("save", ["save_state", "save_weights_external"])
def test_export_downloads_a_checkpoint_from_a_server(save, trained, service, root, url, tmp_path, capsys):
    path = getattr(trained, save)("end").result().path
    assert main(["export", path, "--service", url, "--to", str(tmp_path / "adapter")]) == 0
    assert adapter(tmp_path / "adapter") == adapter(CheckpointStore(root).folder(path))
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]
    left = [c.tinker_path for c in service.create_rest_client().list_user_checkpoints().result().checkpoints]
    assert not [one for one in left if "/download-" in one]


def test_export_downloads_the_newest_checkpoint_of_a_run(trained, root, url, tmp_path, capsys):
    path = trained.save_state("end").result().path
    record = {"name": "end", "state_path": path, "sampler_path": "tinker://not/sampler_weights/this"}
    (tmp_path / "checkpoints.jsonl").write_text(json.dumps(record) + "\n")
    assert main(["export", str(tmp_path), "--service", url, "--to", str(tmp_path / "adapter")]) == 0
    assert adapter(tmp_path / "adapter") == adapter(CheckpointStore(root).folder(path))


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--merged"], "merge the downloaded adapter with PEFT"),
        (["--root", "x"], "omit them with --service"),
        ([], "not found"),
    ],
)
def test_an_export_that_cannot_be_done_says_why(options, reason, url, tmp_path, capsys):
    command = ["export", "tinker://run/weights/none", "--service", url, "--to", str(tmp_path / "adapter"), *options]
    assert main(command) == 2
    assert reason in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_sampler_checkpoint_says_that_it_cannot_be_downloaded(trained, url, tmp_path, capsys):
    path = trained.save_weights_for_sampler("end").result().path
    assert main(["export", path, "--service", url, "--to", str(tmp_path / "adapter")]) == 2
    assert "pass the path of a training checkpoint" in capsys.readouterr().err.replace("\n", " ")
