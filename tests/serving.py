"""Asking a server over HTTP, for tests."""

from __future__ import annotations

import urllib.request

from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from benchmarks.serving import PATIENCE

KEY, ADMIN = "a key of robots, 1234", "a key of operators, 5678"


def page(port: int, path: str = "/metrics", key: str | None = None) -> str:
    """A page of the server."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    if key is not None:
        request.add_header("Authorization", f"Api-Key {key}")
    with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
        return reply.read().decode()


def status(port: int, path: str, key: str | None = None, **headers: str) -> int:
    """HTTP status of an attempt to open a websocket."""
    more = headers | ({} if key is None else {"Authorization": f"Api-Key {key}"})
    try:
        connect(f"ws://127.0.0.1:{port}{path}", additional_headers=more, open_timeout=PATIENCE).close()
    except InvalidStatus as error:
        return error.response.status_code
    return 101
