"""The neural network: a base model with its adapter, losses, Adam and generation."""
