"""The policy server under attack, while honest robots are served and checked.

    python -m benchmarks.fuzz_server [SECONDS, default 600] [--seed 0] [--out fuzz.json]

The server runs in a process of its own, with the instant policy of `benchmarks.serving` behind it. Strangers choose
among `benchmarks.attacks` for the whole time. Two robots ask without pause and compare every chunk with the one that is
theirs; a third connects, asks and leaves, again and again. The exit status is 1 unless all of them were served without
a fault, no stranger was left hanging, the server stands, and its memory has not grown by more than --memory MB beyond
what it had after its first seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.attacks import ATTACKS, Target
from benchmarks.serving import InstantStage, PlainSession, Robot
from rl_finetune.config.serving import BatchingSection, NetworkSection, ReadingSection, ServeSection
from rl_finetune.promotion.serving.server import PolicyServer, run

ROOT = Path(__file__).resolve().parents[1]
HANG = 2.0
"""Seconds that a message may take; a machine that is busy otherwise may hold up an honest robot's that long."""
STRANGERS, REGULARS = 6, 2
COUNTING = threading.Lock()
SETTINGS = ServeSection(
    network=NetworkSection(port=0, open_timeout=20, message_timeout=HANG, idle_timeout=30),
    batching=BatchingSection(deadline=60),
    reading=ReadingSection(largest_side=256),
)


@dataclass
class Score:
    """What happened."""

    seconds: float
    seed: int
    honest: int = 0
    """Requests of honest robots that were answered rightly."""
    failures: list[str] = field(default_factory=list)
    """The others; the first twenty in words."""
    failed: int = 0
    visits: int = 0
    """Connections that an honest visitor opened, used and closed."""
    attacks: dict[str, dict[str, int]] = field(default_factory=dict)
    """Attack -> what it met -> how often."""
    memory_before: float = 0.0
    """MB resident after the first seconds of attack."""
    memory_after: float = 0.0
    memory_peak: float = 0.0
    refused: dict[str, float] = field(default_factory=dict)
    """The server's own count, by kind."""
    log: str = ""
    """What the server wrote beside refusals: nothing that a stranger does is worth more."""
    refusals: int = 0
    """Lines of refusals that it wrote."""
    exit_status: int | None = None
    """Of the server, after SIGTERM."""

    def fail(self, why: str) -> None:
        """One honest request that went wrong."""
        with COUNTING:
            self.failed += 1
            self.failures = [*self.failures, why][:20]

    def holds(self, memory: float) -> bool:
        """Whether the server did what it promises."""
        served = not self.failed and self.honest > 0 and self.visits > 0
        unmoved = not self.log and self.exit_status == 0 and "internal" not in self.refused
        hanging = any("left hanging" in met for met in self.attacks.values())
        return served and unmoved and not hanging and self.memory_after - self.memory_before < memory


def main() -> int:
    """Attack, and say how it went."""
    parser = argparse.ArgumentParser(description="the policy server under attack")
    parser.add_argument("seconds", type=float, nargs="?", default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--memory", type=float, default=64.0, help="MB that the server may grow by (default 64)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return 0
    score = fuzz(args.seconds, args.seed)
    text = json.dumps(asdict(score), indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")
    return 0 if score.holds(args.memory) else 1


def serve() -> None:
    """The process under attack: prints its port."""
    server = PolicyServer(InstantStage(image_size=64), PlainSession, SETTINGS)
    asyncio.run(run(server, lambda port: print(port, flush=True)))


def fuzz(seconds: float, seed: int) -> Score:
    """Attack for some seconds.

    Args:
        seconds: wall time; the server's start is not counted.
        seed: of every choice that the strangers make.
    """
    score, stop = Score(seconds, seed), threading.Event()
    command = [sys.executable, "-m", "benchmarks.fuzz_server", "--serve"]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        port = int(process.stdout.readline())
        target = Target(port, 1.5 * HANG)
        threads = [threading.Thread(target=stranger, args=(target, score, stop, seed, i)) for i in range(STRANGERS)]
        threads += [threading.Thread(target=regular, args=(port, score, stop, i)) for i in range(REGULARS)]
        threads += [threading.Thread(target=visitor, args=(port, score, stop))]
        for thread in threads:
            thread.start()
        stop.wait(min(seconds / 4, 10))
        score.memory_before = memory(process.pid, "VmRSS")
        stop.wait(seconds - min(seconds / 4, 10))
        stop.set()
        for thread in threads:
            thread.join(60)
        finish(process, port, score)
        log.seek(0)
        lines = log.read().splitlines()
        score.refusals = sum(line.startswith("refused (") for line in lines)
        score.log = "\n".join(line for line in lines if not line.startswith("refused ("))[-2000:]
    return score


def finish(process: subprocess.Popen[str], port: int, score: Score) -> None:
    """Read what the server says of itself, and stop it."""
    try:
        if any_left := Robot(port).honest(1, 64):
            score.fail(f"afterwards: {any_left}")
        score.memory_after, score.memory_peak = memory(process.pid, "VmRSS"), memory(process.pid, "VmHWM")
        score.refused = refusals(port)
    except Exception as error:
        score.fail(f"afterwards: {error!r}")
    process.send_signal(signal.SIGTERM)
    try:
        score.exit_status = process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()


def stranger(target: Target, score: Score, stop: threading.Event, seed: int, number: int) -> None:
    """One attack after the other."""
    rng = random.Random(f"{seed}/{number}")
    while not stop.is_set():
        attack = rng.choice(ATTACKS)
        try:
            met = attack(target, rng)
        except TimeoutError:
            met = "left hanging"
        except OSError:
            met = "closed"
        with COUNTING:
            counts = score.attacks.setdefault(attack.__name__, {})
            counts[met] = counts.get(met, 0) + 1


def regular(port: int, score: Score, stop: threading.Event, number: int) -> None:
    """A robot that stays."""
    try:
        robot, value = Robot(port), number
        while not stop.is_set():
            value = (value + 1) % 256
            wrong = robot.honest(value, 64)
            if wrong is not None:
                score.fail(wrong)
            with COUNTING:
                score.honest += wrong is None
            time.sleep(0.005)
        robot.close()
    except Exception as error:
        score.fail(f"regular: {error!r}")


def visitor(port: int, score: Score, stop: threading.Event) -> None:
    """A robot that comes and goes."""
    while not stop.is_set():
        try:
            robot = Robot(port)
            wrong = robot.honest(score.visits % 256, 64)
            robot.close()
            if wrong is not None:
                score.fail(wrong)
            score.visits += 1
        except Exception as error:
            score.fail(f"visitor: {error!r}")
        stop.wait(0.05)


def memory(pid: int, name: str) -> float:
    """MB that the kernel says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def refusals(port: int) -> dict[str, float]:
    """Kind -> how often, out of the server's metrics."""
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        lines: list[str] = page.read().decode().splitlines()
    samples: list[Any] = [line.split('"') for line in lines if line.startswith("rl_finetune_errors_total{")]
    return {kind: float(rest.split()[-1]) for _, kind, rest in samples}


if __name__ == "__main__":
    sys.exit(main())
