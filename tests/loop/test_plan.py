"""Callbacks can change a step by its plan. Each test is also an example."""

from dataclasses import replace

import numpy as np
import pytest
import tinker

from tinkerloop.datum import make_datum
from tinkerloop.datum_checks import fold_weights, scale_weights
from tinkerloop.errors import PlanError
from tinkerloop.loop import Callback, Log, Loop, MicroBatch, Plan
from tinkerloop.loop.plan import normalized
from tinkerloop.rollouts import policy_datum

torch = pytest.importorskip("torch")


def run(service, batches, *callbacks, steps=1, **options):
    rows = []
    loop = Loop(
        service.create_lora_training_client(),
        batches,
        steps=steps,
        callbacks=callbacks,
        sinks=[lambda step, row: rows.append(row)],
        **options,
    )
    return list(loop.steps()), rows


def test_a_callback_can_train_on_part_of_the_batch(service, batches):
    class ShortOnly(Callback):
        def on_plan(self, plan):
            return plan.with_micro_batches(replace(one, datums=one.datums[:2]) for one in plan.micro_batches)

    (result,), _ = run(service, batches, ShortOnly())
    assert len(result.plan.datums) == 2


def test_a_callback_can_weigh_examples_differently(service, batches):
    class Upweigh(Callback):
        """The first example of each batch counts three times as much as each other one."""

        def on_plan(self, plan):
            first, *others = plan.datums
            return plan.with_micro_batches([MicroBatch((scale_weights(first, 3.0), *others))])

    def shares(result):
        return np.array([weight.sum() for weight in weights(result.plan)])

    (plain,), _ = run(service, batches)
    (result,), _ = run(service, batches, Upweigh())
    expected = shares(plain) * [3, 1, 1, 1]
    assert shares(result) == pytest.approx(expected / expected.sum())


def test_a_callback_can_set_a_builtin_loss_and_its_config(tmp_path):
    """PPO on the embedded engine: tokens twice as likely as when they were sampled are clipped at the given ratio."""
    from tinkerloop.local import ServiceClient

    client = ServiceClient(root=tmp_path).create_lora_training_client("tiny", rank=4)
    tokens = make_datum([1, 2, 3], [0, 1, 1])
    (now,) = client.forward([tokens], "cross_entropy").result().loss_fn_outputs
    inputs = {
        "target_tokens": tokens.loss_fn_inputs["target_tokens"],
        "logprobs": (now["logprobs"].to_numpy() - np.log(2)).astype(np.float32),
        "advantages": np.ones(2, np.float32),
    }
    sampled = tinker.Datum(model_input=tokens.model_input, loss_fn_inputs=inputs)

    class Clipped(Callback):
        def on_plan(self, plan):
            config = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
            return plan.with_micro_batches([MicroBatch(plan.datums, "ppo", config)], normalize="none")

    (result,) = Loop(client, [[sampled]], callbacks=[Clipped()]).steps()
    assert result.loss == pytest.approx(-2 * 1.2, rel=1e-5)


def test_a_callback_can_submit_a_custom_loss_and_log_what_it_computed(service, batches):
    class Focal(Callback):
        """Focal loss: tokens the model is already sure of count less."""

        def on_plan(self, plan):
            return plan.with_micro_batches([MicroBatch(plan.datums, self.loss)], normalize="none")

        @staticmethod
        def loss(datums, logprobs):
            logp = torch.cat(logprobs)
            loss = (-((1 - logp.exp()) ** 2) * logp).mean()
            return loss, {"perplexity": float((-logp.mean()).exp())}

        def on_step(self, result):
            return Log({"loss_per_perplexity": result.loss / result.metrics["perplexity"]})

    _, rows = run(service, batches, Focal())
    assert rows[0]["perplexity"] == pytest.approx(20, rel=1e-5)
    assert rows[0]["loss"] == pytest.approx(0.95**2 * np.log(20), rel=1e-5)
    assert rows[0]["loss_per_perplexity"] == rows[0]["loss"] / rows[0]["perplexity"]


