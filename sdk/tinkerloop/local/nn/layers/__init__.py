"""The engine's own layers: LoRA, attention, norms, the decoder layer and the output projection."""
