"""Supervised fine-tuning with the Tinker Cookbook's names, as a thin layer over `tinkerloop.data` and the loop."""
