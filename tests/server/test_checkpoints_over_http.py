"""Checkpoints over HTTP: saving, opening, listing, deleting; a restart of the server; paths that lead nowhere."""

from __future__ import annotations

import pytest
import tinker

from tinkerloop.local import ServiceClient
from tinkerloop.loop.futures import resolve
from tinkerloop.server.running import ServerOptions, background_server

ADAM = tinker.AdamParams(learning_rate=1e-2)


def losses(client, datum, steps: int) -> list[float]:
    found = []
    for step in range(steps):
        output = client.forward_backward([datum(step)], "cross_entropy")
        client.optim_step(ADAM)
        found.append(output.result().metrics["loss:sum"])
    return found


def test_training_goes_on_from_a_checkpoint_with_its_optimizer_state(service, client, datum):
    losses(client, datum, 3)
    path = client.save_state("three").result().path
    assert path == f"tinker://{client.model_id}/weights/three"
    resumed = resolve(service.create_training_client_from_state_with_optimizer(path))
    assert resumed.model_id != client.model_id
    fresh = resolve(service.create_training_client_from_state(path))
    uninterrupted = losses(client, datum, 3)
    assert losses(resumed, datum, 3) == uninterrupted
    assert losses(fresh, datum, 3) != uninterrupted


def test_a_checkpoint_is_loaded_into_a_model_that_has_done_nothing(service, client, datum):
    losses(client, datum, 2)
    path = client.save_state("two").result().path
    loaded = resolve(service.create_lora_training_client("tiny", rank=8))
    loaded.load_state_with_optimizer(path).result()
    assert losses(loaded, datum, 2) == losses(client, datum, 2)
    with pytest.raises(tinker.RequestFailedError, match="not permitted with seq_id"):
        loaded.load_state(path).result()


def test_a_server_opens_what_was_trained_in_process_and_the_reverse(service, root, client, datum):
    with ServiceClient(root=root, device="cpu") as here:
        local = here.create_lora_training_client("tiny", rank=8, seed=1)
        losses(local, datum, 2)
        opened = resolve(
            service.create_training_client_from_state_with_optimizer(local.save_state("here").result().path)
        )
        assert losses(opened, datum, 2) == losses(local, datum, 2)
        back = here.create_training_client_from_state_with_optimizer(opened.save_state("there").result().path)
        assert losses(back, datum, 2) == losses(opened, datum, 2)


def test_rest_lists_describes_and_deletes_checkpoints(service, client):
    rest = service.create_rest_client()
    path = client.save_state("a", user_metadata={"note": "first"}).result().path
    client.save_weights_for_sampler("b", ttl_seconds=3600).result()
    listed = rest.list_checkpoints(client.model_id).result().checkpoints
    assert [(c.checkpoint_id, c.checkpoint_type) for c in listed] == [
        ("weights/a", "training"),
        ("sampler_weights/b", "sampler"),
    ]
    assert listed[0].user_metadata == {"note": "first"}
    assert listed[1].expires_at is not None
    assert path in [c.tinker_path for c in rest.list_user_checkpoints().result().checkpoints]
    assert rest.get_training_run(client.model_id).result().lora_rank == 8
    assert client.model_id in [run.training_run_id for run in rest.list_training_runs().result().training_runs]
    assert rest.get_weights_info_by_tinker_path(path).result().base_model == "tiny"
    rest.set_checkpoint_ttl_from_tinker_path(path, 7200).result()
    assert rest.list_checkpoints(client.model_id).result().checkpoints[0].expires_at is not None
    copied = rest.copy_weights(path, "any-project").result()
    assert rest.get_weights_info_by_tinker_path(copied).result().lora_rank == 8
    rest.delete_checkpoint_from_tinker_path(path).result()
    with pytest.raises(tinker.NotFoundError):
        rest.delete_checkpoint_from_tinker_path(path).result()


def test_a_copy_lies_in_the_run_of_its_session_and_a_repeated_request_copies_once(raw, client):
    path = client.save_state("a").result().path
    session = raw.ask("create_session", tags=[], user_metadata=None, sdk_version="1")["session_id"]
    for _ in range(2):
        copied = raw.ask("copy_weights", source_path=path, session_id=session, model_seq_id=3)["tinker_path"]
        assert copied == f"tinker://{session}:train:3/weights/a"
    keys = ("first", "first", "second")
    body = {"source_path": path, "destination_project_id": "any"}
    copies = [raw.post("copy_weights", json=body, headers={"X-Idempotency-Key": key}).json() for key in keys]
    assert copies[0] == copies[1] != copies[2]
    for wrong in (
        {"session_id": session},
        {"session_id": "none", "model_seq_id": 0},
        {"session_id": client.model_id.partition(":")[0], "model_seq_id": 0},
    ):
        assert raw.post("copy_weights", json={"source_path": path, **wrong}).status_code in (400, 404)


def test_rest_shows_sessions_with_their_models_and_samplers(service, client):
    rest = service.create_rest_client()
    sampler = resolve(service.create_sampling_client(base_model="tiny"))
    session = client.model_id.partition(":")[0]
    assert session in rest.list_sessions().result().sessions
    found = rest.get_session(session).result()
    assert found.training_run_ids == [client.model_id]
    assert rest.get_sampler(found.sampler_ids[0]).result().base_model == sampler.get_base_model()


