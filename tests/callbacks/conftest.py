import pytest

from tinkerloop.testing import (
    OrderedService,
    sample_batches,
    sample_boundary,
    sample_eval_result,
    sample_plan,
    sample_record,
    sample_step_result,
)


@pytest.fixture(scope="session")
def batches():
    return sample_batches()


@pytest.fixture(scope="session")
def datums(batches):
    return [datum for batch in batches for datum in batch]


@pytest.fixture
def service():
    return OrderedService(vocab_size=20)


@pytest.fixture
def plan():
    return sample_plan(7)


@pytest.fixture
def step_result():
    return sample_step_result


@pytest.fixture
def boundary():
    return sample_boundary


@pytest.fixture
def eval_result():
    return sample_eval_result


@pytest.fixture
def record():
    return sample_record
