"""The embedded engine: Tinker's public interface on PyTorch, in this process, with no key and no network.

from tinkerloop.local import ServiceClient
client = ServiceClient(root="runs").create_lora_training_client("tiny", rank=8)

Base models are the built-in `tiny` and `tiny-vl`, and any causal language model of transformers. Qwen2-VL, Qwen2.5-VL,
Qwen3-VL, Qwen3.5 (dense and mixture of experts) and Kimi K2.5 / K2.6 also take images. When a model is loaded, the
engine's logits are compared with the model's own. If they differ only for packed sequences, because layers carry a
state from token to token (Qwen3.5), sequences run one by one and a warning says so; any other difference is an error.

Three floors, each importing only those below it; README.md says what each file holds:

    client/     the clients that scripts hold
    runtime/    the queue of requests, their reading and execution, checkpoints on disk
    nn/         the model, LoRA, attention, losses, Adam, generation
"""

from tinkerloop.local.client.rest_client import RestClient
from tinkerloop.local.client.sampling_client import SamplingClient
from tinkerloop.local.client.service_client import ServiceClient
from tinkerloop.local.client.training_client import TrainingClient

__all__ = ["RestClient", "SamplingClient", "ServiceClient", "TrainingClient"]
