"""The Cookbook's import path for `tinkerloop.tokenizers`."""

from tinkerloop.tokenizers import get_tokenizer

__all__ = ["get_tokenizer"]
