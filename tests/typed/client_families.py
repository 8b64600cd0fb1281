"""Checked by pyright, never run: each family of clients has the interface written down in `tinkerloop.clients`."""

import concurrent.futures

import tinker

import tinkerloop.local
from tinkerloop import connect
from tinkerloop.clients import (
    AwaitableFuture,
    Future,
    RestClientLike,
    SamplingClientLike,
    ServiceClientLike,
    TrainingClientLike,
)
from tinkerloop.testing import OrderedClient, OrderedRestClient, OrderedSampler, OrderedService


def services(hosted: tinker.ServiceClient, local: tinkerloop.local.ServiceClient, ordered: OrderedService) -> None:
    families: list[ServiceClientLike] = [hosted, local, ordered, connect()]
    print(families)


def training_clients(
    hosted: tinker.TrainingClient, local: tinkerloop.local.TrainingClient, ordered: OrderedClient
) -> None:
    families: list[TrainingClientLike] = [hosted, local, ordered]
    print(families)


def sampling_clients(
    hosted: tinker.SamplingClient, local: tinkerloop.local.SamplingClient, ordered: OrderedSampler
) -> None:
    families: list[SamplingClientLike] = [hosted, local, ordered]
    print(families)


def rest_clients(hosted: tinker.RestClient, local: tinkerloop.local.RestClient, ordered: OrderedRestClient) -> None:
    families: list[RestClientLike] = [hosted, local, ordered]
    print(families)


def futures(hosted: tinker.APIFuture[int], plain: concurrent.futures.Future[int]) -> None:
    awaitable: AwaitableFuture[int] = hosted
    waited: list[Future[int]] = [hosted, plain, awaitable]
    print(waited)


async def answers(client: TrainingClientLike, data: list[tinker.Datum]) -> tuple[float, str]:
    output = await client.forward_backward(data, "cross_entropy")
    return output.metrics["loss:sum"], client.save_state("last").result().path
