"""How the errors of `tinkerloop serve` begin when a server, or what it held, is gone: so its clients recognise them.

The server begins these errors with the texts, and `lost_server.is_lost` looks for them. An error with one of them means
that the run can go on from its newest record once a server is there.
"""

from __future__ import annotations

NO_SESSION = "this server has no session"
NO_MODEL = "this server has no model"
NO_SAMPLER = "this server has no sampler"
SESSION_ENDED = "the session has ended"
STOPPING = "the server is being stopped"
STOPPED = "the server has stopped"

GONE = (NO_SESSION, NO_MODEL, NO_SAMPLER, SESSION_ENDED, STOPPING, STOPPED)
