"""Where learners meet to form their process group."""

from __future__ import annotations

import socket
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """An address for `torch.distributed`."""

    url: str
    """`file://...` within one machine (nothing listens), `tcp://host:port` across machines."""
    interface: str | None
    """Network device for the traffic; None leaves the choice to the backend."""


def offer_tcp() -> Rendezvous:
    """A free port of this machine, reachable from the cluster."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    return Rendezvous(f"tcp://{socket.gethostbyname(socket.gethostname())}:{port}", interface=None)
