import numpy as np
import pytest

from tinkerloop.datum import make_datum
from tinkerloop.testing import OrderedService


@pytest.fixture(scope="session")
def datums():
    """48 text datums of 6 positions over 20 tokens, with uneven weights."""
    rng = np.random.default_rng(0)
    return [make_datum(rng.integers(0, 20, 7), np.arange(7) % (2 + i % 3)) for i in range(48)]


@pytest.fixture(scope="session")
def batches(datums):
    """12 batches of 4 datums."""
    return [datums[start : start + 4] for start in range(0, 48, 4)]


@pytest.fixture
def service():
    return OrderedService(vocab_size=20)
