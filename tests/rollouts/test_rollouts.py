"""Rollouts: staleness, order, groups that are left out, the log, and mistakes."""

import asyncio
import contextlib
import itertools
import json
import threading

import numpy as np
import pytest
import tinker

from tinkerloop.callbacks import GradientAccumulation
from tinkerloop.errors import CheckpointError, DataError, PlanError, RolloutError
from tinkerloop.loop import Callback, Checkpoints, Loop, open_training_client
from tinkerloop.rollouts import (
    FailurePolicy,
    Rollouts,
    WeightedParts,
    one_turn,
    per_turn,
    read_rollouts,
    reference_kl,
    reverse_kl,
)
from tinkerloop.rollouts.curriculum import Shuffled
from tinkerloop.testing import Ready

TASKS = [f"task {number}" for number in range(5)]
PARAMS = tinker.SamplingParams(max_tokens=3)


async def score(reply):
    return sum(reply.ids) % 7


async def environment(task, seed):
    return one_turn([{"role": "user", "content": task}], score)


@pytest.fixture
def create(service, renderer, tmp_path):
    """Return a function that creates rollouts of a new client, at boundary 0, and closes them after the test."""
    created = []

    def create(environment=environment, client=None, **options):
        options = {
            "tasks": TASKS,
            "renderer": renderer,
            "groups": 3,
            "group_size": 2,
            "sampling_params": PARAMS,
            "log": tmp_path / "rollouts.jsonl",
        } | options
        client = client or service.create_lora_training_client()
        rollouts = Rollouts(client, environment=environment, **options)
        rollouts.at_boundary(0)
        created.append(rollouts)
        return rollouts

    yield create
    for rollouts in created:
        rollouts.close()


def take(rollouts, batches):
    """Request batches as a loop without accumulation does, and return what was delivered for each."""
    delivered = []
    for step in range(batches):
        rollouts.at_boundary(step)
        next(rollouts)
        delivered.append(rollouts.delivered)
    return delivered


def boundaries(delivered):
    return {trajectory.boundary for group in delivered.groups for trajectory in group.trajectories}


class Weights(Callback):
    """Notes the log-probabilities of the tokens under the weights of each boundary."""

    def __init__(self):
        self.logprobs = {}

    def on_boundary(self, boundary):
        logits = boundary.client.state.logits
        self.logprobs[boundary.step] = logits - np.log(np.exp(logits).sum())


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_each_batch_is_sampled_from_the_weights_of_staleness_batches_before(staleness, create, service, tmp_path):
    client = service.create_lora_training_client()
    weights = Weights()
    optim = tinker.AdamParams(learning_rate=0.1)
    rollouts = create(client=client, staleness=staleness)
    Loop(client, rollouts, steps=6, callbacks=[weights], optim=optim, loss_fn="importance_sampling").run()
    sampled = [(group.batch, one) for group in read_rollouts(tmp_path / "rollouts.jsonl") for one in group.trajectories]
    assert {batch: one.boundary for batch, one in sampled} == {b: max(b - staleness, 0) for b in range(6)}
    for _, one in sampled:
        (segment,) = one.segments
        tokens = [segment.tokens[i] for span in segment.sampled for i in range(span.start, span.stop)]
        np.testing.assert_allclose(segment.logprobs, weights.logprobs[one.boundary][tokens], atol=1e-6)


def test_batches_of_one_boundary_share_its_snapshot(create, service):
    client = service.create_lora_training_client()
    rollouts = create(client=client, staleness=1)
    Loop(client, rollouts, steps=3, callbacks=[GradientAccumulation(2)], loss_fn="importance_sampling").run()
    assert service.operations.count(("save_weights_and_get_sampling_client",)) == 3


