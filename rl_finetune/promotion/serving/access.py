"""Who may connect: keys, loopback, and how many at a time."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rl_finetune.config.serving import NetworkSection
from rl_finetune.errors import UserError

SCHEME = "Api-Key "
"""What openpi's clients write before the key in `Authorization`."""
LEAST_KEY = 16
"""Characters of a key."""


@dataclass(frozen=True, slots=True)
class Key:
    """A secret that is only ever compared; it is not shown, not even in a traceback."""

    secret: bytes = field(repr=False)

    def opens(self, authorization: str | None) -> bool:
        """Whether an `Authorization` header carries it; the time taken does not depend on where they differ."""
        said = (authorization or "").encode("utf-8", "surrogateescape")
        return hmac.compare_digest(said, SCHEME.encode() + self.secret)


def client_key(network: NetworkSection) -> Key | None:
    """The key of robot clients, or None where everyone on this machine may connect.

    Raises:
        UserError: it cannot be read, is too short, or is missing where others than this machine can connect.
    """
    file = network.api_key_file
    key = _from_variable(network.api_key_env) if file is None else _read(Path(file))
    if key is None and not is_loopback(network.host):
        raise UserError(
            "a server that others can reach needs an API key", got=f"host {network.host} without a key",
            expected=f"{network.api_key_env} in the environment, or serve.network.api_key_file",
            do="set one, or listen on 127.0.0.1",
        )  # fmt: skip
    return key


def admin_key(network: NetworkSection) -> Key | None:
    """The key for swapping and rolling back over the network; None is no such way.

    Raises:
        UserError: it is too short.
    """
    return _from_variable(network.admin_key_env)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Places:
    """Connections of clients, in all and by address."""

    def __init__(self, most: int, most_per_address: int) -> None:
        self._most, self._most_per_address = most, most_per_address
        self._taken: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        """Connections in all."""
        return self._taken.total()

    def take(self, address: str) -> str | None:
        """Take a place; where there is none, a line that says why."""
        if self.taken >= self._most:
            return f"too many clients: got {self.taken} connected; expected fewer than {self._most}; try again later"
        if self._taken[address] >= self._most_per_address:
            got = f"got {self._taken[address]} connected; expected fewer than {self._most_per_address}"
            return f"too many clients from this address: {got}; close one first"
        self._taken[address] += 1
        return None

    def give_back(self, address: str) -> None:
        """A connection that had a place has ended."""
        self._taken[address] -= 1
        if not self._taken[address]:
            del self._taken[address]


def _read(path: Path) -> Key | None:
    try:
        return _checked(path.read_text().strip(), f"file {path}")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            "API key cannot be read", got=f"{path}: {type(error).__name__}", expected="a text file with the key",
            do="correct serve.network.api_key_file",
        ) from error  # fmt: skip


def _from_variable(name: str) -> Key | None:
    secret = os.environ.get(name)
    return None if secret is None else _checked(secret, f"variable {name}")


def _checked(secret: str, where: str) -> Key:
    if len(secret) < LEAST_KEY or not (secret.isascii() and secret.isprintable()):
        raise UserError(
            "API key is too easy to guess, or no header can carry it", got=f"{len(secret)} characters in {where}",
            expected=f"at least {LEAST_KEY} printable ASCII characters",
            do='make one: python -c "import secrets; print(secrets.token_urlsafe(32))"',
        )  # fmt: skip
    return Key(secret.encode())
