"""What a socket is told before it becomes a client: health, metrics, keys and places."""

from __future__ import annotations

import http
from collections.abc import Callable
from functools import partial

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from rl_finetune.promotion.serving.access import Key, Places
from rl_finetune.promotion.serving.connection import GuardedConnection
from rl_finetune.promotion.serving.metrics import CONTENT_TYPE

CLIENT, ADMIN, HEALTH, METRICS = "/", "/admin", "/healthz", "/metrics"


class Front:
    """Answers opening handshakes."""

    def __init__(
        self,
        key: Key | None,
        admin: Key | None,
        places: Places,
        refused: Callable[[str, str], None],
        page: Callable[[], str],
    ) -> None:
        """Know whom to let in.

        Args:
            key: of clients; None lets everyone in.
            admin: of operators; None is no way in for them.
            places: how many clients.
            refused: told the kind of each refusal, and its words.
            page: text of the metrics.
        """
        self.stopping = False
        """Whether to take no more clients."""
        self.held: Callable[[], str] = str
        """Why every robot is held; empty where they are not."""
        self._key, self._admin, self._places, self._refused, self._page = key, admin, places, refused, page

    def admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """None lets a client in; anything else is what it is told instead."""
        path = request.path
        if path == HEALTH:
            return self._health(connection)
        key = self._admin if path == ADMIN else self._key
        if path not in (CLIENT, METRICS, ADMIN) or (path == ADMIN and key is None):
            return self._refuse(connection, 404, "path", f"expected {CLIENT}, {HEALTH} or {METRICS}")
        said = request.headers.get_all("Authorization")
        if key is not None and not key.opens(said[0] if len(said) == 1 else None):
            return self._refuse(connection, 401, "key", "wrong or missing key; expected Authorization: Api-Key KEY")
        if path == METRICS:
            response = connection.respond(http.HTTPStatus.OK, self._page())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = CONTENT_TYPE
            return response
        return self._seat(connection, counted=path == CLIENT)

    def _health(self, connection: ServerConnection) -> Response:
        if self.stopping:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "stopping\n")
        if held := self.held():
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, f"every robot is held: {held}\n")
        return connection.respond(http.HTTPStatus.OK, "OK\n")

    def _seat(self, connection: ServerConnection, counted: bool) -> Response | None:
        """Let it in; an operator needs no place, so that full rooms cannot keep him out."""
        assert isinstance(connection, GuardedConnection)
        if self.stopping:
            return self._refuse(connection, 503, "stopping", "the server is being stopped")
        if not counted:
            connection.seat(lambda: None)
            return None
        full = self._places.take(connection.address)
        if full is not None:
            return self._refuse(connection, 503, "full", full)
        connection.seat(partial(self._places.give_back, connection.address))
        return None

    def _refuse(self, connection: ServerConnection, status: int, kind: str, text: str) -> Response:
        self._refused(kind, text)
        response = connection.respond(http.HTTPStatus(status), f"{text}\n")
        if status == http.HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = "Api-Key"
        return response