@pytest.mark.parametrize("substeps", [1, 3])
def test_substeps_deliver_one_batch_in_consecutive_parts_of_near_equal_sizes(substeps, create):
    rollouts = create(groups=4, substeps=substeps, constant_groups="keep")
    parts = [next(rollouts) for _ in range(substeps)]
    assert [len(part) for part in parts] == {1: [8], 3: [2, 3, 3]}[substeps]
    logprobs = [datum.loss_fn_inputs["logprobs"].to_numpy()[-1] for part in parts for datum in part]
    assert rollouts.delivered.batch == 0
    trajectories = [one for group in rollouts.delivered.groups for one in group.trajectories]
    assert logprobs == [np.float32(one.segments[0].logprobs[-1]) for one in trajectories]


def test_a_batch_with_fewer_datums_than_substeps_is_refused(create):
    with pytest.raises(RolloutError, match="has 6 datums, which cannot be delivered in 7 substeps"):
        next(create(substeps=7, constant_groups="keep"))


@pytest.mark.parametrize("is_future", [False, True])
def test_the_reference_is_what_the_service_returns_a_client_or_its_future(is_future, create, service):
    reference = service.create_sampling_client(base_model="unigram")
    (delivered,) = take(create(reference=Ready(reference) if is_future else reference), 1)
    segments = [segment for group in delivered.groups for one in group.trajectories for segment in one.segments]
    assert [one.reference_logprobs for one in segments] == [pytest.approx(one.logprobs) for one in segments]


# --- order and overlap ---


def delayed(order):
    """Return an environment whose episodes end in another order: `order` maps their count to a number of turns."""
    begun = itertools.count()

    async def environment(task, seed):
        waits = order(next(begun))

        async def reward(reply):
            for _ in range(waits):
                await asyncio.sleep(0)
            return sum(reply.ids) % 2  # half of the groups are constant

        return one_turn([{"role": "user", "content": f"{task} {seed}"}], reward)

    return environment


def test_what_is_delivered_does_not_depend_on_which_reply_arrives_first(create, tmp_path):
    logs = []
    for name, order in {"first": lambda n: n, "last": lambda n: 100 - n, "mixed": lambda n: n * 7 % 10}.items():
        log = tmp_path / name
        rollouts = create(delayed(order), groups=6, further_tasks=20, staleness=1, log=log)
        take(rollouts, 3)
        rollouts.settle(rollouts.cursor)
        logs.append(log.read_bytes())
    assert logs[0] == logs[1] == logs[2]
    groups = list(read_rollouts(log))
    assert [group.batch for group in groups] == sorted(group.batch for group in groups)
    assert max(group.slot for group in groups) > 6


def test_all_episodes_of_a_batch_are_in_flight_at_once(create):
    together = asyncio.Barrier(6)

    async def reward(reply):
        await asyncio.wait_for(together.wait(), 60)  # never passes unless all six episodes come here
        return sum(reply.ids)

    async def environment(task, seed):
        return one_turn([{"role": "user", "content": task}], reward)

    assert len(next(create(environment, constant_groups="keep"))) == 6


class Counting:
    """A training client whose samplers note the largest number of requests at the same time."""

    def __init__(self, client):
        self.client, self.now, self.most = client, 0, 0

    def save_weights_and_get_sampling_client(self):
        self.sampler = self.client.save_weights_and_get_sampling_client()
        return self

    async def sample(self, *args):
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(10):
            await asyncio.sleep(0)
        self.now -= 1
        return self.sampler.sample(*args).result()


@pytest.mark.parametrize("bound, most", [(None, 6), (4, 4)])
def test_the_number_of_requests_in_flight_is_bounded(bound, most, create, service):
    client = Counting(service.create_lora_training_client())
    next(create(client=client, max_in_flight=bound, constant_groups="keep"))
    assert client.most == most


def test_only_the_batch_that_is_due_is_waited_for(create):
    released, begun = threading.Event(), itertools.count()

    def environment(task, seed):
        if next(begun) >= 6:  # those of batch 1
            released.wait(60)
        return one_turn([{"role": "user", "content": task}], score)

    rollouts = create(environment, staleness=1, constant_groups="keep")
    next(rollouts)
    assert not released.is_set()
    released.set()
    rollouts.at_boundary(1)
    next(rollouts)
    assert rollouts.delivered.batch == 1


