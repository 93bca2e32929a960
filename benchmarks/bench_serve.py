"""What the server costs, policy time aside; and whether robots that it serves do as well as in an evaluation.

    python -m benchmarks.bench_serve out.json [--calls 2000] [--episodes 200 --clients 2] [--quick]

Round trips: one client with openpi's habits (two pictures of 224 x 224, one frame for one frame, no compression)
against servers in processes of their own, in turns within the same run:

    echo     websockets alone; the frame comes back as it is
    reply    websockets alone; a reply as small as a chunk comes back. The stricter yardstick
    ours     our server before a policy that answers at once: decode, check, batch, envelope's border, encode
    scaled   the same, where the policy wants pictures of 64 x 64

Two at once: two client processes against our server before a policy that takes --policy-ms for any batch.

Episodes: openpi's real client, in a virtual environment that is made with pip under --cache, drives a MuJoCo world
through the server with the shipped policy; the same held-out episodes are evaluated without the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websocket
from websockets.sync.client import connect

from benchmarks.serving import CHANNELS, HORIZON, InstantStage, PlainSession, Robot, observation
from rl_finetune.config.serving import NetworkSection, ServeSection
from rl_finetune.promotion.serving.server import PolicyServer, run
from rl_finetune.promotion.serving.wire import encode

ROOT = Path(__file__).resolve().parents[1]
SERVERS = ("echo", "reply", "ours", "scaled", "slow")
BLOCK = 10
"""Calls to one server before it is the next one's turn."""
BAR = 1.5
"""Times the echo's round trip that ours may take."""


def main() -> int:
    """Measure, print, write the JSON; 1 where a bar was missed."""
    args = _arguments()
    if args.serve:
        _serve(args.serve, args.policy_ms)
        return 0
    if args.client:
        print(json.dumps(_timed(Robot(args.client), args.calls)))
        return 0
    calls = 200 if args.quick else args.calls
    report: dict[str, Any] = {
        "machine": {"cpus": os.cpu_count(), "platform": platform.machine(), "load": os.getloadavg()[0]},
        "round_trip": round_trips(calls), "together": together(calls // 10, args.policy_ms),
    }  # fmt: skip
    holds = report["round_trip"]["ratio_p50"] <= BAR
    if args.episodes:
        from benchmarks.served_episodes import interpreter, play

        python = args.python or interpreter(args.cache)
        report["episodes"] = play(args.policy, args.world, args.episodes, args.clients, python)
        holds = holds and report["episodes"]["within"]
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    return 0 if holds else 1


def round_trips(calls: int) -> dict[str, Any]:
    """Milliseconds of a round trip with each server, in turns."""
    names = ("echo", "reply", "ours", "scaled")
    frame = encode(observation())
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        sockets = {name: stack.enter_context(_connected(stack.enter_context(_process(name)))) for name in names}
        for _ in range(-(-calls // BLOCK)):
            for name in names:
                seconds[name] += _exchanges(sockets[name], frame, BLOCK)
    rows = {name: _milliseconds(times[BLOCK:]) for name, times in seconds.items()}
    p50, p99 = (rows["ours"][p] / rows["echo"][p] for p in ("p50", "p99"))
    return {
        "unit": "ms", "calls": calls, "frame_bytes": len(frame), "rows": rows, "bar": BAR, "ratio_p50": p50,
        "ratio_p99": p99, "ratio_p50_to_reply": rows["ours"]["p50"] / rows["reply"]["p50"],
    }  # fmt: skip


def together(calls: int, policy_ms: float) -> dict[str, Any]:
    """Milliseconds of a round trip, and calls a second, of one client and of two at once."""
    found: dict[str, Any] = {"policy_ms": policy_ms, "calls": calls}
    with _process("slow", policy_ms) as port:
        for clients in (1, 2):
            command = [
                sys.executable,
                "-m",
                "benchmarks.bench_serve",
                "-",
                "--client",
                str(port),
                "--calls",
                str(calls),
            ]
            processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(clients)]
            times = [json.loads(process.communicate(timeout=600)[0]) for process in processes]
            rate = sum(len(t) / sum(t) for t in times)
            found[f"{clients} client"] = _milliseconds([t for part in times for t in part]) | {"calls_per_second": rate}
    return found


def _timed(robot: Robot, calls: int) -> list[float]:
    """Seconds of each call, with every chunk checked."""
    times = []
    for value in range(calls):
        since = time.perf_counter()
        wrong = robot.honest(value % 256)
        times.append(time.perf_counter() - since)
        if wrong is not None:
            raise RuntimeError(wrong)
    return times


def _exchanges(socket: Any, frame: bytes, count: int) -> list[float]:
    times = []
    for _ in range(count):
        since = time.perf_counter()
        socket.send(frame)
        socket.recv()
        times.append(time.perf_counter() - since)
    return times


def _milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    p10, p50, p99 = np.percentile(seconds, [10, 50, 99]) * 1000
    return {"p10": float(p10), "p50": float(p50), "p99": float(p99)}


@contextmanager
def _connected(port: int) -> Iterator[Any]:
    """A client as openpi's opens it, past the metadata."""
    with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None) as socket:
        socket.recv()
        yield socket


@contextmanager
def _process(name: str, policy_ms: float = 0.0) -> Iterator[int]:
    """A server in a process of its own; its port."""
    command = [sys.executable, "-m", "benchmarks.bench_serve", "-", "--serve", name, "--policy-ms", str(policy_ms)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def _serve(name: str, policy_ms: float) -> None:
    """Be one of the servers; prints the port."""
    if name in ("echo", "reply"):
        asyncio.run(_bare(name))
        return
    stage = InstantStage(image_size=64 if name == "scaled" else 224)
    if name == "slow":
        stage.before = lambda requests: time.sleep(policy_ms / 1000)
    server = PolicyServer(stage, PlainSession, ServeSection(network=NetworkSection(port=0)))
    asyncio.run(run(server, lambda port: print(port, flush=True)))


async def _bare(name: str) -> None:
    """websockets and nothing else."""
    actions = np.zeros((HORIZON, CHANNELS), np.float32)
    small = encode({"actions": actions, "server_timing": {"infer_ms": 0.0}})

    async def answer(socket: ServerConnection) -> None:
        await socket.send(b"metadata")
        async for frame in socket:
            await socket.send(frame if name == "echo" else small)

    async with serve_websocket(answer, "127.0.0.1", 0, compression=None, max_size=None) as server:
        print(next(iter(server.sockets)).getsockname()[1], flush=True)
        await asyncio.get_running_loop().create_future()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="what the server costs, and how well served robots do")
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--calls", type=int, default=2000, help="round trips with each server (default 2000)")
    parser.add_argument("--quick", action="store_true", help="200 round trips")
    parser.add_argument("--policy-ms", type=float, default=20.0, help="milliseconds of the policy for two at once")
    parser.add_argument("--episodes", type=int, default=0, help="episodes of openpi's real client (default none)")
    parser.add_argument("--clients", type=int, default=2, help="of them at a time (default 2)")
    parser.add_argument("--world", default="widowx_reach")
    parser.add_argument("--policy", default="checkpoints/qwen-vla-tiny")
    parser.add_argument("--python", type=Path, help="interpreter that has openpi's client; made otherwise")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "rl-finetune" / "openpi-client")
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
