"""Loading of tokenizers by name, and the fast, exact encoders that renderers use. This package needs no torch."""

from tinkerloop.tokenizers.encoders import Encoder, encoder_of
from tinkerloop.tokenizers.loading import get_tokenizer

__all__ = ["Encoder", "encoder_of", "get_tokenizer"]
