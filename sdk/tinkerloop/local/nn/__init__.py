"""The neural network: a base model with its LoRA adapter, the losses, the Adam step and token generation."""
