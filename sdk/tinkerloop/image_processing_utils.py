"""The Cookbook's import path for `tinkerloop.images`."""

from tinkerloop.images import get_image_processor as get_image_processor
