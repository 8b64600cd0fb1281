"""Table of the models that Tinker serves: their organizations, sizes, and recommended renderers.

It also contains models that Tinker no longer serves, because they can still be trained elsewhere, and their checkpoints
still be used. Other models with a chat format of this package are recognised by their names.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from tinkerloop.errors import UnknownRendererError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelAttributes:
    """The attributes of a model: organization, version, size, recommended renderers and input modalities.

    Attributes:
        organization: the organization that made the model, as in `organization/model`.
        version_str: the version of the model.
        size_str: the number of parameters, such as "8B"; for mixture-of-experts models the total and the active
            number, such as "30B-A3B".
        is_chat: true for chat models, false for base models.
        recommended_renderers: the names of the renderers for the model's chat format, the default first.
        is_vl: true if the model accepts images.
        is_audio_in: true if the model accepts audio.
        is_retired: true if the hosted service has announced that it no longer trains the model.
    """

    organization: str
    version_str: str
    size_str: str
    is_chat: bool
    recommended_renderers: tuple[str, ...]
    is_vl: bool = False
    is_audio_in: bool = False
    is_retired: bool = False


_BASE = ("role_colon",)
_LLAMA3 = ("llama3",)
_QWEN3 = ("qwen3", "qwen3_disable_thinking")
_QWEN3_INSTRUCT = ("qwen3_instruct",)
_QWEN3_VL_INSTRUCT = ("qwen3_vl_instruct",)
_QWEN3_5 = ("qwen3_5", "qwen3_5_disable_thinking", "qwen3_5_preserve_thinking")
_QWEN3_8 = tuple(f"qwen3_8_{v}" for v in ("xhigh_reasoning", "disable_thinking", "medium_reasoning", "low_reasoning"))
_DEEPSEEK_V3 = ("deepseekv3", "deepseekv3_thinking")
_DEEPSEEK_V4 = tuple(
    f"deepseekv4_1{v}" for v in ("", "_low_reasoning", "_max_reasoning", "_disable_thinking", "_preserve_thinking")
)
_GPT_OSS = ("gpt_oss_no_sysprompt", "gpt_oss_medium_reasoning")
_KIMI_K2 = ("kimi_k2",)
_KIMI_K25 = ("kimi_k25", "kimi_k25_disable_thinking")
_KIMI_K26 = ("kimi_k26", "kimi_k26_disable_thinking", "kimi_k26_preserve_thinking")
_KIMI_K31 = tuple(
    f"kimi_k31_pro_{v}"
    for v in ("max_reasoning", "high_reasoning", "low_reasoning", "disable_thinking", "no_reasoning_effort")
)
_GLM5_3 = ("glm5_3_max_reasoning", "glm5_3_low_reasoning", "glm5_3_high_reasoning")
_NEMOTRON3 = ("nemotron3", "nemotron3_disable_thinking", "nemotron3_preserve_thinking")
_LIGHTNING = ("nemotron3_ultra", "nemotron3_ultra_disable_thinking", "nemotron3_ultra_preserve_thinking")
_ULTRA = (*_LIGHTNING[:2], "nemotron3_ultra_medium_thinking", _LIGHTNING[2])
_TML_V0 = ("tml_v0",)

# organization -> model -> (version, size, renderers, input modalities: V for images, A for audio)
_TABLE: dict[str, dict[str, tuple[str, str, tuple[str, ...], str]]] = {
    "meta-llama": {
        "Llama-3.1-8B-Instruct": ("3.1", "8B", _LLAMA3, ""),
        "Llama-3.2-1B": ("3.2", "1B", _BASE, ""),
        "Llama-3.2-3B": ("3.2", "3B", _BASE, ""),
        "Llama-3.1-8B": ("3.1", "8B", _BASE, ""),
        "Llama-3.1-70B": ("3.1", "70B", _BASE, ""),
        "Llama-3.3-70B-Instruct": ("3.3", "70B", _LLAMA3, ""),
    },
    "Qwen": {
        "Qwen3-VL-30B-A3B-Instruct": ("3", "30B-A3B", _QWEN3_VL_INSTRUCT, "V"),
        "Qwen3-VL-235B-A22B-Instruct": ("3", "235B-A22B", _QWEN3_VL_INSTRUCT, "V"),
        "Qwen3-8B-Base": ("3", "8B", _BASE, ""),
        "Qwen3-30B-A3B-Base": ("3", "30B-A3B", _BASE, ""),
        "Qwen3-0.6B": ("3", "0.6B", _QWEN3, ""),
        "Qwen3-1.7B": ("3", "1.7B", _QWEN3, ""),
        "Qwen3-4B": ("3", "4B", _QWEN3, ""),
        "Qwen3-8B": ("3", "8B", _QWEN3, ""),
        "Qwen3-14B": ("3", "14B", _QWEN3, ""),
        "Qwen3-32B": ("3", "32B", _QWEN3, ""),
        "Qwen3-30B-A3B": ("3", "30B-A3B", _QWEN3, ""),
        "Qwen3-4B-Instruct-2507": ("3", "4B", _QWEN3_INSTRUCT, ""),
        "Qwen3-30B-A3B-Instruct-2507": ("3", "30B-A3B", _QWEN3_INSTRUCT, ""),
        "Qwen3-235B-A22B-Instruct-2507": ("3", "235B-A22B", _QWEN3_INSTRUCT, ""),
        "Qwen3.5-4B": ("3.5", "4B", _QWEN3_5, "V"),
        "Qwen3.5-9B": ("3.5", "9B", _QWEN3_5, "V"),
        "Qwen3.5-9B-Base": ("3.5", "9B", _BASE, "V"),
        "Qwen3.5-27B": ("3.5", "27B", _QWEN3_5, "V"),
        "Qwen3.5-35B-A3B": ("3.5", "35B-A3B", _QWEN3_5, "V"),
        "Qwen3.5-35B-A3B-Base": ("3.5", "35B-A3B", _BASE, "V"),
        "Qwen3.5-397B-A17B": ("3.5", "397B-A17B", _QWEN3_5, "V"),
        "Qwen3.6-27B": ("3.6", "27B", _QWEN3_5, "V"),
        "Qwen3.6-35B-A3B": ("3.6", "35B-A3B", _QWEN3_5, "V"),
        "Qwen3.8-27B": ("3.8", "27B", _QWEN3_8, "V"),
    },
    "deepseek-ai": {
        "DeepSeek-V3.1": ("3", "671B-A37B", _DEEPSEEK_V3, ""),
        "DeepSeek-V3.1-Base": ("3", "671B-A37B", _BASE, ""),
        "DeepSeek-V4.1-Flash": ("4.1", "552B-A16B", _DEEPSEEK_V4, ""),
        "DeepSeek-V4.1-Flash-1017": ("4.1", "552B-A16B", _DEEPSEEK_V4, ""),
    },
    "openai": {
        "gpt-oss-20b": ("1", "21B-A3.6B", _GPT_OSS, ""),
        "gpt-oss-120b": ("1", "117B-A5.1B", _GPT_OSS, ""),
    },
    "moonshotai": {
        "Kimi-K2-Thinking": ("K2", "1T-A32B", _KIMI_K2, ""),
        "Kimi-K2.5": ("K2.5", "1T-A32B", _KIMI_K25, "V"),
        "Kimi-K2.6": ("K2.6", "1T-A32B", _KIMI_K26, "V"),
        "Kimi-K3.1-Pro": ("K3.1", "2.8T-A104B", _KIMI_K31, "V"),
    },
    "zai-org": {
        "GLM-5.3": ("5.3", "744B-A40B", _GLM5_3, ""),
        "GLM-5.3-Flash": ("5.3", "320B-A18B", _GLM5_3, ""),
    },
    "nvidia": {
        "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": ("3", "30B-A3B", _NEMOTRON3, ""),
        "NVIDIA-Nemotron-3-Super-120B-A12B-BF16": ("3", "120B-A12B", (*_NEMOTRON3, "nemotron3_low_thinking"), ""),
        "NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16": ("3", "550B-A55B", _ULTRA, ""),
        "NVIDIA-Nemotron-3.5-Lightning-30B-A3B-BF16": ("3.5", "30B-A3B", _LIGHTNING, ""),
        "NVIDIA-Nemotron-3.5-Super-VL-120B-A12B-BF16": ("3.5", "120B-A12B", _ULTRA, "V"),
    },
    "thinkingmachines": {
        "Inkling": ("1", "975B-A41B", _TML_V0, "VA"),
        "Inkling-Small": ("1", "276B-A12B", _TML_V0, "VA"),
        "Inkling-2-Small": ("2", "594B-A17B", _TML_V0, "V"),
    },
}
_RETIRED: dict[str, str] = {
    "Qwen/Qwen3.5-35B-A3B": "Qwen/Qwen3.6-35B-A3B",
    "Qwen/Qwen3.5-27B": "Qwen/Qwen3.6-27B",
    "Qwen/Qwen3-30B-A3B": "Qwen/Qwen3.6-35B-A3B",
    "Qwen/Qwen3-30B-A3B-Instruct-2507": "Qwen/Qwen3.6-35B-A3B",
    "Qwen/Qwen3-VL-30B-A3B-Instruct": "Qwen/Qwen3.6-35B-A3B",
}
"""Models whose retirement was announced on 2026-06-12, each with the served model that is nearest in size and kind."""
_NOT_SERVED: dict[str, tuple[str, ...]] = {
    r"gemma-3-\d+[bm]-it": ("gemma3",),
    r"gemma-4-(12B|26B-A4B|31B)-it": ("gemma4", "gemma4_thinking"),
    r"gemma-4-E[24]B-it": ("gemma4_e4b", "gemma4_thinking"),
    r"DeepSeek-R1-Distill-(Qwen|Llama)-[\d.]+B": ("deepseek_r1_distill",),
    r"granite-3\.1-\db-(a\d+m-)?instruct": ("granite3",),
    r"Llama-4-(Scout|Maverick)-17B-\d+E-Instruct": ("llama4",),
    r"Llama-3\.[123]-\d+B-Instruct": _LLAMA3,
    r"Ministral-3-\d+B-Instruct-2512(-BF16)?": ("mistral_v13",),
    r"Ministral-3-\d+B-Reasoning-2512": ("mistral_v13_reasoning",),
    r"Mistral-7B-Instruct-v0\.3": ("mistral_v3",),
    r"Mistral-Nemo-Instruct-2407": ("mistral_v3_tekken",),
    r"Mistral-Small-24B-Instruct-2501": ("mistral_v7_tekken",),
    r"Mistral-Small-3\.1-24B-Instruct-2503": ("mistral_v7_tekken",),
    r"Mistral-Small-3\.2-24B-Instruct-2506": ("mistral_v11",),
    r"Qwen2\.5-[\d.]+B-Instruct": ("qwen2_5",),
    r"Qwen3-Coder-\d+B-A\d+B-Instruct": ("qwen3_coder",),
    r"Qwen3-\d+B(-A\d+B)?-Thinking-2507": ("qwen3_thinking",),
    r"GLM-4\.[56](-Air)?": ("glm4_5", "glm4_5_disable_thinking"),
    r"GLM-4\.7(-Flash)?": ("glm4_7", "glm4_7_disable_thinking", "glm4_7_preserve_thinking"),
}
"""Models that Tinker does not serve, such as those in local folders: regular expressions for their names, without the
organization, and the renderers of their chat formats."""
_TINY = ModelAttributes("tinkerloop", "1", "0.13M", True, ("qwen3_instruct", "qwen3", "qwen3_disable_thinking"))
_TINY_VL = ModelAttributes("tinkerloop", "1", "0.48M", True, ("qwen3_vl_instruct", "qwen3_vl"), is_vl=True)


def known_models() -> list[str]:
    """Return the names of all models in the table, as `organization/model`, sorted."""
    return sorted(f"{organization}/{model}" for organization, models in _TABLE.items() for model in models)


def get_model_attributes(model_name: str) -> ModelAttributes:
    """Return the attributes of a model.

    Args:
        model_name: one of the following. A name, as `organization/model` or `model`; a colon and the text after it are
            ignored. "tiny" or "tiny-vl", the built-in models. The path of a local folder, such as `.../Qwen3-8B`: the
            folder's name identifies the model; if it is unknown, the recommended renderer is `template`, which reads
            the chat template in the folder.

    Raises:
        UnknownRendererError: the model is not in the table. The message lists the most similar names.
    """
    if model_name in ("tiny", "tiny-vl"):
        return _TINY if model_name == "tiny" else _TINY_VL
    if not isinstance(model_name, str):
        raise UnknownRendererError(
            f"the model must be given by its name or its folder, as a string, got {model_name!r}"
        )
    is_folder = os.path.isdir(model_name)  # False, not an error, for a string that is not a valid path
    name = Path(model_name).resolve().name if is_folder else model_name.partition(":")[0]
    organization, _, model = name.rpartition("/")
    for owner, models in _TABLE.items():
        facts = models.get(model)
        if facts is not None and organization in (owner, ""):
            version, size, renderers, senses = facts
            is_retired = f"{owner}/{model}" in _RETIRED
            is_chat = renderers != _BASE
            return ModelAttributes(owner, version, size, is_chat, renderers, "V" in senses, "A" in senses, is_retired)
    for pattern, renderers in _NOT_SERVED.items():
        if re.fullmatch(pattern, model):
            return ModelAttributes("", "", "", True, renderers)
    if is_folder:
        return ModelAttributes("", "", "", True, ("template",))
    if organization in ("thinkingmachines", "") and model.startswith("Inkling"):
        raise UnknownRendererError(
            f"the model {model_name!r} is not a known Inkling model; known are "
            f"{', '.join(f'thinkingmachines/{known}' for known in _TABLE['thinkingmachines'])}. If it has their chat "
            "format, name the renderer 'tml_v0'"
        )
    known = known_models()
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known[:3]
    raise UnknownRendererError(
        f"the model {model_name!r} is neither a folder nor a known name; did you mean {', '.join(near)}? "
        "For a model that is not listed, pass its folder, or use the renderer 'template' if it has a chat template"
    )


def warn_if_retired(model_name: str) -> None:
    """Log a warning if the hosted service no longer trains `model_name`, with a model to use instead."""
    name = model_name.partition(":")[0]
    if name in _RETIRED:
        logger.warning(
            "Tinker announced on 2026-06-12 that it retires %s, so the service may refuse it; consider %s instead",
            name,
            _RETIRED[name],
        )


def get_recommended_renderer_names(model_name: str) -> list[str]:
    """Return the names of the renderers for the chat format of a model, the default first."""
    return list(get_model_attributes(model_name).recommended_renderers)


def get_recommended_renderer_name(model_name: str) -> str:
    """Return the name of the default renderer for a model."""
    return get_recommended_renderer_names(model_name)[0]


def warn_if_renderer_not_recommended(model_name: str, renderer_name: str | None) -> None:
    """Log a warning if `model_name` is a known model and `renderer_name` is not one of its recommended renderers."""
    if renderer_name is None:
        return
    try:
        recommended = get_recommended_renderer_names(model_name)
    except UnknownRendererError:
        return
    if renderer_name not in recommended:
        logger.warning(
            "%s was not trained on the chat format of renderer %r; use one of %s",
            model_name,
            renderer_name,
            ", ".join(recommended),
        )