def test_an_error_of_an_environment_is_raised_when_its_batch_is_due(create):
    begun = itertools.count()

    async def environment(task, seed):
        if next(begun) >= 6:
            raise ZeroDivisionError("broken")
        return one_turn([{"role": "user", "content": task}], score)

    rollouts = create(environment, staleness=1, constant_groups="keep")
    next(rollouts)
    rollouts.at_boundary(1)
    for _ in range(2):
        with pytest.raises(RolloutError, match="ZeroDivisionError: broken"):
            next(rollouts)


def test_the_thread_ends_when_the_rollouts_are_closed_or_deleted(create, service, renderer, tmp_path):
    def threads():
        return [thread for thread in threading.enumerate() if thread.name.startswith("tinkerloop-rollouts")]

    rollouts = create(staleness=1)
    next(rollouts)
    (thread,) = threads()
    rollouts.close()
    thread.join(60)
    assert not thread.is_alive()
    options = {"groups": 2, "group_size": 2, "sampling_params": PARAMS, "log": tmp_path / "other"}
    rollouts = Rollouts(service.create_lora_training_client(), TASKS, environment, renderer, **options)
    rollouts.at_boundary(0)
    next(rollouts)
    (thread,) = threads()
    del rollouts
    thread.join(60)
    assert not thread.is_alive()


# --- groups that are left out ---


def rewards(*by_task):
    """Return an environment with a reward for each task: None for one that differs between episodes."""

    async def environment(task, seed):
        reward = by_task[TASKS.index(task)]

        async def give(reply):
            return sum(reply.ids) if reward is None else reward

        return one_turn([{"role": "user", "content": task}], give)

    return environment


class InOrder(Shuffled):
    def draw(self, state, batch, slot):
        return slot


def test_constant_groups_are_replaced_and_counted(create):
    rollouts = create(rewards(1.0, None, 0.5, None, None), curriculum=InOrder())
    assert len(next(rollouts)) == 6
    delivered = rollouts.delivered
    assert [group.task for group in delivered.groups] == [0, 1, 2, 3, 4]
    assert [group.task for group in delivered.trained] == [1, 3, 4]
    assert (delivered.constant, delivered.dropped, delivered.further) == (2, 0, 2)


def test_constant_groups_are_kept_by_choice(create):
    rollouts = create(rewards(1.0, None, 0.5, None, None), curriculum=InOrder(), constant_groups="keep")
    assert len(next(rollouts)) == 6
    assert (rollouts.delivered.constant, rollouts.delivered.further) == (0, 0)


def test_a_batch_is_delivered_with_fewer_groups_when_no_further_one_may_be_sampled(create):
    rollouts = create(rewards(1.0, None, 0.5, 0.5, None), curriculum=InOrder(), further_tasks=1)
    assert len(next(rollouts)) == 2
    assert (rollouts.delivered.constant, rollouts.delivered.further) == (3, 1)


def test_a_batch_with_nothing_to_train_on_says_why(create):
    rollouts = create(rewards(1.0, 1.0, 0.5, 1.0, 1.0), curriculum=InOrder(), further_tasks=2)
    with pytest.raises(RolloutError, match=r"of its 5 groups, 5 have no adv.*equal \(mean reward: 1 in 4, 0.5 in 1\)"):
        next(rollouts)


def test_a_batch_of_failures_alone_gets_no_advice_on_the_tasks(create):
    rollouts = create(lambda task, seed: 1 / 0, on_failure=FailurePolicy(then="drop"))
    with pytest.raises(
        RolloutError, match=r"of its 6 groups, 6 were dropped .*\. Correct the environment; if it"
    ) as raised:
        next(rollouts)
    assert "easier" not in str(raised.value)


def test_groups_whose_environment_failed_are_replaced_and_counted(create):
    async def environment(task, seed):
        if task == "task 1":
            raise ZeroDivisionError("broken")
        return one_turn([{"role": "user", "content": task}], score)

    policy = FailurePolicy(then="drop")
    rollouts = create(environment, curriculum=InOrder(), constant_groups="keep", on_failure=policy)
    assert len(next(rollouts)) == 6
    delivered = rollouts.delivered
    assert [group.task for group in delivered.trained] == [0, 2, 3]
    assert (delivered.constant, delivered.dropped, delivered.further) == (0, 1, 1)
    assert delivered.failures >= 1