def test_two_losses_make_one_step(service, batches):
    """Cross-entropy on the batch plus a pull towards given logprobs: two micro-batches, one update."""

    class Anchor(Callback):
        def on_plan(self, plan):
            scaled = normalized(plan).micro_batches
            return plan.with_micro_batches([*scaled, MicroBatch(plan.datums[:2], self.pull)], normalize="none")

        @staticmethod
        def pull(datums, logprobs):
            loss = sum(((one + 2.0) ** 2).mean() for one in logprobs) / len(logprobs)
            return loss, {"pull": float(loss)}

    (result,), rows = run(service, batches, Anchor())
    assert [op[0] for op in service.operations[:3]] == ["forward_backward", "forward_backward_custom", "optim_step"]
    assert result.loss == pytest.approx(np.log(20) + rows[0]["pull"], rel=1e-5)


def test_a_preference_pair_loss_sees_the_whole_step(service):
    """DPO on (chosen, rejected) pairs whose reference logprobs travel as a loss input of the custom loss."""
    chosen, rejected = make_datum([1, 2, 3], [0, 1, 1]), make_datum([1, 4, 5], [0, 1, 1])

    class DPO(Callback):
        def on_plan(self, plan):
            return plan.with_micro_batches([MicroBatch(plan.datums, self.loss)], normalize="none")

        @staticmethod
        def loss(datums, logprobs, beta=0.1):
            reference = 2 * -np.log(20)
            chosen, rejected = (beta * (one.sum() - reference) for one in logprobs)
            loss = -torch.nn.functional.logsigmoid(chosen - rejected)
            return loss, {"margin": float(chosen - rejected)}

    results, rows = run(service, [[chosen, rejected]] * 3, DPO(), steps=3, optim=tinker.AdamParams(learning_rate=1.0))
    assert rows[0]["margin"] == pytest.approx(0, abs=1e-6)
    assert results[0].loss == pytest.approx(np.log(2), rel=1e-5)
    assert rows[2]["margin"] > rows[1]["margin"] > rows[0]["margin"]


def weights(plan):
    return [datum.loss_fn_inputs["weights"].to_numpy() for datum in plan.datums]


@pytest.fixture
def plan():
    datums = [make_datum([1, 2, 3], [0, 1, 3]), make_datum([4, 5], [0, 2])]
    return Plan(0, tuple(MicroBatch((datum,)) for datum in datums), tinker.AdamParams())


def test_token_normalisation_makes_all_weights_of_the_step_sum_to_one(plan):
    assert np.concatenate(weights(normalized(plan))).tolist() == pytest.approx([1 / 6, 3 / 6, 2 / 6])


def test_example_normalisation_gives_each_datum_the_same_share(plan):
    assert [one.sum() for one in weights(normalized(replace(plan, normalize="example")))] == pytest.approx([0.5, 0.5])


def test_none_leaves_the_weights_alone(plan):
    assert normalized(replace(plan, normalize="none")) == replace(plan, normalize="none")


def test_weights_that_sum_to_zero_cannot_be_normalised(plan):
    mixed = replace(plan, micro_batches=(MicroBatch((make_datum([1, 2, 3], [0, 1, -1]),)),))
    with pytest.raises(PlanError, match=r"sum to 0 at step 0"):
        normalized(mixed)


def test_a_custom_loss_cannot_be_normalised_for_you(plan):
    custom = plan.with_micro_batches([MicroBatch(plan.datums, lambda datums, logprobs: None)])
    with pytest.raises(PlanError, match='use normalize="none"'):
        normalized(custom)


def policy_plan(loss_fn, *, weight=0.5, normalize="token"):
    datums = [policy_datum([1, 2, 3], [False, True, True], [-1, -2], 2.0, loss_fn=loss_fn, weight=weight)]
    return Plan(0, (MicroBatch(tuple(datums), loss_fn),), tinker.AdamParams(), normalize)


