"""The engine's own layers: LoRA, attention, norm layers, the decoder layer and the output projection."""
