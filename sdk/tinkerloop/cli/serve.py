"""Serve the embedded engine over Tinker's HTTP API, so that the unmodified `tinker` client can use it.

Programs use the server with TINKER_BASE_URL set to its URL, and TINKER_API_KEY set to its token (without a token: to
any key that begins with "tml-"). SIGTERM or Ctrl-C stops the server after it has executed the queued requests.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys

from tinkerloop.cli.engine_options import add_engine_arguments, read_models
from tinkerloop.cli.number_options import at_least
from tinkerloop.cli.text_options import non_empty
from tinkerloop.loopback import check_token

TOKEN_VARIABLE = "TINKERLOOP_SERVER_TOKEN"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", type=non_empty, default="127.0.0.1", help="The address to listen on (default: 127.0.0.1)."
    )
    parser.add_argument("--port", type=port, default=8787, help="The port (default: 8787); 0 takes a free one.")
    add_engine_arguments(parser)
    parser.add_argument(
        "--token",
        type=non_empty,
        help='The key that every user must have; it begins with "tml-". It is needed on any address that other '
        f"machines can reach. The default is the environment variable {TOKEN_VARIABLE}: other users of this machine "
        "can read the arguments of a command, but not its environment.",
    )
    parser.add_argument(
        "--max-sessions", type=at_least(1), default=64, help="The largest number of sessions (default: 64)."
    )
    parser.add_argument(
        "--max-models", type=at_least(1), default=32, help="The largest number of models in training (default: 32)."
    )
    parser.add_argument(
        "--max-samplers",
        type=at_least(1),
        default=32,
        help="The largest number of samplers of one session; the least recently used one is freed (default: 32).",
    )
    parser.add_argument(
        "--max-body-mib", type=at_least(1), default=64, help="The largest size of a request (default: 64)."
    )
    parser.add_argument(
        "--silent-seconds",
        type=at_least(30),  # living programs call every 10 seconds
        default=300,
        help="The time after which a session whose program has been killed ends and is freed (default: 300).",
    )
    parser.add_argument("--quiet", action="store_true", help="Do not log the requests.")


def port(written: str) -> int:
    """Return a port for argparse's `type=`."""
    if not written.isdecimal() or int(written) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {written!r}")
    return int(written)


def run(arguments: argparse.Namespace) -> int:
    models = read_models(arguments.model)
    if not models:
        print("tinkerloop serve: no base model is given, so nothing can be trained; pass --model", file=sys.stderr)
        return 2
    token = arguments.token or os.environ.get(TOKEN_VARIABLE) or None
    check_token(arguments.host, token)
    # What is wrong is refused before these imports, which take seconds.
    from tinkerloop.server.running import ServerOptions, run_server
    from tinkerloop.server.sessions import ServerLimits

    limits = ServerLimits(
        sessions=arguments.max_sessions,
        models=arguments.max_models,
        samplers=arguments.max_samplers,
        body_bytes=arguments.max_body_mib * 2**20,
        silent_seconds=arguments.silent_seconds,
    )
    options = ServerOptions(
        models=models,
        host=arguments.host,
        port=arguments.port,
        root=arguments.root,
        device=arguments.device,
        dtype=arguments.dtype,
        token=token,
        limits=limits,
    )
    logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("tinkerloop.server").setLevel(logging.WARNING if arguments.quiet else logging.INFO)
    run_server(options, lambda url: print(f"serving {', '.join(models)} at {url}", flush=True))
    return 0
