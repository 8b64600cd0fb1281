"""Rollouts with one episode in a group, which no other episode can be compared with."""

import functools

import pytest
import tinker

from tinkerloop.errors import PlanError
from tinkerloop.rollouts import Rollouts, one_turn
from tinkerloop.rollouts.advantages import centered, leave_one_out, no_baseline, per_turn, reference_kl, standardized


async def environment(task, seed):
    async def score(reply):
        return 1.0

    return one_turn([{"role": "user", "content": task}], score)


def rollouts(service, renderer, folder, advantages, constant_groups="drop", reference=None):
    return Rollouts(
        service.create_lora_training_client(),
        ["a task"],
        environment,
        renderer,
        groups=1,
        group_size=1,
        sampling_params=tinker.SamplingParams(max_tokens=3),
        log=folder / "rollouts.jsonl",
        advantages=advantages,
        constant_groups=constant_groups,
        reference=reference,
    )


@pytest.mark.parametrize(
    ("advantages", "name"),
    [
        (centered, "centered"),
        (functools.partial(standardized, eps=0.1), "standardized"),
        (leave_one_out, "leave_one_out"),
        (per_turn(), "per_turn"),
    ],
)
@pytest.mark.parametrize("constant_groups", ["drop", "keep"])
def test_it_is_refused_where_episodes_are_compared(
    advantages, name, constant_groups, service, renderer, tmp_path
) -> None:
    with pytest.raises(PlanError, match=f"group_size=1 with advantages={name}, .* or advantages=no_baseline"):
        rollouts(service, renderer, tmp_path, advantages, constant_groups)


@pytest.mark.parametrize("advantages", [no_baseline, per_turn(baseline="none"), lambda group: [1.0]])
def test_it_is_trained_on_without_a_comparison(advantages, service, renderer, tmp_path) -> None:
    one = rollouts(service, renderer, tmp_path, advantages)
    one.at_boundary(0)
    assert len(next(one)) == 1
    one.close()


def test_a_penalty_for_each_token_is_no_comparison(service, renderer, tmp_path) -> None:
    reference = service.create_lora_training_client().save_weights_and_get_sampling_client()
    rollouts(service, renderer, tmp_path, reference_kl(0.1), reference=reference)
