"""Requests that no honest client sends: malformed, oversized, truncated, replayed, out of order, of wrong types.

Request number n of a seed is always the same for a server that gives the same answers, so a failure can be repeated.
"""

from __future__ import annotations

import copy
import json
import random
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
from PIL import Image
from tinker.proto import tinker_public_pb2 as messages

from tests.server.conftest import KEY, RawClient
from tinkerloop.images.writing import png

BODY_BYTES = 2**20
"""The largest body that the attacked server should accept."""
PICTURE = png(Image.new("RGB", (56, 56)))
PROMPT = {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]}
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, -(2**31) - 1, 2**63, 10**30, 10**400, 1e308, -0.5, float("nan"), float("inf"),
    "", "x", "..", "../../etc/passwd", "tinker://../../x/weights/y", "a\0b", "\ud800", "é" * 300, "x" * 100_000, "-1",
    "tinker://a/weights/b", "tinker://a/b/c/d/e", "file:///etc/passwd", "tiny", "%2e%2e%2f", "\n\r\n", [], [[]], [0],
    [None], {}, {"a": {}}, {"type": "adamw"}, {"chunks": []}, {"tokens": [-1]}, [1] * 5000,
    {str(n): n for n in range(99)},
]  # fmt: skip
PATHS = [
    "training_runs/..%2f..%2fetc/checkpoints", "training_runs/%00", "training_runs/..", "training_runs/a%0d%0ab",
    "training_runs/x/checkpoints/weights/..", "training_runs/x/checkpoints/..%2f..%2f/y", "samplers/%ff%fe",
    "sessions/..",
    "training_runs/" + "a" * 5000, "../../../etc/passwd", "checkpoints?limit=-1", "checkpoints?limit=1e9&offset=x", "",
    "checkpoints?limit=" + "9" * 5000, "training_runs?offset=" + "9" * 30, "sessions/%ED%A0%80/finish",
    "%2e%2e/healthz",
    "training_runs/x/checkpoints/weights/y/ttl", "training_runs/x/checkpoints/weights/y/publish", "telemetry",
    "forward",
    "training_runs/x:train:0/checkpoints/sampler_weights/y/archive", "training_runs/con/checkpoints/wei\u0301ghts/y",
]  # fmt: skip


@dataclass
class Target:
    """Session, model and sampler of the hostile user, and the number of the next request of the model."""

    session: str
    model: str
    sampler: str
    next: int = 1
    samples: int = 0


