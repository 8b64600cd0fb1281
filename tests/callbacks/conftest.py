import numpy as np
import pytest
import tinker

from tinkerloop.datum import make_datum
from tinkerloop.loop import Boundary, EvalResult, MicroBatch, Plan, Record, StepResult
from tinkerloop.testing import OrderedService


@pytest.fixture(scope="session")
def datums():
    rng = np.random.default_rng(0)
    return [make_datum(rng.integers(0, 20, 4 + i % 5), np.ones(4 + i % 5)) for i in range(24)]


@pytest.fixture(scope="session")
def batches(datums):
    return [datums[start : start + 4] for start in range(0, 24, 4)]


@pytest.fixture
def service():
    return OrderedService(vocab_size=20)


@pytest.fixture
def plan(datums):
    return Plan(7, (MicroBatch(tuple(datums[:6])),), tinker.AdamParams(learning_rate=0.1))


@pytest.fixture
def step_result(plan):
    def make(step=7, loss=1.0, **metrics):
        return StepResult(step, loss, {"loss": loss, "learning_rate": 0.1, **metrics}, plan, ())

    return make


@pytest.fixture
def boundary():
    def make(step, *, final=False, tokens=0, client=None):
        return Boundary(step, None, final, client, tokens, {})

    return make


@pytest.fixture
def eval_result():
    return lambda step, **metrics: EvalResult(step, "test", metrics)


@pytest.fixture
def record():
    return lambda step, **metrics: Record(step, f"tinker://run/weights/{step:06d}", None, {}, metrics)
