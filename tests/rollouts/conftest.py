import pytest

from tinkerloop.renderers import get_renderer
from tinkerloop.testing import OrderedService
from tinkerloop.tokenizers.tiny_tokenizer import tiny_tokenizer


@pytest.fixture(scope="session")
def renderer():
    return get_renderer("role_colon", tiny_tokenizer())


@pytest.fixture
def service():
    """An ordered service whose unigram model has the vocabulary of the tiny tokenizer."""
    return OrderedService(vocab_size=268)