def test_capabilities_are_the_models_of_the_server(service):
    models = service.create_rest_client().get_server_capabilities().result().supported_models
    assert [model.model_name for model in models] == ["tiny", "tiny-vl"]


def test_the_tokenizer_is_found_on_the_same_machine(client):
    tokenizer = client.get_tokenizer()
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


def test_after_a_restart_checkpoints_are_there_and_a_lost_model_says_how_to_resume(tmp_path, datum):
    options = ServerOptions({"tiny": "tiny"}, root=tmp_path, device="cpu")
    with background_server(options) as url:
        service = tinker.ServiceClient(base_url=url, api_key="tml-key")
        client = resolve(service.create_lora_training_client("tiny", rank=4))
        first = losses(client, datum, 2)
        path = client.save_state("kept").result().path
    again = ServerOptions({"tiny": "tiny"}, root=tmp_path, device="cpu", port=int(url.rpartition(":")[2]))
    with background_server(again), tinker.ServiceClient(base_url=url, api_key="tml-key") as new_service:
        with pytest.raises(tinker.RequestFailedError, match="resume from your newest record"):
            client.forward_backward([datum(1)], "cross_entropy").result()
        service.close("errored")  # stops its heartbeats
        resumed = resolve(new_service.create_training_client_from_state_with_optimizer(path))
        assert losses(resumed, datum, 2)[0] < first[0]


@pytest.mark.parametrize("name", ["..", "../../escaped", "a/b", "", "x" * 300, ".hidden"])
def test_a_name_that_is_no_name_of_a_checkpoint_fails(client, root, name):
    with pytest.raises(tinker.RequestFailedError, match="Invalid tinker path"):
        client.save_state(name).result()
    assert not (root.parent / "escaped").exists()


@pytest.mark.parametrize(
    "path",
    [
        "training_runs/..%2F..%2Fetc/checkpoints/weights/passwd",
        "training_runs/%2e%2e/checkpoints/weights/x",
        "training_runs/a/checkpoints/weights/%2e%2e",
        "training_runs/a/checkpoints/..%2F../x",
    ],
)
def test_paths_do_not_lead_out_of_the_root(raw, path):
    assert raw.delete(path).status_code in (400, 404)


def test_no_folder_but_those_of_the_models_can_be_opened(service, tmp_path):
    for name in ("/etc", str(tmp_path), "Qwen/Qwen3-0.6B", "tiny/../tiny"):
        with pytest.raises(tinker.RequestFailedError, match="has no base model"):
            resolve(service.create_lora_training_client(name))
        with pytest.raises(tinker.BadRequestError, match="has no base model"):
            resolve(service.create_sampling_client(base_model=name))


def test_metadata_that_is_too_large_is_refused(raw):
    large = {"key": "é" * 2**15}
    model = raw.model()
    session, number = model.partition(":")[0], 1
    for path in ("save_weights", "save_weights_for_sampler"):
        asked = raw.ask(path, model_id=model, seq_id=number, path="large", user_metadata=large)
        assert "user_metadata has 65539 bytes; the largest size is 65536" in raw.answer(asked["request_id"]).text
        number += 1
    assert raw.post("create_session", json={"user_metadata": large}).status_code == 400
    asked = raw.ask(
        "create_model",
        session_id=session,
        model_seq_id=1,
        base_model="tiny",
        lora_config={"rank": 4},
        user_metadata=large,
    )
    assert "the largest size is 65536" in raw.answer(asked["request_id"]).text


def test_a_change_of_ttl_without_ttl_seconds_changes_nothing(raw):
    model = raw.model()
    raw.answer(raw.ask("save_weights", model_id=model, seq_id=1, path="a", ttl_seconds=7200)["request_id"])
    for body in ({"ttl_secs": 7200}, {}, {"ttl_seconds": None, "more": 1}):
        refused = raw.put(f"training_runs/{model}/checkpoints/weights/a/ttl", json=body)
        assert (refused.status_code, "needs ttl_seconds" in refused.text) == (400, True)
    (saved,) = raw.get(f"training_runs/{model}/checkpoints").json()["checkpoints"]
    assert saved["expires_at"]


def test_a_repeated_copy_expires_as_the_last_request_says(raw):
    model = raw.model()
    raw.answer(raw.ask("save_weights", model_id=model, seq_id=1, path="a")["request_id"])
    place = {"session_id": model.partition(":")[0], "model_seq_id": 9}
    expiries = []
    for ttl_seconds in (None, 7200, 72000, None):
        asked = {"source_path": f"tinker://{model}/weights/a", "ttl_seconds": ttl_seconds, **place}
        path = raw.ask("copy_weights", **asked)["tinker_path"]
        (copy,) = raw.get(f"training_runs/{path.split('/')[2]}/checkpoints").json()["checkpoints"]
        expiries.append(copy.get("expires_at"))
    assert expiries[0] is None
    assert expiries[1] < expiries[2]
    assert expiries[3] is None
