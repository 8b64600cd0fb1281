"""Requests, from a client to the model: the queue, reading and packing, and the checkpoints on disk."""
