"""The path of a request from a client to the model (queue, reading, packing, execution), and checkpoints on disk."""
