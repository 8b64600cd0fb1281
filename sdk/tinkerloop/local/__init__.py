"""The embedded engine: Tinker's public clients, computing with PyTorch in this process. No API key, no network.

from tinkerloop.local import ServiceClient
client = ServiceClient(root="runs").create_lora_training_client("tiny", rank=8)

A base model is the built-in `tiny` or `tiny-vl`, or any causal language model of transformers. Qwen2-VL, Qwen2.5-VL,
Qwen3-VL, Qwen3.5 (dense and mixture of experts) and Kimi K2.5 / K2.6 also accept images. When a model is loaded, the
engine compares its logits with those of the transformers model. Some models (Qwen3.5) differ only when several
sequences are packed into one row, because their layers carry a state from token to token. For such a model the engine
runs sequences one by one and gives a warning. Any other difference raises an error.

The package has three subpackages. Each imports only from those listed below it. README.md describes every file.

    client/     the four public client classes
    runtime/    the request queue, the checking and execution of requests, checkpoints on disk
    nn/         the model, LoRA, attention, losses, Adam, generation
"""

from tinkerloop.extras import needs_extra

with needs_extra("local", "the embedded engine"):
    from tinkerloop.local.client.rest_client import RestClient
    from tinkerloop.local.client.sampling_client import SamplingClient
    from tinkerloop.local.client.service_client import ServiceClient
    from tinkerloop.local.client.training_client import TrainingClient

__all__ = ["RestClient", "SamplingClient", "ServiceClient", "TrainingClient"]
