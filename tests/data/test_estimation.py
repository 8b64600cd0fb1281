import doctest
import json

import numpy as np
import pytest
import tinker

from tinkerloop.cli.main import main
from tinkerloop.data import estimation
from tinkerloop.data.estimation import Estimate, Evaluations, Prices, estimate_datums, read_prices
from tinkerloop.datum import make_datum
from tinkerloop.errors import PlanError
from tinkerloop.loop import MicroBatch, Plan
from tinkerloop.rollouts import distillation_datum


def test_the_examples_of_the_module():
    assert doctest.testmod(estimation).failed == 0


def test_tokens_steps_and_price_follow_from_the_datums():
    datums = [make_datum(range(1, 6), [0, 0, 1, 1, 0]), make_datum(range(1, 9), np.ones(8))]
    estimate = estimate_datums(datums * 3, 3, epochs=2, accumulate=2, prices=Prices(1.5))
    assert (sum(estimate.lengths), sum(estimate.trained)) == (3 * (4 + 7), 3 * (2 + 7))
    assert (estimate.steps, estimate.billed_tokens) == (3, 66)
    assert estimate.price == pytest.approx(66 * 1.5e-6)


def test_a_token_with_several_targets_counts_once_as_in_a_plan():
    targets = [[(4, -0.1), (5, -3.0)], [(5, -0.1), (6, -3.0)]]
    datum = distillation_datum([1, 2, 3], [4, 5], targets)
    plan = Plan(0, (MicroBatch((datum,)),), tinker.AdamParams())
    assert estimate_datums([datum], 1).trained == (plan.trained_tokens,) == (2,)


def test_a_limit_on_steps_lowers_the_bill():
    assert Estimate((10, 10, 10, 10), (5, 5, 5, 5), batches=4, epochs=2, max_steps=2).billed_tokens == 20


def test_the_command_counts_what_is_skipped_and_why(tmp_path, capsys):
    rows = [
        {"messages": [{"role": "user", "content": "a " * n}, {"role": "assistant", "content": "b"}]} for n in (1, 400)
    ]
    rows.append({"messages": [{"role": "user", "content": "no reply"}]})
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prices = tmp_path / "prices.toml"
    prices.write_text("[tiny]\ntrain = 2.0\n")
    status = main(["estimate", str(file), "--max-length", "100", "--epochs", "4", "--prices", str(prices)])
    out = capsys.readouterr().out
    assert status == 2
    assert out.splitlines()[0] == "tokenizer: tiny (bytes); pass --model for another one"
    assert "2 of 3 rows skipped" in out
    assert "more than max_length=100" in out
    assert "steps                4 (1 batches in each of 4 epochs)" in out
    assert "at train 2 per million tokens" in out


@pytest.fixture
def file(tmp_path):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path = tmp_path / "chats.jsonl"
    path.write_text((json.dumps(row) + "\n") * 4)
    return path


def test_the_command_counts_evaluations_and_their_price(file, capsys):
    options = ["--test-file", str(file), "--epochs", "5", "--eval-every", "2", "--sample-tokens", "10"]
    assert (
        main(["estimate", str(file), *options, "--price", "1", "--price-prefill", "10", "--price-sample", "100"]) == 0
    )
    out = capsys.readouterr().out
    tokens = int(out.partition("tokens               ")[2].split()[0])
    assert f"evaluations          4, each of {2 * tokens} tokens, at most 40 sampled tokens" in out
    evaluations = 4 * (2 * tokens * 10 + 40 * 100) / 1e6
    assert f"(steps {5 * tokens / 1e6:.4f}, evaluations {evaluations:.4f})" in out


@pytest.mark.parametrize(("option", "needed"), [("--eval-every", "--test-file"), ("--price-sample", "--price")])
def test_an_option_that_needs_another_one_names_it(file, capsys, option, needed):
    assert main(["estimate", str(file), option, "3"]) == 2
    assert f"need {needed}" in capsys.readouterr().err


def test_prices_that_are_given_twice_or_negative_are_refused(file, capsys):
    assert main(["estimate", str(file), "--price", "1", "--prices", "prices.toml"]) == 2
    assert "prices are given twice" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["estimate", str(file), "--price", "-1"])
    assert "argument --price: expected a number of at least 0, got '-1'" in capsys.readouterr().err
    with pytest.raises(PlanError, match="the price of train tokens must be a finite number of at least 0, got -1"):
        Prices(-1.0)


def test_evaluations_without_a_price_of_their_tokens_are_not_free():
    estimate = Estimate((10,), (5,), 1, evaluations=Evaluations(2, 10, 10), prices=Prices(1.0, prefill=1.0))
    assert "evaluations not known" in str(estimate)
    assert estimate.price == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("prices.toml", '["a/b"]\ntrain = 1\nprefill = 2\n'),
        ("prices.json", '{"a/b": {"train": 1, "prefill": 2}}'),
    ],
)
def test_prices_are_read_from_toml_and_json(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_prices(tmp_path / name, "a/b") == Prices(1, 2)


@pytest.mark.parametrize(
    "text", ['{"tiny": 0.4, "tiny": 8.0}', '{"tiny": {"train": 0.4, "train": 8}}', '{"tiny": 1e999}']
)
def test_a_price_that_json_repeats_or_cannot_write_is_refused(tmp_path, text):
    (tmp_path / "prices.json").write_text(text)
    with pytest.raises(PlanError, match=r"cannot read the prices in .*(occurs more than once|must be finite)"):
        read_prices(tmp_path / "prices.json", "tiny")


@pytest.mark.parametrize(
    "text", ["", "tiny = true", "[tiny]\nprefill = 1", "[tiny]\ntrain = 1\ninput = 2", "=", "tiny = -1"]
)
def test_a_price_that_is_missing_or_wrong_names_the_model(tmp_path, text):
    (tmp_path / "prices.toml").write_text(text)
    with pytest.raises(PlanError, match="expected a table for 'tiny'"):
        read_prices(tmp_path / "prices.toml", "tiny")
