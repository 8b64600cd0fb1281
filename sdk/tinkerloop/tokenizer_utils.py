"""The Cookbook's import path for `tinkerloop.tokenizers`."""

from tinkerloop.tokenizers import get_tokenizer as get_tokenizer
