"""Settings of the policy server."""

from __future__ import annotations

from pydantic import Field

from rl_finetune.config.section import Section


class NetworkSection(Section):
    """Who may connect, and how much each may cost."""

    host: str = "127.0.0.1"
    """Address to listen on; anything but loopback needs an API key."""
    port: int = Field(8000, ge=0, le=65535)
    """Port; 0 takes a free one."""
    api_key_env: str = "RL_FINETUNE_API_KEY"
    """Environment variable that holds the key of robot clients; unset is no key."""
    api_key_file: str | None = None
    """File that holds it instead."""
    admin_key_env: str = "RL_FINETUNE_ADMIN_KEY"
    """Environment variable that holds the key for swapping and rolling back over the network; unset is no such way."""
    connections: int = Field(64, ge=1)
    """Clients at a time."""
    connections_per_address: int = Field(32, ge=1)
    """Clients at a time from one address."""
    knocking: int = Field(128, ge=1)
    """Sockets that may be in the opening handshake; of more, the address with the most loses its oldest."""
    open_timeout: float = Field(5.0, gt=0)
    """Seconds that an opening handshake may take."""
    message_timeout: float = Field(5.0, gt=0)
    """Seconds from the first byte of a message to its last, and that a reply may take to leave."""
    idle_timeout: float = Field(600.0, gt=0)
    """Seconds without a message after which a client is let go."""
    ping_interval: float = Field(20.0, gt=0)
    """Seconds between keepalive pings; a pong may take as long."""
    drain: float = Field(10.0, ge=0)
    """Seconds that requests under way may take to finish when the server is stopped."""


class BatchingSection(Section):
    """How requests of several clients meet."""

    max_batch: int = Field(8, ge=1)
    """Most requests that the policy computes together."""
    max_wait: float = Field(0.005, ge=0)
    """Seconds that a free policy waits for more requests, while a client that could ask has not."""
    deadline: float = Field(10.0, gt=0)
    """Seconds after which a request that has not been computed is given up, and its robot held; the bundle's
    `stale_after`, if that is less."""


class ReadingSection(Section):
    """What a message may say."""

    prompt_chars: int = Field(500, ge=1, le=4096)
    """Longest instruction."""
    largest_side: int = Field(1280, ge=8, le=8192)
    """Pixels of the longer side of a picture. The longest message follows from it: as many such pictures as the bundle
    has cameras, in float64, and 1 MiB for the rest; 40 MB a camera at 1280 pixels. Each client may have about three of
    them in the server's memory."""


class ServeSection(Section):
    """The server in front of the policy."""

    network: NetworkSection = NetworkSection()
    """Who may connect."""
    batching: BatchingSection = BatchingSection()
    """How requests meet."""
    reading: ReadingSection = ReadingSection()
    """What they may say."""
    follow: float = Field(1.0, gt=0)
    """Seconds between looks at the registry: a bundle that is promoted takes over, and one that is retired or rejected
    drives nobody any more."""


class ActingSection(Section):
    """How the policy acts."""

    image_size: int | None = Field(None, ge=8)
    """Side of the square pictures that the policy is shown, pixels, to which a robot's are scaled; null is what the
    bundle was judged with."""
    temperature: float | None = Field(None, ge=0)
    """Scale of the initial noise; null is what the bundle was judged with."""
    seed: int = Field(1_000_003, ge=0)
    """Seed of the noise where a client brings none."""
    device: str = "cpu"
    """Where the policy is put, as torch names it."""
    threads: int = Field(1, ge=1)
    """CPU threads of one inference."""
    keep_previous: bool = True
    """Keep the bundle before in memory, so that a rollback needs no loading."""


class ShadowSection(Section):
    """A candidate that sees what the acting bundle sees, and is not obeyed."""

    bundle: str | None = None
    """Folder of the candidate; null is none."""
    log: str = "runs/shadow.jsonl"
    """Differences, one line a chunk."""


class ServeConfig(Section):
    """Everything that `rl-finetune serve` does."""

    bundle: str | None = None
    """Folder of the bundle to serve; null serves what the registry has promoted, and follows it."""
    registry: str = "runs/registry"
    """Folder of the registry; not looked at where a bundle is named."""
    trusted: list[str] = []
    """Public keys (PEM) whose signatures count."""
    require_signature: bool = False
    """Serve nothing that none of them has signed."""
    acting: ActingSection = ActingSection()
    """How the policy acts."""
    shadow: ShadowSection = ShadowSection()
    """Who watches."""
    serve: ServeSection = ServeSection()
    """The server."""