def test_the_service_receives_weights_in_the_advantages_and_callbacks_see_both(service):
    received = []

    class Client(type(service.create_lora_training_client())):
        def forward_backward(self, data, loss_fn, loss_fn_config=None):
            received.extend(data)
            return super().forward_backward(data, loss_fn, loss_fn_config)

    client = Client(service, "ordered:train:0", service.create_lora_training_client().state)
    (result,) = Loop(client, [list(policy_plan("ppo").datums)], loss_fn="ppo").steps()
    assert set(received[0].loss_fn_inputs) == {"target_tokens", "logprobs", "advantages"}
    assert received[0].loss_fn_inputs["advantages"].tolist() == [1, 1]
    assert [one.tolist() for one in weights(result.plan)] == [[0.5, 0.5]]
    assert result.plan.datums[0].loss_fn_inputs["advantages"].tolist() == [2, 2]


@pytest.mark.parametrize("loss_fn", ["dro", "stable_reinforce"])
def test_a_loss_that_is_not_proportional_to_the_advantage_is_not_scaled(loss_fn):
    with pytest.raises(PlanError, match=f"can scale only the weights of .*loss '{loss_fn}'"):
        normalized(policy_plan(loss_fn, weight=1))
    with pytest.raises(PlanError, match="weights of its sampled tokens must be 1"):
        normalized(policy_plan(loss_fn, weight=0.5, normalize="none"))
    plan = policy_plan(loss_fn, weight=1, normalize="none")
    assert normalized(plan) == plan


def test_a_policy_datum_without_weights_cannot_be_normalised(plan):
    (datum,) = policy_plan("ppo").datums
    bare = plan.with_micro_batches([MicroBatch((fold_weights(datum),), "ppo")])
    with pytest.raises(PlanError, match=r"'ppo' needs 'weights'.*policy_datum, or use normalize=\"none\""):
        normalized(bare)
    assert normalized(replace(bare, normalize="none")) == replace(bare, normalize="none")


@pytest.mark.parametrize("micro_batches", [(), (MicroBatch(()),)])
def test_an_empty_step_is_refused(plan, micro_batches):
    with pytest.raises(PlanError, match="no datums"):
        normalized(replace(plan, micro_batches=micro_batches))


def test_metrics_with_the_loops_own_names_are_refused(service, batches):
    class Custom(Callback):
        def on_plan(self, plan):
            return plan.with_micro_batches(
                [MicroBatch(plan.datums, lambda datums, logprobs: (-torch.cat(logprobs).mean(), {"tokens": 1.0}))],
                normalize="none",
            )

    with pytest.raises(PlanError, match=r"metrics named \['tokens'\]"):
        run(service, batches, Custom())


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_plan_is_split_by_a_limit_above_zero(batches, limit):
    plan = Plan(0, (MicroBatch(tuple(batches[0])),), tinker.AdamParams())
    with pytest.raises(PlanError, match="the limit of a split must be a finite number above 0, got"):
        plan.split(lambda datum: 1, limit)


@pytest.mark.parametrize("normalize", ["tokens", "mean", "", None])
def test_an_unknown_normalisation_of_a_callback_is_refused(service, batches, normalize):
    class Unknown(Callback):
        def on_plan(self, plan):
            return replace(plan, normalize=normalize)

    with pytest.raises(PlanError, match=r"normalize must be one of token, example, none, got .* at step 0"):
        run(service, batches, Unknown())


@pytest.mark.parametrize("value", ["0.1", None, True, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
def test_an_optimizer_parameter_that_is_no_number_is_refused(plan, name, value):
    with pytest.raises(PlanError, match=f"{name} is .* at step 0, but the optimizer needs a finite number"):
        normalized(plan.with_optim(**{name: value}))


def test_an_optimizer_parameter_may_be_a_number_of_numpy(plan):
    assert normalized(plan.with_optim(learning_rate=np.float32(0.5))).optim.learning_rate == 0.5