# --- the curriculum ---


def test_each_task_is_drawn_once_per_epoch(create):
    drawn = [group.task for one in take(create(groups=2, constant_groups="keep"), 5) for group in one.groups]
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == [0, 1, 2, 3, 4]
    assert drawn[:5] != drawn[5:]


def test_parts_are_drawn_in_proportion_to_their_weights():
    curriculum = WeightedParts([2, 6], weights=[1, 3])
    state = curriculum.begin(8, 4, 0)
    drawn = [curriculum.draw(state, batch, slot) for batch in range(4) for slot in range(4)]
    assert [sum(task < 2 for task in drawn[4 * b : 4 * b + 4]) for b in range(4)] == [1, 1, 1, 1]
    assert sorted(drawn[:8]) == list(range(8))
    assert WeightedParts([2, 6], weights=[1, 3]).draw(state, 3, 2) == drawn[14]  # not a matter of earlier draws


class Counted(Shuffled):
    """Draws the task whose number is how many batches were delivered."""

    def begin(self, tasks, groups, seed):
        return {"delivered": 0}

    def draw(self, state, batch, slot):
        return state["delivered"]

    def update(self, state, groups):
        state["delivered"] += 1
        return state


@pytest.mark.parametrize("staleness", [0, 2])
def test_tasks_are_drawn_from_the_state_when_their_batch_was_begun(staleness, create):
    delivered = take(create(curriculum=Counted(), staleness=staleness, constant_groups="keep"), 4)
    assert [{group.task for group in one.groups} for one in delivered] == [{max(b - staleness, 0)} for b in range(4)]


class Wrong(Shuffled):
    def __init__(self, number):
        self.number = number

    def draw(self, state, batch, slot):
        return self.number


class Unwritable(Shuffled):
    def update(self, state, groups):
        return (1, 2)


@pytest.mark.parametrize(
    "curriculum, message",
    [
        (Wrong(5), r"drew task 5 for slot [0-2] of batch 0, but"),
        (Wrong(1.0), "drew task 1.0 for slot"),
        (Unwritable(), r"stored as JSON; got \(1, 2\)"),
    ],
)
def test_mistakes_of_a_curriculum_are_named(curriculum, message, create):
    with pytest.raises(PlanError, match=message):
        next(create(curriculum=curriculum, constant_groups="keep"))


def test_weights_and_sizes_of_parts_are_checked():
    for arguments in (([], []), ([1, 2], [1]), ([0, 2], [1, 1]), ([1.5, 2], [1, 1]), ([1, 2], [1, -1]),
                      ([1, 2], [1, float("nan")]), ([1, 2], [1e308, 1e308])):  # fmt: skip
        with pytest.raises(PlanError, match=r"every part needs|must be (positive|a whole number|a finite number)"):
            WeightedParts(*arguments)
    with pytest.raises(PlanError, match="7 together, but there are 8"):
        WeightedParts([3, 4], [1, 1]).begin(8, 2, 0)


# --- the log and the cursor ---


def test_a_new_run_sets_the_log_of_an_earlier_one_aside(create, tmp_path):
    next(create())
    earlier = (tmp_path / "rollouts.jsonl").read_bytes()
    next(create(seed=1))
    assert (tmp_path / "rollouts.jsonl.1").read_bytes() == earlier


def test_groups_in_the_log_are_not_sampled_again(create, service, tmp_path):
    log = tmp_path / "rollouts.jsonl"
    first = create()
    cursor = first.cursor
    batch = next(first)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:2]) + lines[2][:50])  # killed while the third group was written
    requests = []
    service.fault = requests.append
    resumed = create()
    resumed.seek(cursor)
    assert [datum.model_input for datum in next(resumed)] == [datum.model_input for datum in batch]
    assert requests.count(("sample", 1)) == 2 * (len(lines) - 2)
    assert log.read_bytes() == b"".join(lines)


