"""An unchanged program writes the same configuration in every process."""

import doctest
import functools
import os
import subprocess
import sys
from enum import Enum
from pathlib import Path

import chz
import numpy as np
import pytest

from tinkerloop import Loop
from tinkerloop.loop import Run, config_json, open_training_client
from tinkerloop.loop.config_json import json_form
from tinkerloop.loop.run_folder import changed_options
from tinkerloop.testing import OrderedService, sample_batches


class Plain:
    pass


PLAIN = f"{__name__}.Plain"


class Color(Enum):
    RED = 1


@chz.chz
class Options:
    rate: float = 0.5
    stop: frozenset[str] = frozenset({"b", "a"})


def test_the_examples_of_the_module():
    assert doctest.testmod(config_json).failed == 0


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (Plain, f"{__name__}.Plain"),
        (json_form, "tinkerloop.loop.config_json.json_form"),
        (len, "builtins.len"),
        ([].append, "list.append"),
        (Plain(), f"<{__name__}.Plain object>"),
        (functools.partial(json_form, 3), "functools.partial(<function json_form>, 3)"),
        ((Plain, {"a": Plain}), [f"{__name__}.Plain", {"a": f"{__name__}.Plain"}]),
        ({3, 1, 2}, [1, 2, 3]),
        ({frozenset({2, 1}), "a"}, ["a", [1, 2]]),
        ({"b": 1}.keys(), ["b"]),
        (Options(), {"rate": 0.5, "stop": ["a", "b"]}),
        (OrderedService(), "tinkerloop.testing.ordered_service.OrderedService"),
        (Path("runs/one"), "runs/one"),
        (Color.RED, "Color.RED"),
        (np.float32(0.5), "0.5"),
        ({"a": [1, None, True, "x"]}, {"a": [1, None, True, "x"]}),
        ({1: "a", True + 1: "b", None: "c", 0.5: "d"}, {"1": "a", "2": "b", "null": "c", "0.5": "d"}),
        ({1: "a", "1": "b"}, {"1": "a", "'1'": "b"}),
        ({("a", 1): 1, np.int64(3): 2, Plain: 3, Color.RED: 4}, {'["a", 1]': 1, "3": 2, PLAIN: 3, "Color.RED": 4}),
        ({frozenset({1}): {(1,): [{2: 3}]}}, {"[1]": {"[1]": [{"2": 3}]}}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_has_a_form_without_addresses(value, form):
    assert json_form(value) == form


def test_a_set_has_the_same_form_whatever_its_order_in_memory():
    code = "from tinkerloop.loop.config_json import json_form; print(json_form({str(i) for i in range(20)}))"
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] != ""


def test_an_unchanged_program_is_resumed_without_other_options(tmp_path, capsys):
    service = OrderedService()

    def start(steps):
        def loss(datums, logprobs):
            raise AssertionError

        with Run(tmp_path, config={"loss": loss, "optim": Plain(), "stop": {"a", "b"}}) as run:
            record = run.checkpoints.latest()
            client = open_training_client(service, record)
            loop = Loop(client, sample_batches(), steps=steps, checkpoints=run.checkpoints, record=record)
            run.finish(loop.run())

    start(1)
    start(2)
    assert "other options" not in capsys.readouterr().err


def test_truth_values_are_other_options_than_numbers():
    then = {"a": 1, "b": [1, {"c": 0}], "d": 1, "same": [True, 2]}
    now = {"a": True, "b": [1, {"c": False}], "d": 1.0, "same": [True, 2]}
    assert changed_options(then, now) == [("a", 1, True), ("b", [1, {"c": 0}], [1, {"c": False}])]
