"""The layers of a model that no adapter covers: a model with such layers must not be trained with LoRA."""

from __future__ import annotations

import re

from torch import nn

from tinkerloop.local.nn.layers.lora import LoraSpec
from tinkerloop.local.nn.model import Model
from tinkerloop.local.nn.replica import ROUTERS
from tinkerloop.local.nn.vision import vision_parts
from tinkerloop.local.unsupported import unsupported_error

NARROW = 16
"""A weight is narrow if its smaller side is less than the hidden size divided by this.

Such weights mix a few scalars per channel (the states of Mamba's recurrence, hyper-connections, short filters).
"""
_NO_MATRIX = re.compile(r"bias|A_log|embed|pos_emb")
_NO_TEXT = re.compile(r"(^|[._])(vision|visual|image|img|audio|mm|multi_modal_projector)([._]|$)")


def check_coverage(model: Model, spec: LoraSpec) -> None:
    """Check that an adapter with `spec` covers all layers that it should train.

    Raises:
        NotImplementedError: `spec` trains decoder layers, and some of them can have no adapter, or none is of the kinds
            that `spec` selects. The message names them.
    """
    if spec.rank == 0 or not (spec.train_mlp or spec.train_attn):
        return
    option = "LoRA on some kinds of layers"
    if left := uncovered(model):
        raise unsupported_error(option, f"{model.name} ({type(model.module).__name__}): {', '.join(left)}")
    if not any(model.kinds[name] in ("attn", "mlp") for name in model.trained_layers(spec)):
        raise unsupported_error(
            option,
            f"{model.name} ({type(model.module).__name__}) has no layer to adapt with train_attn={spec.train_attn} "
            f"and train_mlp={spec.train_mlp}",
        )


def uncovered(model: Model) -> list[str]:
    """Return the names of the matrices in the text model that no adapter covers, with * for the number of a layer.

    Embeddings, routers and convolutions of single channels are not counted, as PEFT users do not adapt them either.
    """
    covered = {id(layer.weight) for layer in model.layers.values()}
    hidden_size = model.head.layer.in_features
    vision = vision_parts(model.module)
    names: dict[str, None] = {}
    for name, part in model.module.named_modules():
        if name.startswith(vision) or _NO_TEXT.search(name) or not _has_matrices(name, part):
            continue
        for attribute, parameter in part.named_parameters(recurse=False):
            sides = sorted(parameter.shape)[-2:]
            if id(parameter) in covered or _NO_MATRIX.search(attribute) or len(sides) < 2:
                continue
            if sides[0] > 1 and sides[0] * NARROW >= hidden_size:
                names[re.sub(r"\.\d+(?=\.)", ".*", f"{name}.{attribute}")] = None
    return list(names)


def _has_matrices(name: str, part: nn.Module) -> bool:
    """Return True if the parameters of this module may be matrices that map channels to channels."""
    leaf = name.rsplit(".", 1)[-1]
    kind = type(part).__name__
    if isinstance(part, nn.Linear) and leaf in ROUTERS:
        return part.out_features >= part.in_features  # a projection of that name, which is no router
    if isinstance(part, nn.Embedding) or leaf in ROUTERS or re.search("Router|Hyper|Embedding", kind):
        return False
    depthwise = isinstance(part, nn.Conv1d) and part.groups == part.in_channels
    return not depthwise
