"""The models that Tinker serves; the same names as in `tinkerloop.model_info`."""

from tinkerloop.model_info import (
    ModelAttributes,
    get_model_attributes,
    get_recommended_renderer_name,
    get_recommended_renderer_names,
    known_models,
    warn_if_renderer_not_recommended,
)

__all__ = [
    "ModelAttributes",
    "get_model_attributes",
    "get_recommended_renderer_name",
    "get_recommended_renderer_names",
    "known_models",
    "warn_if_renderer_not_recommended",
]