def test_what_was_sampled_from_later_weights_is_cut_from_the_log(create, tmp_path):
    log = tmp_path / "rollouts.jsonl"
    rollouts = create(staleness=1)
    take(rollouts, 2)
    cursor = rollouts.cursor  # of boundary 2: batches 0 to 2 were begun before, batch 3 is begun here
    for step in range(2, 5):
        rollouts.at_boundary(step)
        next(rollouts)
    lines = log.read_bytes().splitlines(keepends=True)
    resumed = create(staleness=1)
    resumed.seek(cursor)
    resumed.at_boundary(2)
    next(resumed)
    assert log.read_bytes() == b"".join(line for line in lines if b'"batch":4' not in line.replace(b" ", b""))


def test_groups_that_are_missing_in_the_log_are_reported(create, tmp_path):
    log = tmp_path / "rollouts.jsonl"
    rollouts = create(staleness=2)
    take(rollouts, 2)
    cursor = rollouts.cursor
    rollouts.settle(cursor)
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    resumed = create(staleness=2)
    resumed.seek(cursor)
    next(resumed)
    with pytest.raises(CheckpointError, match="of batch 3 is missing in the log of the rollouts"):
        next(resumed)


@pytest.mark.parametrize("left", [0, 5, 6], ids=["none", "a part of batch 1", "batches 0 and 1"])
@pytest.mark.parametrize("staleness", [0, 1])
def test_a_log_without_all_batches_before_the_record_is_refused_and_not_changed(staleness, left, create, tmp_path):
    options = {"staleness": staleness, "constant_groups": "keep"}
    rollouts = create(**options)
    take(rollouts, 3)
    cursor = rollouts.cursor
    rollouts.close()
    log = tmp_path / "rollouts.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:left]))
    resumed = create(**options)
    resumed.seek(cursor)
    with pytest.raises(CheckpointError, match=r"groups of batch \d are missing in .*: it has \d, expected at least 3"):
        next(resumed)
    assert log.read_bytes() == b"".join(lines[:left])


def test_another_log_than_that_of_the_record_is_refused(create, tmp_path):
    rollouts = create()
    next(rollouts)
    resumed = create(log=tmp_path / "another" / "rollouts.jsonl")
    resumed.seek(rollouts.cursor)
    with pytest.raises(CheckpointError, match=r"groups of batch 0 are missing in .*another"):
        next(resumed)


@pytest.mark.parametrize("line", ['{"x": 1}', '{"batch": "one"}', '{"batch": 1, "trajectories": [{"segments": [1]}]}'])
def test_a_line_of_the_log_that_is_no_group_is_named(line, create, tmp_path):
    rollouts, log = create(constant_groups="keep"), tmp_path / "rollouts.jsonl"
    next(rollouts)
    log.write_text(log.read_text() + line + "\n")
    resumed = create(constant_groups="keep")
    resumed.seek(rollouts.cursor)
    with pytest.raises(CheckpointError, match=r"rollouts.jsonl:4: not a group of rollouts"):
        next(resumed)
    with pytest.raises(CheckpointError, match=r"rollouts.jsonl:4: not a group of rollouts"):
        list(read_rollouts(log))


def test_a_file_of_rollouts_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no file .*none.jsonl: pass the path"):
        next(read_rollouts(tmp_path / "none.jsonl"))


def test_a_folder_in_place_of_the_log_is_refused_and_not_renamed(create, tmp_path):
    (tmp_path / "run" / "state").mkdir(parents=True)
    with pytest.raises(PlanError, match=r"log must be the path of a file, but .*run is a folder"):
        next(create(log=tmp_path / "run"))
    assert (tmp_path / "run" / "state").exists()


