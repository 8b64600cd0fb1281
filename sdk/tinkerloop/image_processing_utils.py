"""The import path that the Tinker Cookbook uses for `get_image_processor` of `tinkerloop.images`."""

from tinkerloop.images import get_image_processor as get_image_processor
