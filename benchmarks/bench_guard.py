"""What the server's safety envelope costs a policy: the same held-out episodes with it and without.

    python -m benchmarks.bench_guard checkpoints/qwen-vla-tiny widowx_reach [--episodes 40]

Prints success of both, paired; how many control steps the envelope changed, and why; steps beyond a limit, before and
after it, of which there must be none after it.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import envs
from actors.guarding import Guards
from actors.playing import Alone
from actors.watching import MotionLog
from rl_finetune.config.schema import EvaluationSection, PolicySection
from rl_finetune.config.worlds import EnvSection
from rl_finetune.metrics.intervals import paired_gain
from rl_finetune.promotion.evidence import limits_for
from rl_finetune.promotion.evidence.guarding import Envelopes
from rl_finetune.promotion.evidence.motion import audit
from rl_finetune.promotion.records import MotionAudit
from rl_finetune.types import BoolArray

BATCH = 20
"""Environments side by side."""


def main() -> None:
    """Play and print."""
    parser = argparse.ArgumentParser(description="a policy with and without the safety envelope")
    parser.add_argument("policy", help="its folder")
    parser.add_argument("world", help="registered name")
    parser.add_argument("--episodes", type=int, default=40)
    args = parser.parse_args()
    body = envs.spec(args.world).embodiment
    limits = limits_for(body.tag)
    (success, log, seconds), (free, raw, quicker) = (
        _played(args.policy, args.world, args.episodes, guards) for guards in (Envelopes({body.tag: limits}), None)
    )
    told, asked = (audit(each, body, limits, args.world) for each in (log, raw))
    print(f"{args.world}, {args.episodes} episodes, guarded against unguarded: {paired_gain(free, success)}")
    print(f"successes: {success.sum()} guarded in {seconds:.0f} s, {free.sum()} unguarded in {quicker:.0f} s")
    print(
        f"changed: {told.changed} of {told.steps} steps ({told.changed / told.steps:.1%}), {dict(told.interventions)}"
    )
    for name, found in (("unguarded", asked), ("guarded", told)):
        print(f"beyond limits {name}: {_beyond(found)} of {found.steps} steps")


def _played(policy: str, world: str, episodes: int, guards: Guards | None) -> tuple[BoolArray, MotionLog, float]:
    (place,) = EnvSection(name=world, num_envs=min(BATCH, episodes)).worlds()
    began = time.perf_counter()
    with Alone(PolicySection(path=policy), [place], EvaluationSection(), guards=guards) as company:
        (part,) = company.play(0, [np.arange(episodes)], watch=True)
    assert part.motion is not None
    return part.results.success, part.motion, time.perf_counter() - began


def _beyond(found: MotionAudit) -> dict[str, int]:
    return dict(found.over) | {"self_collision": found.self_collisions}


if __name__ == "__main__":
    main()
