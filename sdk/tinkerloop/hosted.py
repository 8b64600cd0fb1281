"""`HostedServiceClient`: the client of the hosted service, which warns about models that this service retires."""

from __future__ import annotations

from typing import Any

import tinker

from tinkerloop.client_versions import open_rest_client
from tinkerloop.model_info import warn_if_retired


class HostedServiceClient(tinker.ServiceClient):
    """The service client that `connect` opens for the hosted service. Its arguments are those of tinker's own."""

    def create_rest_client(self) -> tinker.RestClient:
        return open_rest_client(self)

    def create_lora_training_client(self, base_model: str, *args: Any, **options: Any) -> Any:
        """Open a training client with a new model; log a warning if the service retires `base_model`."""
        warn_if_retired(base_model)
        return super().create_lora_training_client(base_model, *args, **options)

    async def create_lora_training_client_async(self, base_model: str, *args: Any, **options: Any) -> Any:
        """Open a training client with a new model; log a warning if the service retires `base_model`."""
        warn_if_retired(base_model)
        return await super().create_lora_training_client_async(base_model, *args, **options)
