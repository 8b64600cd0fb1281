"""A record is resumed only with a client that was opened from it, and only as the model that it is of."""

import json

import pytest
import tinker

from tinkerloop.errors import CheckpointError, PlanError
from tinkerloop.loop import Checkpoints, Loop, mark_opened, open_training_client


class AdamConfig:
    """As the `AdamOptimizerConfig` of newer versions of tinker."""

    def model_dump(self):
        return {"type": "adamw"}


@pytest.fixture
def checkpoints(service, batches, tmp_path):
    """The records of steps 2 and 4 of a run."""
    checkpoints = Checkpoints(tmp_path)
    client = open_training_client(service, None, base_model="small", rank=8, seed=1)
    Loop(client, batches, steps=2, checkpoints=checkpoints).run()
    record = checkpoints.latest()
    Loop(open_training_client(service, record), batches, steps=4, checkpoints=checkpoints, record=record).run()
    return checkpoints


def resume(client, batches, checkpoints, record):
    return Loop(client, batches, steps=6, checkpoints=checkpoints, record=record)


def test_a_client_that_was_not_opened_from_the_record_is_refused(service, batches, checkpoints):
    with pytest.raises(CheckpointError, match=r"record of step 4 .* its client was not opened from it"):
        resume(service.create_lora_training_client(), batches, checkpoints, checkpoints.latest())


def test_a_client_of_another_record_is_refused(service, batches, checkpoints):
    client = open_training_client(service, checkpoints.at(2))
    with pytest.raises(CheckpointError, match=f"was opened from {checkpoints.at(2).path}"):
        resume(client, batches, checkpoints, checkpoints.latest())


@pytest.mark.parametrize("created", ["before", "after"])
def test_a_client_that_a_loop_has_used_since_is_refused(service, batches, checkpoints, created):
    record = checkpoints.latest()
    client = open_training_client(service, record)
    second = resume(client, batches, checkpoints, record) if created == "before" else None
    Loop(client, batches, steps=1).run()
    with pytest.raises(CheckpointError, match="a loop has already used it"):
        (second or resume(client, batches, checkpoints, record)).run()


def test_a_client_opened_by_hand_is_taken_when_the_script_says_so(service, batches, checkpoints):
    record = checkpoints.latest()
    client = service.create_training_client_from_state_with_optimizer(record.path)
    assert resume(mark_opened(client, record), batches, checkpoints, record).run().step == 6
    assert client.state.updates == 6


def test_a_record_has_the_model_that_was_asked_for(checkpoints):
    assert [record.model for record in checkpoints.records()] == [{"base_model": "small", "rank": 8, "seed": 1}] * 2


def test_a_record_has_the_model_of_a_client_that_was_created_by_hand(service, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    Loop(service.create_lora_training_client("other", rank=4), batches, steps=1, checkpoints=checkpoints).run()
    assert checkpoints.latest().model == {"base_model": "other", "rank": 4}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"base_model": "large"}, "base_model was 'small', asked is 'large'"),
        ({"rank": 16}, "rank was 8, asked is 16"),
        ({"train_mlp": False}, "train_mlp was True, asked is False"),
        ({"optimizer": AdamConfig()}, "optimizer was None, asked is {'type': 'adamw'}"),
    ],
)
def test_another_model_than_the_records_is_refused(service, checkpoints, changed, says):
    with pytest.raises(CheckpointError, match=says):
        open_training_client(service, checkpoints.latest(), **{"base_model": "small", "rank": 8, **changed})


def test_the_options_of_the_record_are_accepted(service, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    options = {"base_model": "small", "train_attn": False, "optimizer": AdamConfig()}
    Loop(open_training_client(service, None, **options), batches, steps=1, checkpoints=checkpoints).run()
    open_training_client(service, checkpoints.latest(), **options)


@pytest.mark.parametrize("resumes", [False, True])
def test_a_misspelt_option_is_refused(service, checkpoints, resumes):
    record = checkpoints.latest() if resumes else None
    with pytest.raises(PlanError, match="no option 'rnk'; did you mean 'rank'"):
        open_training_client(service, record, base_model="small", rnk=4)


def test_the_metadata_of_a_resumed_run_are_passed_to_the_service(service, checkpoints, monkeypatch):
    seen = []
    opened = type(service).create_training_client_from_state_with_optimizer
    monkeypatch.setattr(
        type(service),
        "create_training_client_from_state_with_optimizer",
        lambda self, path, **options: seen.append(options) or opened(self, path),
    )
    for metadata in ({"owner": "me"}, None):
        open_training_client(service, checkpoints.latest(), user_metadata=metadata)
    assert seen == [{"user_metadata": {"owner": "me"}}, {}]


def test_another_seed_than_the_records_is_warned_of(service, checkpoints, caplog):
    open_training_client(service, checkpoints.latest(), base_model="small", rank=8, seed=1)
    assert not caplog.records
    open_training_client(service, checkpoints.latest(), base_model="small", rank=8, seed=2)
    assert "started with seed=1 and is resumed with seed=2" in caplog.text


def test_a_record_that_does_not_name_its_model_can_be_resumed(service, batches, checkpoints):
    lines = [json.loads(line) for line in checkpoints.file.open()]
    checkpoints.file.write_text("".join(json.dumps(line | {"model": None}) + "\n" for line in lines))
    record = checkpoints.latest()
    client = open_training_client(service, record, base_model="small", rank=8)
    resume(client, batches, checkpoints, record).run()
    assert checkpoints.latest().model == {"base_model": "small", "rank": 8}


def test_a_retired_model_is_warned_about_only_on_the_hosted_service(service, monkeypatch, caplog):
    class AtUrl(tinker.ServiceClient):
        """As the client of a server at a URL, which may serve the model for ever."""

    def create(self, *args, **options):
        return service.create_lora_training_client(*args, **options)

    monkeypatch.setattr(tinker.ServiceClient, "__init__", lambda self: None)
    monkeypatch.setattr(tinker.ServiceClient, "create_lora_training_client", create)
    for asked in (service, AtUrl(), tinker.ServiceClient()):
        assert not caplog.records
        open_training_client(asked, None, base_model="Qwen/Qwen3-30B-A3B", rank=8)
    assert "retires Qwen/Qwen3-30B-A3B" in caplog.text
