"""From settings to a server with a real policy behind it. The one file here that loads torch."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from rl_finetune.config.serving import ServeConfig
from rl_finetune.errors import UserError
from rl_finetune.promotion.registry.bundle import Bundle, bundle_digest, open_bundle
from rl_finetune.promotion.registry.registry import Registry
from rl_finetune.promotion.serving.actor import Stage
from rl_finetune.promotion.serving.registry_watch import RegistryWatch
from rl_finetune.promotion.serving.server import PolicyServer, run
from rl_finetune.promotion.serving.session import Session
from rl_finetune.promotion.serving.shadow import Shadow
from rl_finetune.promotion.serving.swap import Opener, StageSettings, load

DIGEST = re.compile(r"[0-9a-f]{64}")


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
    _check_device(acting.device)
    settings = StageSettings(acting.image_size, acting.temperature, acting.device, acting.keep_previous)
    trusted = [Path(key) for key in config.trusted]
    opener = partial(open_bundle, trusted=trusted, require_signature=config.require_signature)
    folder, watch = _chosen(config, trusted)
    shadow = _shadow(config, settings, opener, watch)
    try:
        stage = Stage(folder, settings, opener=_by_digest(opener), shadow=shadow)
        sessions = partial(Session, rules=stage, seed=acting.seed)
        yield PolicyServer(stage, sessions, config.serve, watch=watch)
    finally:
        if shadow is not None:
            shadow.close()


def _check_device(name: str) -> None:
    """Before anything is loaded: whether numbers can be put there, and come back.

    Raises:
        UserError: they cannot.
    """
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:  # torch's ways of saying it, an unknown name included
        there = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        raise UserError(
            "no such device here", got=f"acting.device={name}: {str(error).splitlines()[0][:150]}",
            expected=" | ".join(there), do="set acting.device",
        ) from error  # fmt: skip


def _chosen(config: ServeConfig, trusted: list[Path]) -> tuple[Path, RegistryWatch]:
    """The folder to serve first, and who says whether it may act: the registry that it lies in, else the settings'."""
    registry = Registry(Path(config.registry), trusted, config.require_signature)
    if config.bundle is None:
        watch = RegistryWatch(registry)
        promoted = watch.status().promoted
        if promoted is None:
            raise _nothing(f"a registry without a promoted bundle: {config.registry}")
        _check_may_act(watch, promoted)
        return watch.folder(promoted), watch
    folder = Path(config.bundle)
    around = folder.resolve().parent.parent
    if (around / registry.ledger.path.name).is_file():
        registry = replace(registry, folder=around)
    digest = bundle_digest(folder)
    watch = RegistryWatch(registry, named=digest)
    _check_may_act(watch, digest)
    return folder, watch


def _check_may_act(watch: RegistryWatch, digest: str) -> None:
    against = watch.objection(watch.status(), digest)
    if against:
        raise UserError(
            f"bundle {digest[:12]} may not act", got=against, expected="one that nothing is known against",
            do="serve another one; `rl-finetune promote status` says where each stands",
        )  # fmt: skip


def _by_digest(opener: Callable[..., Bundle]) -> Opener:
    """Bundles of a registry lie under their digests: what is loaded is what the ledger speaks of."""
    return lambda folder: opener(folder, digest=folder.name if DIGEST.fullmatch(folder.name) else None)


def _shadow(config: ServeConfig, settings: StageSettings, opener: Opener, watch: RegistryWatch) -> Shadow | None:
    if config.shadow.bundle is None:
        return None
    folder = Path(config.shadow.bundle)
    standing = watch.status().standing(bundle_digest(folder))
    if standing is not None and (standing.rejected or standing.stage == "retired"):
        raise UserError(
            "shadow is retired or rejected", got=f"{folder}, {standing.digest[:12]}", expected="a candidate",
            do="name another one, or none",
        )  # fmt: skip
    log = Path(config.shadow.log)
    log.parent.mkdir(parents=True, exist_ok=True)
    return Shadow(load(folder, settings, opener), log)


def _nothing(got: str) -> UserError:
    return UserError(
        "nothing to serve", got=got, expected="a bundle, or a registry that has promoted one",
        do="name a bundle's folder, or promote one first",
    )  # fmt: skip
