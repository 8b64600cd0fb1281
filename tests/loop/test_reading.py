"""What a user sees of the loop's values in `help` and `print`."""

import ast
import dataclasses
import inspect
import pathlib

import pytest
import tinker

import tinkerloop.loop
from tinkerloop.callbacks import Best
from tinkerloop.loop import Boundary, MicroBatch, Plan, Record, StepResult, Summary

VALUES = [value for value in vars(tinkerloop.loop).values() if dataclasses.is_dataclass(value)] + [Best]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value.__name__)
def test_help_explains_every_field(value):
    text = inspect.getdoc(value)
    assert all(f"\n    {field.name}: " in text for field in dataclasses.fields(value)), text


def test_values_with_many_datums_print_as_one_line_of_counts(batches):
    first, second = MicroBatch(tuple(batches[0])), MicroBatch(tuple(batches[1]))
    plan = Plan(3, (first, second), tinker.AdamParams(learning_rate=2e-4))
    count = len(plan.datums)
    text = (
        f"Plan(step=3, micro_batches=2, datums={count}, tokens={plan.tokens}, learning_rate=0.0002, normalize='token')"
    )
    metrics = {"loss": 0.5, "tokens": 9.0}
    record = Record(3, "tinker://a/weights/000003", {"row": 5}, {"checkpoint": {}}, metrics, 9, 4)
    assert str(plan) == text
    assert str(first) == f"MicroBatch(datums={len(batches[0])}, loss_fn='cross_entropy', config=None)"
    assert str(StepResult(3, 0.5, metrics, plan, ())) == f"StepResult(step=3, loss=0.5, metrics=2, plan={text})"
    assert str(Boundary(3, None, False, None, 9, metrics)) == (
        "Boundary(step=3, steps=None, final=False, tokens=9, metrics=2)"
    )
    assert str(record) == (
        "Record(step=3, path='tinker://a/weights/000003', tokens=9, rows=4, callbacks=['checkpoint'], metrics=2)"
    )
    assert str(Summary(3, "steps reached", metrics)) == (
        "Summary(step=3, reason='steps reached', loss=0.5, metrics=2, error=None)"
    )


@pytest.mark.parametrize("module", ["loop", "callbacks", "clients", "connection", "plots", "testing", "errors"])
def test_docstrings_begin_with_a_verb_or_a_noun(module):
    root = tinkerloop.__path__[0]
    path = pathlib.Path(root, module)
    files = list(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or "Nothing"
                assert text.split()[0] not in {
                    "Of",
                    "What",
                    "Those",
                    "Whether",
                    "As",
                    "When",
                    "Where",
                    "Which",
                    "How",
                }, text
