import json

import numpy as np
import pytest

from tinkerloop.cli.main import main
from tinkerloop.data.estimation import Estimate, estimate_datums
from tinkerloop.datum import make_datum


def test_tokens_steps_and_price_follow_from_the_datums():
    datums = [make_datum(range(1, 6), [0, 0, 1, 1, 0]), make_datum(range(1, 9), np.ones(8))]
    estimate = estimate_datums(datums * 3, 3, epochs=2, accumulate=2, price_per_million=1.5)
    assert (sum(estimate.lengths), sum(estimate.trained)) == (3 * (4 + 7), 3 * (2 + 7))
    assert (estimate.steps, estimate.billed_tokens) == (3, 66)
    assert estimate.price == pytest.approx(66 * 1.5e-6)


def test_a_limit_on_steps_lowers_the_bill():
    assert Estimate((10, 10, 10, 10), (5, 5, 5, 5), batches=4, epochs=2, max_steps=2).billed_tokens == 20


def test_the_command_counts_what_is_skipped_and_why(tmp_path, capsys):
    rows = [
        {"messages": [{"role": "user", "content": "a " * n}, {"role": "assistant", "content": "b"}]} for n in (1, 400)
    ]
    rows.append({"messages": [{"role": "user", "content": "no reply"}]})
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prices = tmp_path / "prices.json"
    prices.write_text('{"tiny": 2.0}')
    status = main(["estimate", str(file), "--max-length", "100", "--epochs", "4", "--prices", str(prices)])
    out = capsys.readouterr().out
    assert status == 2
    assert out.splitlines()[0] == "tokenizer: tiny (bytes); pass --model for another one"
    assert "2 of 3 rows skipped" in out
    assert "more than max_length=100" in out
    assert "steps                4 (1 batches in each of 4 epochs)" in out
    assert "at 2 per million tokens" in out


def test_a_price_that_is_missing_names_the_model(tmp_path, capsys):
    file = tmp_path / "chats.jsonl"
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    file.write_text(json.dumps(row) + "\n")
    (tmp_path / "prices.json").write_text("{}")
    assert main(["estimate", str(file), "--prices", str(tmp_path / "prices.json")]) == 2
    assert "a number for 'tiny'" in capsys.readouterr().err