def test_a_run_that_does_not_begin_leaves_the_log_unchanged(create, service, tmp_path):
    log, checkpoints = tmp_path / "rollouts.jsonl", Checkpoints(tmp_path)
    client = service.create_lora_training_client()
    Loop(client, create(client=client), steps=3, checkpoints=checkpoints, loss_fn="importance_sampling").run()
    record, before = checkpoints.latest(), log.read_bytes()
    client = open_training_client(service, record)
    rollouts = create(client=client)
    Loop(client, rollouts, steps=5, checkpoints=checkpoints, record=record, loss_fn="importance_sampling")
    assert log.read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [{"seed": 1}, {"groups": 2}, {"group_size": 3}, {"staleness": 1}, {"substeps": 2}, {"further_tasks": 1},
     {"constant_groups": "keep"}, {"tasks": TASKS[1:]}, {"curriculum": InOrder()}],
)  # fmt: skip
def test_a_cursor_of_other_options_is_refused(options, create):
    (name,) = options
    with pytest.raises(DataError, match=f"{name} was .* and is .* now"):
        create(**options).seek(create(groups=3, further_tasks=3).cursor | {"further_tasks": options.get("groups", 3)})


@pytest.mark.parametrize(
    ("sizes", "weights", "problem"),
    [([2, 3], [1, 30], "shares was .* and is"), ([1, 4], [3, 1], "sizes was .* and is"), ([2, 3], [6, 2], None)],
)
def test_a_cursor_of_parts_with_other_sizes_or_shares_is_refused(sizes, weights, problem, create):
    cursor = create(curriculum=WeightedParts([2, 3], [3, 1])).cursor
    resumed = create(curriculum=WeightedParts(sizes, weights))
    with pytest.raises(DataError, match=problem) if problem else contextlib.nullcontext():
        resumed.seek(cursor)


@pytest.mark.parametrize(
    "options",
    [{"groups": 0}, {"groups": 2.5}, {"groups": None}, {"group_size": 0}, {"group_size": 2.0}, {"staleness": -1},
     {"staleness": 0.5}, {"staleness": None}, {"substeps": 0}, {"substeps": 1.5}, {"further_tasks": -1},
     {"further_tasks": 0.5}, {"max_in_flight": 0}, {"max_in_flight": float("nan")}, {"seed": 1.5}, {"seed": True},
     {"tasks": []}, {"tasks": "a task"}, {"tasks": {"a": "task"}}, {"constant_groups": "maybe"}, {"weighting": "turn"},
     {"loss_fn": "cross_entropy"}, {"loss_fn": "stable_reinforce"}, {"limits": 5}, {"on_failure": "drop"}],
)  # fmt: skip
def test_invalid_options_are_refused(options, create):
    (name,) = options
    with pytest.raises(PlanError, match=f"{name} must be"):
        create(**options)


def test_numbers_of_numpy_are_accepted_and_resumed_from(create):
    numbers = {"groups": 2, "group_size": 2, "seed": 3, "further_tasks": 1, "staleness": 0, "substeps": 1}
    rollouts = create(**{name: np.int64(value) for name, value in numbers.items()}, constant_groups="keep")
    next(rollouts)
    create(**numbers, constant_groups="keep").seek(json.loads(json.dumps(rollouts.cursor)))


@pytest.mark.parametrize(
    ("advantages", "problem"),
    [
        (per_turn, r"pass what it returns, as in advantages=per_turn\(\)"),
        (reference_kl, r"pass what it returns, as in advantages=reference_kl\(beta\)"),
        (reference_kl(0.1), "advantages=reference_kl needs .* pass reference=SAMPLING_CLIENT"),
        (reverse_kl, "advantages=reverse_kl needs .* pass reference=SAMPLING_CLIENT"),
    ],
)
def test_advantages_that_cannot_be_computed_are_refused_before_anything_is_sampled(advantages, problem, create):
    with pytest.raises(PlanError, match=problem):
        create(advantages=advantages)


def test_rollouts_need_to_know_the_boundary(service, renderer, tmp_path):
    client = service.create_lora_training_client()
    options = {"groups": 2, "group_size": 2, "sampling_params": PARAMS, "log": tmp_path / "log"}
    with pytest.raises(PlanError, match="which boundary's weights"):
        next(Rollouts(client, TASKS, environment, renderer, **options))


