"""Export of a checkpoint for other programs: as a PEFT adapter, or as a complete model with the adapter merged in."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import torch
from transformers import AutoConfig

from tinkerloop.errors import CheckpointError
from tinkerloop.local.nn.layers.experts import ExpertWeights
from tinkerloop.local.nn.layers.lora import LoRALinear, LoraSpec
from tinkerloop.local.nn.model import Model
from tinkerloop.local.nn.model_loading import TINY_MODEL, TINY_VISION_MODEL, load_model
from tinkerloop.local.nn.parameters import Weights
from tinkerloop.local.runtime.checkpoint_store import CheckpointStore
from tinkerloop.local.runtime.peft_format import tensor_names


def export_checkpoint(
    root: Path, path: str, to: Path, *, merged: bool = False, dtype: torch.dtype = torch.float32
) -> None:
    """Write the checkpoint `path` (a tinker:// path under `root`) to the new folder `to`.

    By default the folder contains an adapter, which `peft.PeftModel.from_pretrained(base, to)` loads. With `merged` it
    contains a transformers model in `dtype`, and its tokenizer.

    An adapter of an output layer that shares its weight with the embedding computes the right numbers in PEFT as long
    as it is not merged there; a UserWarning says so. `merged` gives the output layer a weight of its own.

    Raises:
        CheckpointError: `to` already exists, or the checkpoint has no adapter (rank 0) and `merged` is false.
        tinker.NotFoundError: the checkpoint does not exist.
        tinker.BadRequestError: `path` is not a valid tinker:// path.
    """
    store = CheckpointStore(root)
    record = store.read(path)
    if to.exists():
        raise CheckpointError(f"cannot export to {to}: it already exists; give the path of a new folder")
    if not merged:
        if record.lora.rank == 0:
            raise CheckpointError(
                f"cannot export {path} as an adapter: it contains all weights of a model; export it with merged=True "
                "(--merged on the command line)"
            )
        _warn_of_tied_embeddings(record.base_model, record.lora, path)
        to.mkdir(parents=True)
        for file in store.weight_files(path):
            shutil.copyfile(file, to / file.name)
        return
    base = load_model(record.base_model, torch.device("cpu"), torch.float32)
    weights = base.new_weights(record.lora)
    names = tensor_names(base, record.lora)
    loaded = store.load_weights(path)
    for name, tensor in weights.named.items():
        tensor.copy_(loaded[names[name]])
    merge(base, record.lora, weights)
    base.module.to(dtype).save_pretrained(to)  # type: ignore[operator]
    base.tokenizer.save_pretrained(to)


def _warn_of_tied_embeddings(base_model: str, spec: LoraSpec, path: str) -> None:
    """Warn if PEFT would merge the adapter of the output layer into the embedding, too."""
    if not spec.train_unembed or base_model in (TINY_MODEL, TINY_VISION_MODEL):  # the built-in models tie no weights
        return
    try:
        tied = AutoConfig.from_pretrained(base_model).get_text_config(decoder=True).tie_word_embeddings
    except (OSError, ValueError):
        tied = None  # the base model is not here
    if tied is False:
        return
    condition = "" if tied else f", if the output layer of {base_model} shares its weight with the embedding"
    warnings.warn(
        f"the adapter of {path} must not be merged with PEFT (merge_and_unload){condition}: it adapts the output "
        "layer, whose weight is also the embedding, and PEFT would change both, which gives wrong log-probabilities. "
        "Load it without merging; or export a merged model (merged=True, --merged on the command line); or train with "
        "train_unembed=False",
        stacklevel=3,
    )


@torch.no_grad()
def merge(base: Model, spec: LoraSpec, weights: Weights) -> None:
    """Replace the weights of `base` by the trained weights, in place.

    `base` can be saved afterwards, but not be used for training or sampling.
    """
    if spec.rank == 0:
        for name, parameter in base.module.named_parameters():
            parameter.copy_(weights.named[name])
        return
    head = base.head.layer
    embedding = base.module.get_input_embeddings()
    if spec.train_unembed and embedding.weight is head.weight:  # untie: the adapter belongs to the output layer only
        head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)
        base.module.config.get_text_config().tie_word_embeddings = False
        base.module.config.tie_word_embeddings = False
    base.bind(spec, weights)
    for layer in base.trained_layers(spec).values():
        adapter = layer.adapter
        assert adapter is not None
        if isinstance(layer, LoRALinear):
            layer.matrix.copy_(torch.addmm(layer.matrix, adapter.b, adapter.a, alpha=adapter.scale))
        else:
            assert isinstance(layer, ExpertWeights)
            assert layer.fold_buffer is not None
            layer.weight.copy_(layer.fold_buffer)
    base.bind(None, None)
