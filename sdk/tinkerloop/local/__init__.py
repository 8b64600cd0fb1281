"""The embedded engine: Tinker's public interface on PyTorch, in this process, with no key and no network.

from tinkerloop.local import ServiceClient
client = ServiceClient(root="runs").create_lora_training_client("tiny", rank=8)
"""

from tinkerloop.local.rest import RestClient
from tinkerloop.local.sampling import SamplingClient
from tinkerloop.local.service import ServiceClient
from tinkerloop.local.training import TrainingClient

__all__ = ["RestClient", "SamplingClient", "ServiceClient", "TrainingClient"]