def test_closed_rollouts_go_on_after_a_seek_only(create):
    rollouts = create(staleness=1, constant_groups="keep")
    cursor = rollouts.cursor
    first = next(rollouts)
    rollouts.close()
    with pytest.raises(PlanError, match="were closed"):
        next(rollouts)
    rollouts.seek(cursor)
    assert [datum.model_input for datum in next(rollouts)] == [datum.model_input for datum in first]


def test_a_name_for_the_function_of_the_advantages_is_refused(create):
    with pytest.raises(PlanError, match=r"advantages must be a function .*got 'centered': .*without quotes"):
        create(advantages="centered")


@pytest.mark.parametrize("given", [tinker.SamplingParams(seed=1), {"max_tokens": 3}])
def test_wrong_sampling_params_are_refused(given, create):
    with pytest.raises(PlanError, match="sampling_params must"):
        create(sampling_params=given)


@pytest.mark.parametrize("name", ["client", "renderer", "reference"])
@pytest.mark.parametrize("given", ["a name", 1])
def test_an_object_that_cannot_do_what_sampling_needs_is_refused_before_it_begins(name, given, create):
    with pytest.raises(PlanError, match=rf"^{name} must be an? |^{name} must be the training client"):
        create(**{name: given})


def test_a_renderer_cannot_be_left_out(create):
    with pytest.raises(PlanError, match="renderer must be a renderer"):
        create(renderer=None)


def test_a_training_client_is_no_reference(create, service):
    with pytest.raises(PlanError, match=r"reference must be a sampling client, .* has no method compute_logprobs"):
        create(reference=service.create_lora_training_client())


def test_an_environment_in_place_of_its_function_is_refused(create):
    with pytest.raises(PlanError, match="environment must be a function from a task and a seed"):
        create(environment=one_turn([], score))


@pytest.mark.parametrize(("made", "method"), [(object(), "start"), (type("Half", (), {"start": print})(), "step")])
def test_an_object_that_is_no_environment_is_refused_and_not_repeated_or_dropped(create, made, method):
    rollouts = create(environment=lambda task, seed: made, on_failure=FailurePolicy(retries=2, then="drop"))
    with pytest.raises(PlanError, match=f"without {method}: return one_turn"):
        next(rollouts)


@pytest.mark.parametrize(
    ("of_rollouts", "of_loop", "message"),
    [
        ({}, {}, r'has the loss cross_entropy: pass loss_fn="importance_sampling" to the Loop$'),
        ({"loss_fn": "cispo"}, {"loss_fn": "ppo"}, r'"cispo" to the Loop, or loss_fn="ppo" to the Rollouts$'),
        (
            {"weighting": "group"},
            {"loss_fn": "importance_sampling", "normalize": "example"},
            r'weighting="group" of the rollouts has no effect .* pass normalize="token"',
        ),
    ],
)
def test_a_loop_that_contradicts_its_rollouts_is_refused_before_anything_is_sampled(
    of_rollouts, of_loop, message, create, service
):
    client = service.create_lora_training_client()
    with pytest.raises(PlanError, match=message):
        Loop(client, create(client=client, **of_rollouts), steps=1, **of_loop)


def test_a_loop_that_trains_another_client_than_its_rollouts_sample_from_is_refused(create, service):
    with pytest.raises(PlanError, match=r"another training client .* pass the same client to both"):
        Loop(service.create_lora_training_client(), create(), steps=1, loss_fn="importance_sampling")


@pytest.mark.parametrize(
    "options",
    [
        {"loss_fn": "importance_sampling", "normalize": "token"},
        {"loss_fn": "importance_sampling", "normalize": "none"},
        {"loss_fn": lambda datums, logprobs: (0, {}), "normalize": "none"},
        {"loss_fn": "loss_of_one_service", "normalize": "none"},
    ],
)
def test_a_loop_with_the_loss_of_its_rollouts_or_one_that_is_not_built_in_is_accepted(options, create, service):
    client = service.create_lora_training_client()
    Loop(client, create(client=client, weighting="group"), steps=1, **options)
