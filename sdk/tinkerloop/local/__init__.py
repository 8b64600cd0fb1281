"""The embedded engine: Tinker's public interface on PyTorch, in this process, with no key and no network.

from tinkerloop.local import ServiceClient
client = ServiceClient(root="runs").create_lora_training_client("tiny", rank=8)

Base models are the built-in `tiny` and `tiny-vl`, and any causal language model of transformers. Images are taken by
Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5 (dense and mixture of experts) and Kimi K2.5 / K2.6. At load a model's own
numbers are compared with the engine's. Where they differ because layers carry a state from token to token (Qwen3.5),
sequences are not packed into one row but run one by one, and the log says so; any other difference is refused.
"""

from tinkerloop.local.client.rest_client import RestClient
from tinkerloop.local.client.sampling_client import SamplingClient
from tinkerloop.local.client.service_client import ServiceClient
from tinkerloop.local.client.training_client import TrainingClient

__all__ = ["RestClient", "SamplingClient", "ServiceClient", "TrainingClient"]
