"""Under which names a server without a token is reached, which tokens it accepts, and the lines of its log."""

from __future__ import annotations

import logging

import httpx
import pytest

from tests.server.conftest import KEY
from tinkerloop.errors import TinkerloopError
from tinkerloop.loopback import check_token
from tinkerloop.server.running import ServerOptions, background_server

HEADERS = {"X-API-Key": KEY}


@pytest.mark.parametrize(
    "token", ["tml-12345678 ", "tml-1234\n5678", "tml-12345678\n", "tml-pässwörter", "tml-123\t5678"]
)
def test_a_token_that_no_client_can_send_is_refused(token):
    with pytest.raises(TinkerloopError, match="no client can send"):
        check_token("127.0.0.1", token)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_a_server_is_reached_at_the_loopback_address_where_it_listens(host, tmp_path):
    options = ServerOptions({"tiny": "tiny"}, host=host, root=tmp_path, device="cpu")
    try:
        with background_server(options) as url:
            answer = httpx.post(f"{url}/api/v1/client/config", json={}, headers=HEADERS)
            foreign = httpx.post(f"{url}/api/v1/client/config", json={}, headers={**HEADERS, "Host": "evil.example"})
    except OSError:
        pytest.skip(f"this machine has no address {host}")
    assert answer.status_code == 200, answer.text
    assert foreign.status_code == 401


@pytest.mark.parametrize("host", ["localhost", "LocalHost", "localhost:1", "[::1]", "[::1]:80", "127.0.0.1:"])
def test_the_port_and_the_case_of_a_name_do_not_matter(raw, host):
    assert raw.post("client/config", json={}, headers={"Host": host}).status_code == 200


def test_a_request_is_one_line_of_the_log(tmp_path, caplog):
    caplog.set_level(logging.INFO, "tinkerloop.server")
    with background_server(ServerOptions({"tiny": "tiny"}, root=tmp_path, device="cpu")) as url:
        httpx.get(f"{url}/api/v1/x%0A10.0.0.1 POST /api/v1/forged 200 1ms%1B[2J")
    (line,) = [entry.getMessage() for entry in caplog.records if "forged" in entry.getMessage()]
    assert "\n" not in line
    assert "\x1b" not in line
