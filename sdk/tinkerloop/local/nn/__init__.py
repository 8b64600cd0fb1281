"""The networks: a base model with its adapter, losses, the optimizer and generation."""
