"""The gradient of a step of policy datums equals float64 autograd of the objective, however the step is split."""

from __future__ import annotations

import numpy as np
import pytest
import tinker
import torch

from tests.local.references import reference_gradient
from tinkerloop.local import ServiceClient
from tinkerloop.local.nn.losses import LOSSES
from tinkerloop.loop import MicroBatch, Pipeline, Plan
from tinkerloop.renderers import ParseTermination
from tinkerloop.rollouts import End, Group, SampledSpan, Trajectory, TrajectorySegment, Turn, group_datums
from tinkerloop.testing import Ready

SPANS = (  # groups of trajectories of segments of spans (start, stop, turn)
    ((((2, 5, 0), (7, 8, 1)), ((4, 6, 2),)), (((3, 7, 0),),)),
    ((((2, 8, 0),),), (((5, 6, 0),),)),
)
UNITS = {
    # the shares of one token: the number of its group's, of its trajectory's, and of its datum's sampled tokens
    "token": ("token", "token", lambda group, trajectory, datum: 1 / 17),
    "sequence": ("sequence", "token", lambda group, trajectory, datum: 1 / (4 * trajectory)),
    "group": ("group", "token", lambda group, trajectory, datum: 1 / (2 * group)),
    "example": ("token", "example", lambda group, trajectory, datum: 1 / (5 * datum)),
    "none": ("token", "none", lambda group, trajectory, datum: 1.0),
}


class Unstepped:
    """The client of a pipeline whose gradient is left for the test to read."""

    def __init__(self, client):
        self.forward_backward = client.forward_backward

    def optim_step(self, params):
        return Ready(tinker.OptimStepResponse())


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    torch.set_num_threads(1)
    service = ServiceClient(root=tmp_path_factory.mktemp("service"), device="cpu")
    client = service.create_lora_training_client("tiny", rank=4, seed=1)
    one = tinker.Datum(tinker.ModelInput.from_ints([1, 2]), {"target_tokens": [2, 3], "weights": [1.0, 1.0]})
    client.forward_backward([one], "cross_entropy").result()
    client.optim_step(tinker.AdamParams(learning_rate=0.03)).result()  # both matrices of the adapter have a gradient
    yield client
    service.close("success")


@pytest.fixture(scope="module")
def groups(client):
    return [Group(0, slot, tuple(map(episode, [client] * 2, spans))) for slot, spans in enumerate(SPANS)]


def episode(client, segments):
    """Return a trajectory whose sampler was a slightly different model."""
    turns = tuple(Turn(0.0, ParseTermination.STOP_SEQUENCE) for spans in segments for _ in spans)
    random = np.random.default_rng(len(turns) + segments[0][0][1])
    sampler = client.save_weights_and_get_sampling_client()
    parts = []
    for spans in segments:
        tokens = tuple(random.integers(0, 256, spans[-1][1]).tolist())
        logprobs = sampler.compute_logprobs(tinker.ModelInput.from_ints(list(tokens))).result()
        sampled = [logprobs[i] + random.normal(0, 0.3) for start, stop, _ in spans for i in range(start, stop)]
        parts.append(TrajectorySegment(tokens, tuple(SampledSpan(*span) for span in spans), tuple(sampled)))
    return Trajectory(tuple(parts), turns, (), End.DONE, boundary=0, seed=0)


def reference_objective(loss_fn, lp, q, advantages):
    """Return the loss of each sampled token of one datum in float64, directly from the definition."""
    config = LOSSES[loss_fn].defaults
    log_ratio = lp - q
    if loss_fn == "dro":
        return -(lp * advantages - config["beta"] / 2 * log_ratio**2)
    if loss_fn == "gspo":
        log_ratio = log_ratio.detach().mean() + lp - lp.detach()
    ratio = log_ratio.exp()
    if loss_fn == "importance_sampling":
        return -ratio * advantages
    clipped = ratio.clamp(config["clip_low_threshold"], config["clip_high_threshold"])
    if loss_fn == "cispo":
        return -clipped.detach() * lp * advantages
    return -torch.minimum(ratio * advantages, clipped * advantages)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("loss_fn", ["importance_sampling", "ppo", "cispo", "gspo"])
def test_the_gradient_is_that_of_the_mean_over_the_unit_however_the_step_is_split(client, groups, loss_fn, unit):
    weighting, normalize, share = UNITS[unit]
    random, datums, targets = np.random.default_rng(7), [], {}
    for group in groups:
        advantages = [random.normal(size=trajectory.sampled_tokens) for trajectory in group.trajectories]
        made = iter(group_datums(group, advantages, loss_fn=loss_fn, weighting=weighting))
        tokens = sum(trajectory.sampled_tokens for trajectory in group.trajectories)
        for trajectory, given in zip(group.trajectories, advantages, strict=True):
            start = 0
            for segment in trajectory.segments:
                count = len(segment.logprobs)
                datum = next(made)
                datums.append(datum)
                targets[id(datum)] = (
                    np.flatnonzero(segment.turn_index >= 0) - 1,
                    torch.tensor(segment.logprobs, dtype=torch.float64),
                    torch.tensor(given[start : start + count]),
                    share(tokens, trajectory.sampled_tokens, count),
                )
                start += count

    def loss(lp, datum):
        positions, q, advantages, each = targets[id(datum)]
        return each * reference_objective(loss_fn, lp[positions], q, advantages).sum()

    adapter = client.apply(lambda s: {n: t.clone() for n, t in s.weights.named.items()}).result()
    total, expected = reference_gradient(adapter, loss, datums)
    whole = Plan(0, (MicroBatch(tuple(datums), loss_fn),), tinker.AdamParams(), normalize)
    for limit in (1, 2, 5):
        pipeline = Pipeline(Unstepped(client))
        pipeline.step(whole.split(lambda datum: 1, limit))
        (result,) = pipeline.drain()
        gradient = client.apply(lambda s: {n: g.clone() for n, g in s.gradients.items()}).result()
        client.optim_step(tinker.AdamParams(learning_rate=0.0)).result()
        assert result.loss == pytest.approx(total, rel=1e-5)
        assert len(result.outputs) == -(-5 // limit)
        for name, reference in expected.items():
            error = (gradient[name] - reference).norm() / reference.norm()
            assert error < 1e-5, name
