"""Hot swaps and rollbacks of real policies while robots ask without pause: nobody is refused, nobody gets a mixture.

    python -m benchmarks.bench_swap [--seconds 60] [--robots 3] [--out benchmarks/results/swap.json]

Two bundles, the shipped policy and one whose decoder's weights are each off by 2 %, take turns: swap, rollback, swap,
every few tenths of a second. Every robot asks for the first chunk of an episode of its own
again and again, and knows what it must be told by the bundle that the reply names. The exit status is 1 unless every
request was answered with the chunk of exactly that bundle.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import envs
from benchmarks.serving import PATIENCE, Robot, listening
from rl_finetune.config.serving import ActingSection, BatchingSection, NetworkSection, ServeConfig, ServeSection
from rl_finetune.policy import QwenVLAPolicy
from rl_finetune.promotion.records import Limits
from rl_finetune.promotion.registry.bundle import Bundle, make_bundle
from rl_finetune.promotion.registry.contents import Acted, Provenance
from rl_finetune.promotion.serving.start import assembled
from rl_finetune.types import FloatArray, Observation, SeedKeys

POLICY = Path(__file__).resolve().parents[1] / "checkpoints" / "qwen-vla-tiny"
WORLD, SEED, TEMPERATURE = "widowx_reach", 1_000_003, 0.6
FREE = {"widowx": Limits(low=(-9.0,) * 7, high=(9.0,) * 7, stale_after=PATIENCE)}
"""An envelope that changes nothing: what arrives is what the policy said."""
ROUNDING = 1e-5
"""A chunk may differ by so much with the robots that it shares a batch with."""
TURN = 0.2
"""Seconds that a bundle acts before the next change is ordered."""


@dataclass
class Score:
    """What happened."""

    robots: int
    seconds: float
    swaps: int = 0
    rollbacks: int = 0
    answered: int = 0
    """Requests answered with the chunk of the bundle that the reply names."""
    failed: list[str] = field(default_factory=list)
    """The others, in words."""
    by_bundle: dict[str, int] = field(default_factory=dict)
    """Digest -> requests it answered."""
    apart: float = 0.0
    """Smallest distance between the two bundles' chunks for the same robot, largest number of each."""
    farthest: float = 0.0
    """Largest distance of an answer from the chunk that it must be."""
    change_seconds: list[float] = field(default_factory=list)
    """How long each change took, verification, loading and warming included."""
    slowest_reply: float = 0.0
    """Seconds."""


def main() -> int:
    """Serve, swap, compare; print and write."""
    parser = argparse.ArgumentParser(description="hot swaps under load")
    parser.add_argument("--seconds", type=float, default=60.0, help="of load (default 60)")
    parser.add_argument("--robots", type=int, default=3, help="that ask without pause (default 3)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        score = measure(Path(folder), args.robots, args.seconds)
    low, high = np.percentile(score.change_seconds, [50, 100])
    report = asdict(score) | {"change_seconds": {"p50": low, "largest": high}, "failures": len(score.failed)}
    text = json.dumps(report | {"failed": score.failed[:20]}, indent=2) + "\n"
    print(text, end="")
    if args.out:
        args.out.write_text(text)
    return 1 if score.failed or len(score.by_bundle) < 2 else 0


def measure(folder: Path, robots: int, seconds: float) -> Score:
    """All of it, in one process."""
    bundles = _bundles(folder)
    seen = [_seen(number) for number in range(robots)]
    right = {bundle.digest: [_chunk(bundle, number, seen[number]) for number in range(robots)] for bundle in bundles}
    score = Score(robots, seconds)
    score.apart = min(float(np.abs(a - b).max()) for a, b in zip(*right.values(), strict=True))
    config = ServeConfig(
        bundle=str(bundles[0].folder), acting=ActingSection(seed=SEED),
        serve=ServeSection(network=NetworkSection(port=0), batching=BatchingSection(deadline=PATIENCE)),
    )  # fmt: skip
    lock, stop = threading.Lock(), threading.Event()

    def drive(number: int, port: int) -> None:
        robot, said = Robot(port), _said(number, seen[number])
        while not stop.is_set():
            since = time.perf_counter()
            reply = robot.send(said)
            with lock:
                _count(score, reply, [chunks[number] for chunks in right.values()], list(right))
                score.slowest_reply = max(score.slowest_reply, time.perf_counter() - since)
        robot.close()

    with assembled(config) as server, listening(server) as (port, _):
        threads = [threading.Thread(target=drive, args=(number, port)) for number in range(robots)]
        for thread in threads:
            thread.start()
        _change(server, bundles, score, time.monotonic() + seconds)
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
    return score


def _change(server: Any, bundles: list[Bundle], score: Score, end: float) -> None:
    """Swap and roll back in turns."""
    loop = server._server.get_loop()
    while time.monotonic() < end:
        forth = score.swaps == score.rollbacks
        since = time.perf_counter()
        change = server.swapper.swap(bundles[1].folder) if forth else server.swapper.rollback()
        acting = asyncio.run_coroutine_threadsafe(change, loop).result(PATIENCE)
        score.change_seconds.append(time.perf_counter() - since)
        score.swaps, score.rollbacks = score.swaps + forth, score.rollbacks + (not forth)
        if acting != bundles[forth].digest:
            score.failed.append(f"change {len(score.change_seconds)} ended with {acting[:12]}")
        time.sleep(TURN)


def _count(score: Score, reply: Any, chunks: list[FloatArray], digests: list[str]) -> None:
    if isinstance(reply, str):
        score.failed.append(reply)
        return
    far = float(np.abs(reply["actions"] - chunks[digests.index(reply["bundle"])]).max())
    score.farthest = max(score.farthest, far)
    if far > ROUNDING or reply["held"] or reply["interventions"]:
        score.failed.append(f"{far} from the chunk of {reply['bundle'][:12]}, held {reply['held']}")
        return
    score.answered += 1
    score.by_bundle[reply["bundle"]] = score.by_bundle.get(reply["bundle"], 0) + 1


def _bundles(folder: Path) -> list[Bundle]:
    """The shipped policy, and one that is nearly the same."""
    other, rng = QwenVLAPolicy.from_pretrained(POLICY), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in other.decoder.parameters():
            weights.mul_(1 + 0.02 * torch.randn(weights.shape, generator=rng))
    other.save_pretrained(folder / "other")
    return [
        make_bundle(
            policy, folder / name, name=name, provenance=Provenance("benchmark"), limits=FREE,
            acted=Acted(envs.spec(WORLD).image_size, TEMPERATURE),
        )
        for name, policy in (("shipped", POLICY), ("off", folder / "other"))
    ]  # fmt: skip


def _seen(episode: int) -> Observation:
    with envs.make(WORLD, 1) as env:
        return env.reset(_keys(episode))


def _chunk(bundle: Bundle, episode: int, seen: Observation) -> FloatArray:
    """What an evaluation would do: [H, c]."""
    policy = bundle.load([envs.spec(WORLD)])
    body = policy.body("widowx")
    acted = policy.act(policy.look(seen), _keys(episode), np.zeros(1, np.int64), body, TEMPERATURE)
    chunk: FloatArray = acted.actions[0, :, : body.action.channels]
    return chunk


def _said(episode: int, seen: Observation) -> dict[str, object]:
    pictures = {f"observation/{view}": image[0] for view, image in seen.images.items()}
    return pictures | {"prompt": seen.instruction[0], "episode": episode, "reset": True}


def _keys(episode: int) -> SeedKeys:
    return SeedKeys(SEED, np.array([episode]), np.zeros(1, np.int64))


if __name__ == "__main__":
    raise SystemExit(main())
