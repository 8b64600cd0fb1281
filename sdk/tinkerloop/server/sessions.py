"""Sessions, and the models and samplers that belong to each. A session that ends frees them.

The client opens a session, sends a heartbeat every ten seconds, and closes the session at the end of the program. A
program that was killed sends nothing more, so a session also ends when it has been silent for some minutes.
"""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from tinkerloop.gone_texts import NO_SESSION, SESSION_ENDED
from tinkerloop.local import SamplingClient
from tinkerloop.local.request_errors import bad_request, not_found
from tinkerloop.local.runtime.engine import EngineRun, Sampler
from tinkerloop.local.runtime.request_future import RequestFuture
from tinkerloop.server.request_ids import session_of
from tinkerloop.server.request_order import RequestOrder


@dataclass(frozen=True)
class ServerLimits:
    """The largest numbers and sizes that a server accepts, and the time after which a silent session ends."""

    sessions: int = 64
    models: int = 32
    """Models that are trained at the same time, in all sessions. Each has its weights, gradients and moments."""
    samplers: int = 32
    """Samplers of one session. When it opens another one, the least recently used one is freed."""
    body_bytes: int = 64 * 2**20
    held_bytes: int = 2**30
    """Memory of the requests of one session that wait for an earlier one."""
    samples: int = 4096
    """Samples of one call."""
    rank: int = 512
    silent_seconds: float = 300.0


@dataclass
class HostedModel:
    """A model of a session that is trained, with the order of its requests. `run` is None until it has been created."""

    order: RequestOrder = field(default_factory=RequestOrder)
    run: EngineRun | None = None


@dataclass
class HostedSampler:
    """A sampling client of a session, with what the client asks about it."""

    client: SamplingClient
    base_model: str
    path: str | None


@dataclass
class Session:
    """One program that uses the server."""

    id: str
    user_metadata: dict[str, str] | None
    display_name: str | None
    seen: float
    models: dict[str, HostedModel] = field(default_factory=dict)
    samplers: OrderedDict[str, HostedSampler] = field(default_factory=OrderedDict)
    """The least recently used sampler is the first."""
    opening: dict[str, RequestFuture[Sampler]] = field(default_factory=dict)
    """Samplers that are being loaded, or that the client has not asked for again since they were."""


class Sessions:
    """All sessions. Use it only on the event loop's thread."""

    def __init__(self, limits: ServerLimits):
        self._limits = limits
        self._sessions: dict[str, Session] = {}

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def open(self, user_metadata: dict[str, str] | None, display_name: str | None) -> Session:
        """Return a new session.

        Raises:
            tinker.BadRequestError: the server has as many sessions as it accepts.
        """
        if len(self._sessions) >= self._limits.sessions:
            raise bad_request(
                f"this server has {len(self._sessions)} sessions, which is its limit; {self._when_a_session_ends}"
            )
        session = Session(str(uuid.uuid4()), user_metadata, display_name, time.monotonic())
        self._sessions[session.id] = session
        return session

    def find(self, session_id: str) -> Session | None:
        """Return a session, which counts as a sign of life. Return None if it has ended."""
        session = self._sessions.get(session_id)
        if session is not None:
            session.seen = time.monotonic()
        return session

    def get(self, session_id: str) -> Session:
        """Return a session, which counts as a sign of life.

        Raises:
            tinker.NotFoundError: there is no such session.
        """
        session = self.find(session_id)
        if session is None:
            raise not_found(
                f"{NO_SESSION} {session_id}: it has ended, or the server was started again; create a new "
                "ServiceClient, and continue from your newest checkpoint"
            )
        return session

    def close(self, session_id: str) -> None:
        """End a session and free its models and samplers. Requests that wait for an earlier one fail."""
        session = self._sessions.pop(session_id, None)
        for model in session.models.values() if session else ():
            model.order.fail_waiting(SESSION_ENDED)

    def expired(self, now: float) -> list[str]:
        """Return the sessions that have been silent for too long at the time `now` (of `time.monotonic`)."""
        return [s.id for s in self if now - s.seen > self._limits.silent_seconds]

    def held_bytes(self, model_id: str) -> int:
        """Return the memory of the requests that wait for an earlier one, of all models of the model's session."""
        session = self._sessions[session_of(model_id)]
        return sum(model.order.held_bytes for model in session.models.values())

    def excuse(self, paused: float, now: float) -> None:
        """Do not count `paused` seconds, which end at the time `now`, as silence or as waiting."""
        for session in self:
            session.seen = min(session.seen + paused, now)
            for model in session.models.values():
                model.order.excuse(paused, now)

    def model(self, model_id: str) -> HostedModel | None:
        session = self.find(session_of(model_id))
        return session.models.get(model_id) if session else None

    def sampler(self, sampler_id: str) -> HostedSampler | None:
        session = self.find(session_of(sampler_id))
        if session is None or sampler_id not in session.samplers:
            return None
        session.samplers.move_to_end(sampler_id)
        return session.samplers[sampler_id]

    def check_room_for_model(self) -> None:
        """Raise tinker.BadRequestError if the server trains as many models as it accepts."""
        models = sum(len(session.models) for session in self)
        if models >= self._limits.models:
            raise bad_request(
                f"this server trains {models} models, which is its limit; a model is freed when its session ends: "
                f"{self._when_a_session_ends}"
            )

    @property
    def _when_a_session_ends(self) -> str:
        return (
            f"a session ends when its program closes the ServiceClient, or {self._limits.silent_seconds:.0f} seconds "
            "after the program was killed"
        )

    def add_sampler(self, session: Session, sampler_id: str, sampler: HostedSampler) -> None:
        """Add a sampler. If the session then has too many, free the least recently used one."""
        session.samplers[sampler_id] = sampler
        while len(session.samplers) > self._limits.samplers:
            session.samplers.popitem(last=False)
