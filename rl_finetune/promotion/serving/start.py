"""From settings to a server with a real policy behind it. The one file here that loads torch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from rl_finetune.config.serving import ServeConfig
from rl_finetune.errors import UserError
from rl_finetune.promotion.registry.bundle import Bundle, open_bundle
from rl_finetune.promotion.registry.registry import Registry
from rl_finetune.promotion.serving.actor import Stage
from rl_finetune.promotion.serving.server import PolicyServer, run
from rl_finetune.promotion.serving.session import Session
from rl_finetune.promotion.serving.shadow import Shadow
from rl_finetune.promotion.serving.swap import Opener, StageSettings, load
from rl_finetune.promotion.serving.swapping import Followed, said_by


def serve(config: ServeConfig, listening: Callable[[int], None] = lambda port: None) -> None:
    """Serve until SIGTERM or SIGINT; call it in the main thread.

    Args:
        config: all settings.
        listening: told the port as soon as clients can connect.

    Raises:
        UserError: nothing can be served, or others could connect without a key; nothing has been listened to.
    """
    with assembled(config) as server:
        asyncio.run(run(server, listening))


@contextmanager
def assembled(config: ServeConfig) -> Iterator[PolicyServer]:
    """A server that does not listen yet, with the bundle loaded that the settings mean.

    Raises:
        UserError: as `serve`.
    """
    torch.set_num_threads(config.acting.threads)
    acting = config.acting
    settings = StageSettings(acting.image_size, acting.temperature, acting.device, acting.keep_previous)
    trusted = [Path(key) for key in config.trusted]
    opener = partial(open_bundle, trusted=trusted, require_signature=config.require_signature)
    folder, followed = _chosen(config, trusted)
    shadow = _shadow(config, settings, opener)
    try:
        stage = Stage(folder, settings, opener=_by_digest(opener) if followed else opener, shadow=shadow)
        sessions = partial(Session, rules=stage, seed=acting.seed)
        yield PolicyServer(stage, sessions, config.serve, followed=followed, bundles=folder.resolve().parent)
    finally:
        if shadow is not None:
            shadow.close()


def _chosen(config: ServeConfig, trusted: list[Path]) -> tuple[Path, Followed | None]:
    """The folder to serve first, and the pointer to follow from there."""
    if config.bundle is not None:
        return Path(config.bundle), None
    if not Path(config.registry).is_dir():  # opening it would make it
        raise _nothing(f"no registry at {config.registry}")
    registry = Registry(Path(config.registry), trusted, config.require_signature)
    pointer = registry.pointer("promoted")
    seen = said_by(pointer)
    return _promoted(registry), Followed(pointer, lambda: _promoted(registry), seen)


def _by_digest(opener: Callable[..., Bundle]) -> Opener:
    """Of a registry, whose bundles lie under their digests: what is loaded is what was promoted."""
    return lambda folder: opener(folder, digest=folder.name)


def _promoted(registry: Registry) -> Path:
    bundle = registry.promoted()
    if bundle is None:
        raise _nothing(f"a registry without a promoted bundle: {registry.folder}")
    return bundle.folder


def _shadow(config: ServeConfig, settings: StageSettings, opener: Opener) -> Shadow | None:
    if config.shadow.bundle is None:
        return None
    log = Path(config.shadow.log)
    log.parent.mkdir(parents=True, exist_ok=True)
    candidate = load(Path(config.shadow.bundle), settings, opener)
    return Shadow(candidate, log)


def _nothing(got: str) -> UserError:
    return UserError(
        "nothing to serve", got=got, expected="a bundle, or a registry that has promoted one",
        do="name a bundle's folder, or promote one first",
    )  # fmt: skip
