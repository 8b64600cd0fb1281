"""Supervised fine-tuning as Tinker Cookbook users write it: a thin layer over data and loop."""
