"""The import path that the Tinker Cookbook uses for `get_tokenizer` of `tinkerloop.tokenizers`."""

from tinkerloop.tokenizers import get_tokenizer as get_tokenizer