@dataclass
class Hostile:
    """Hostile user of the server at `url`. `failures` are the answers that no request may have.

    With `fetch`, the answers of accepted requests are fetched too, on a server that lets nobody wait for them long.
    """

    url: str
    seed: int
    fetch: bool = True
    failures: list[str] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    executed: int = 0
    """Number of requests that were right by chance and gave a result."""

    def __post_init__(self) -> None:
        self._client, self._renewals = RawClient(self.url), 0
        self._sent: deque[httpx.Request] = deque(maxlen=200)
        self._renew()

    def send(self, number: int) -> None:
        """Send request `number`, and check its answer."""
        self._random = random.Random(f"hostile/{self.seed}/{number}")
        if number % 250 == 249:
            self._renew()
        if self._random.random() < 0.08:
            self._raw(number)
            return
        request = self._request()
        try:
            response = self._client.send(request, follow_redirects=False)
        except (httpx.HTTPError, ValueError) as error:
            self.failures.append(f"request {number}: {type(error).__name__} {error}; {described(request)}")
            return
        self._sent.append(request)
        self._check(number, request, response)
        name = _request_id(response) if response.status_code == 200 else None
        if name is None:
            return
        owner, _, last = name.rpartition(":")
        early = owner == self._target.model and int(last) > self._target.next
        if owner == self._target.model and int(last) == self._target.next:
            self._target.next += 1
        if self.fetch:
            self._check_answer(number, request, name, early)

    def close(self) -> None:
        self._leave()
        self._client.close()

    def _check(self, number: int, request: httpx.Request, response: httpx.Response) -> None:
        self.statuses[response.status_code] = self.statuses.get(response.status_code, 0) + 1
        if response.status_code >= 500 or response.status_code in (409, 429):
            self.failures.append(
                f"request {number}: {response.status_code} {response.text[:200]}; {described(request)}"
            )
        if response.status_code == 200 and request.url.path.endswith("create_session"):
            self._client.post(f"sessions/{response.json()['session_id']}/finish", json={})

    def _check_answer(self, number: int, request: httpx.Request, name: str, early: bool) -> None:
        """Fetch the answer of a request, and wait for it unless the request waits for an earlier one."""
        deadline = time.monotonic() + 120
        while (answer := self._client.answer(name)).status_code == 408 and not early and time.monotonic() < deadline:
            pass
        if answer.status_code not in ((200, 408) if early else (200,)) or not answer.content:
            self.failures.append(
                f"request {number}: answer {answer.status_code} {answer.text[:200]}; {described(request)}"
            )
        if b'"category": "server"' in answer.content:
            self.failures.append(f"request {number}: {answer.text[:300]}; {described(request)}")
        self.executed += answer.status_code == 200 and b'"error"' not in answer.content

    def _renew(self) -> None:
        """End the session, and open another one with a model and a sampler."""
        if self._renewals:
            self._leave()
        self._renewals += 1
        base_model = "tiny-vl" if self._renewals % 2 == 0 else "tiny"
        session = self._client.ask("create_session", tags=[], user_metadata=None, sdk_version="1")["session_id"]
        lora = {"rank": 4, "seed": 0}
        self._client.ask("create_model", session_id=session, model_seq_id=0, base_model=base_model, lora_config=lora)
        model = f"{session}:train:0"
        body = {"session_id": session, "sampling_session_seq_id": 0, "base_model": base_model}
        sampler = self._client.ask("create_sampling_session", **body)["sampling_session_id"]
        self._target = Target(session, model, sampler)

    def _leave(self) -> None:
        """End the session, and delete its checkpoints."""
        self._client.post(f"sessions/{self._target.session}/finish", json={})
        for checkpoint in self._client.get(f"training_runs/{self._target.model}/checkpoints").json()["checkpoints"]:
            self._client.delete(f"training_runs/{self._target.model}/checkpoints/{checkpoint['checkpoint_id']}")

    def _request(self) -> httpx.Request:
        kind = self._random.choices(["json", "proto", "replay", "path", "bytes", "large"], [55, 20, 7, 7, 10, 1])[0]
        if kind == "replay" and self._sent:
            return self._random.choice(list(self._sent))
        if kind == "proto":
            return self._build("forward_backward", self._proto(), "application/x-protobuf")
        if kind == "path":
            method = self._random.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
            path = self._random.choice(PATHS)
            return self._client.build_request(method, path, content=self._random.choice([b"", b"{}", b"[]", b"\xff"]))
        path, body = self._random.choice(list(self._bodies().items()))
        if kind == "json":
            return self._build(path, json.dumps(self._mutated(body)).encode(), "application/json")
        if kind == "large":
            return self._build(path, b'{"x": "' + b"y" * BODY_BYTES + b'"}', "application/json")
        return self._build(
            path, self._bytes(json.dumps(body).encode()), self._random.choice(["", "text/plain", "\u00ff"])
        )

    def _build(self, path: str, content: bytes, media_type: str) -> httpx.Request:
        headers = {"Content-Type": media_type.encode("latin-1")}
        if self._random.random() < 0.05:
            headers["Content-Encoding"] = self._random.choice([b"gzip", b"zstd", b"x"])
        return self._client.build_request("POST", path, content=content, headers=headers)

    def _number(self) -> int:
        """Return a number for a request of the model: mostly the next one, else one that was used, or a later one."""
        choice = self._random.random()
        if choice < 0.8:
            return self._target.next
        if choice < 0.9:
            return self._random.randrange(-2, self._target.next)
        return self._random.choice([self._target.next + 1, 2**31 - 1])

    def _bodies(self) -> dict[str, dict[str, Any]]:
        target, number = self._target, self._random.randrange(50)
        model = {"model_id": target.model, "seq_id": self._number()}
        self._target.samples += 1
        return {
            "client/config": {"sdk_version": "1"},
            "create_session": {"tags": [], "user_metadata": {"a": "b"}, "sdk_version": "1"},
            "session_heartbeat": {"session_id": target.session},
            "telemetry": {"events": []},
            f"sessions/{target.session[:-1]}/finish": {"reason": {"type": "success"}},
            "create_model": {
                "session_id": target.session,
                "model_seq_id": number,
                "base_model": "tiny",
                "lora_config": {"rank": 4, "seed": 1, "train_mlp": True, "train_attn": True, "train_unembed": True},
                "user_metadata": {"a": "b"},
            },
            "load_weights": {
                "session_id": target.session, "model_seq_id": number, "path": f"tinker://{target.model}/weights/a",
                "optimizer": True,
            },
            "optim_step": {**model, "adam_params": {"learning_rate": 1e-3, "beta1": 0.9, "eps": 1e-8}},
            "save_weights": {**model, "path": "a", "overwrite": True, "ttl_seconds": 7200, "user_metadata": {"a": "b"}},
            "save_weights_for_sampler": {**model, "path": f"s{number}", "sampling_session_seq_id": 3},
            "save_weights_external": {**model, "path": "e"},
            "asample": {
                "sampling_session_id": target.sampler,
                "seq_id": target.samples,
                "num_samples": 2,
                "prompt": PROMPT,
                "sampling_params": {"max_tokens": 2, "seed": 1, "temperature": 1.0, "top_k": 5, "stop": ["x"]},
                "prompt_logprobs": True,
                "topk_prompt_logprobs": 1,
                "target_prompt_logprobs": {"data": [1, 2], "dtype": "int64", "shape": [2, 1]},
            },
            "retrieve_future": {"request_id": f"{target.model}:{number + 1000}"},
            "create_sampling_session": {
                "session_id": target.session, "sampling_session_seq_id": number, "base_model": "tiny",
            },
            "get_info": {"model_id": target.model},
            "weights_info": {"tinker_path": f"tinker://{target.model}/weights/a"},
            "copy_weights": {"source_path": f"tinker://{target.model}/weights/a", "ttl_seconds": 7200},
        }  # fmt: skip

    def _mutated(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return `body` with up to two of its values, at any depth, replaced, removed or added."""
        body = copy.deepcopy(body)
        for _ in range(self._random.choice([0, 0, 1, 1, 2])):
            place: Any = body
            while True:
                key = self._random.choice(list(place) if isinstance(place, dict) else range(len(place)))
                inner = place[key]
                if not isinstance(inner, dict | list) or not inner or self._random.random() < 0.4:
                    break
                place = inner
            action = self._random.random()
            if action < 0.15:
                del place[key]
            elif action < 0.25 and isinstance(place, dict):
                place["no_such_field"] = copy.deepcopy(self._random.choice(VALUES))
            else:
                place[key] = copy.deepcopy(self._random.choice(VALUES))
            if not body:
                break
        return body

    def _bytes(self, content: bytes) -> bytes:
        choice = self._random.randrange(8)
        cut = self._random.randrange(len(content) + 1)
        if choice == 0:
            return content[:cut]
        if choice == 1:
            return self._random.randbytes(cut)
        if choice == 2:
            return content[:cut] + self._random.randbytes(3) + content[cut:]
        if choice == 3:
            return b"[" * 50_000
        if choice == 4:
            return b'{"a":' * 3000 + b"1" + b"}" * 3000
        if choice == 5:
            return b'{"seq_id": ' + b"9" * 5000 + b"}"
        if choice == 6:
            return content.decode().encode("utf-16")
        return b"\xef\xbb\xbf" + content + content

    def _proto(self) -> bytes:
        """Return a forward_backward request, with wrong parts or as wrong bytes."""
        choose, number = self._random.choice, self._random
        length = choose([0, 1, 3, 3, 3, 3, 700])
        ids = number.randbytes(4 * length) if choose([True, False, False]) else b"\1\0\0\0" * length
        chunks = [messages.Chunk(encoded_text={"tokens": ids + choose([b"", b"", b"\1"])})]
        if number.random() < 0.1:
            picture = choose([b"", PICTURE, PICTURE, b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + b"\x7f" * 8, b"GIF89a"])
            chunks.append(messages.Chunk(image={"data": picture, "format": choose(["png", "jpeg", "x"])}))
        if number.random() < 0.05:
            chunks.append(messages.Chunk())
        tensors = [
            messages.Tensor(dtype=messages.DTYPE_INT64, dense=b"\1\0\0\0\0\0\0\0" * length),
            messages.Tensor(dtype=messages.DTYPE_FLOAT32, dense=b"\0\0\x80\x3f" * length),
            messages.Tensor(dtype=messages.DTYPE_FLOAT32, dense=choose([b"\0\0\xc0\x7f", b"\0\0\x80\x7f"]) * length),
            messages.Tensor(dtype=choose([0, 3, 4, 99]), dense=number.randbytes(12)),
            messages.Tensor(
                dtype=messages.DTYPE_FLOAT32,
                shape=choose([[2**40, 2**40], [-1, -3], [0], [3, 10**6], [2**62, 4], [length, 2]]),
                sparse_csr=messages.SparseCsr(
                    values=number.randbytes(8), crow_indices=bytes(8), col_indices=b"\1" * 16
                ),
            ),
            messages.Tensor(
                dtype=messages.DTYPE_FLOAT32, shape=choose([[length], [0, 5], [-3], [3, 2]]), dense=bytes(12)
            ),
        ]
        inputs = {"target_tokens": tensors[0], "weights": tensors[1]}
        if number.random() < 0.5:
            inputs[choose(["target_tokens", "weights", "advantages", "logprobs", "", "\u00e9"])] = choose(tensors)
        message = messages.ForwardBackwardRequest(
            model_id=choose([self._target.model] * 6 + ["", "x:train:0", "a" * 4000]),
            seq_id=self._number(),
            loss_fn=choose(["cross_entropy"] * 4 + ["ppo", "importance_sampling", "dro", "", "__class__"]),
            forward_only=choose([True, False]),
            data=[messages.Datum(model_input=chunks, loss_fn_inputs=inputs)] * choose([0, 1, 1, 1, 2, 300]),
        )
        if number.random() < 0.2:
            message.loss_fn_config_v2[choose(["beta", "clip_low_threshold", "x"])].number = choose(
                [0.1, float("nan"), 1e308]
            )
        content = message.SerializeToString()
        damage = number.random()
        if damage < 0.15:
            return content[: number.randrange(len(content) + 1)]
        if damage < 0.35 and content:
            place = number.randrange(len(content))
            return content[:place] + number.randbytes(1) + content[place + 1 :]
        return content

    def _raw(self, number: int) -> None:
        """Send bytes that are no whole HTTP request. The server must answer or close the connection."""
        address = urlsplit(self.url)
        start = f"POST /api/v1/optim_step HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {KEY}\r\n".encode()
        content = self._random.choice(
            [
                start + b"Content-Length: 100\r\n\r\n{",
                start + b"Content-Length: -5\r\n\r\n{}",
                start + b"Content-Length: 99999999999999999999\r\n\r\n{}",
                start + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
                start + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{}",
                start + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
                start + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
                start[: self._random.randrange(len(start))],
                self._random.randbytes(200),
                b"GET /healthz HTTP/9.9\r\n\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                b"GET /api/v1/training_runs/\xff\xfe HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: \xff\r\n\r\n",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                b"",
            ]
        )
        with socket.create_connection((address.hostname or "", address.port or 0), timeout=600) as connection:
            try:
                connection.sendall(content)
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(2**16)
            except TimeoutError:
                self.failures.append(f"request {number}: no answer to the raw bytes {content[:200]!r}")
                return
            except OSError:  # the server has closed the connection before it has read all
                answer = b""
        if answer.startswith(b"HTTP/1.1 5"):
            self.failures.append(f"request {number}: {answer[:200]!r} to the raw bytes {content[:200]!r}")


def described(request: httpx.Request) -> str:
    return f"{request.method} {str(request.url)[:200]} {request.content[:1500]!r}"


def _request_id(response: httpx.Response) -> str | None:
    try:
        name = response.json().get("request_id")
    except (ValueError, AttributeError):
        return None
    return name if isinstance(name, str) else None
