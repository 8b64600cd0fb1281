"""Layers with a forward and a backward pass of their own."""
