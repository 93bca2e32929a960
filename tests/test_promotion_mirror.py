"""The registry at wandb: the real library offline, its habits online."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from bundles import promoted, submitted

import rl_finetune.metrics.wandb_sink as sinks
from rl_finetune.errors import UserError
from rl_finetune.promotion.registry.registry import Registry
from rl_finetune.promotion.registry.stages import STAGES
from rl_finetune.promotion.registry.wandb_mirror import mirror


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def test_wandb_offline_holds_bundles_with_their_aliases(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    a = promoted(registry, "a")
    assert mirror(registry, project="test", mode="disabled") == () and not (registry.folder / "wandb").exists()
    assert mirror(registry, project="test", mode="offline") == (a.digest,)
    assert mirror(registry, project="test", mode="offline") == ()
    (log,) = registry.folder.glob("wandb/wandb/offline-run-*/*.wandb")
    words = ("policy-bundle", f"sha256-{a.digest[:16]}", "promoted", "policy/model.safetensors")
    until = time.monotonic() + 30  # wandb's own process writes it
    while not all(word.encode() in log.read_bytes() for word in words):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert registry.verify().bundles == 1


class FakeWandb:
    """What of wandb's habits counts: one version for one content, an alias belongs to one version."""

    class Error(Exception):
        pass

    class Version:
        def __init__(self, wandb: FakeWandb, content: str) -> None:
            self.wandb, self.content, self.aliases, self.arrived = wandb, content, ["latest"], False

        def wait(self) -> None:
            if self.wandb.down:
                raise self.wandb.Error("no network")
            self.arrived = True

        def save(self) -> None:
            assert self.arrived
            for other in self.wandb.versions.values():
                if other is not self:
                    other.aliases = [alias for alias in other.aliases if alias not in self.aliases]

    class Artifact:
        def __init__(self, name: str, type: str, metadata: dict[str, str]) -> None:
            self.content = f"{name} {type} {metadata['digest']}"

        def add_dir(self, folder: str, policy: str) -> None:
            assert (Path(folder) / "manifest.json").is_file() and policy == "immutable"

    def __init__(self) -> None:
        self.versions: dict[str, FakeWandb.Version] = {}
        self.down = False
        self.sent: list[str] = []

    def Settings(self, **settings: object) -> None:
        pass

    def init(self, **settings: object) -> FakeWandb:
        return self

    def log_artifact(self, artifact: FakeWandb.Artifact, aliases: list[str]) -> FakeWandb.Version:
        self.sent.append(artifact.content)
        return self.versions.setdefault(artifact.content, self.Version(self, artifact.content))

    def finish(self) -> None:
        pass


def test_aliases_at_wandb_follow_the_stages(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setattr(sinks, "require", lambda *_, **__: fake)

    def where() -> dict[str, str]:
        return {alias: v.content[-64:] for v in fake.versions.values() for alias in v.aliases if alias in STAGES}

    a = promoted(registry, "a")
    mirror(registry, project="test", mode="online")
    assert where() == {"promoted": a.digest}
    b = promoted(registry, "b")
    c = submitted(registry, "c")
    mirror(registry, project="test", mode="online")
    assert where() == {"promoted": b.digest, "retired": a.digest, "candidate": c.digest}
    registry.rollback(by="ada")
    fake.down = True
    with pytest.raises(UserError, match="wandb did not take an artifact: got policy: no network"):
        mirror(registry, project="test", mode="online")
    fake.down = False
    fake.sent.clear()
    assert set(mirror(registry, project="test", mode="online")) == {a.digest, b.digest}
    assert where() == {"promoted": a.digest, "retired": b.digest, "candidate": c.digest}
    assert fake.sent[-1].endswith(a.digest) and mirror(registry, project="test", mode="online") == ()
