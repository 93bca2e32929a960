"""How long a policy takes from an observation to a chunk, for one robot, on this machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from rl_finetune.config.promotion import LatencyCallsSection
from rl_finetune.policy import QwenVLAPolicy
from rl_finetune.promotion.records import LatencyRecord
from rl_finetune.spec import EmbodimentSpec
from rl_finetune.types import Observation, SeedKeys


def timed(
    policy: QwenVLAPolicy,
    body: EmbodimentSpec,
    observations: Sequence[Observation],
    calls: LatencyCallsSection,
    temperature: float,
    clock: Callable[[], float] = time.perf_counter,
) -> LatencyRecord:
    """Look and act on a batch of one, call by call.

    Args:
        policy: as it will be served.
        body: which of its embodiments.
        observations: of one robot each (N = 1); used in turn, since words differ in length.
        calls: how many, how many before them, and on how many CPU threads.
        temperature: scale of the initial noise.
        clock: seconds; only tests have another.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(calls.threads)
    seconds = []
    try:
        for number in range(calls.warmup + calls.calls):
            seen = observations[number % len(observations)]
            keys = SeedKeys(number, np.zeros(1, np.int64), np.zeros(1, np.int64))
            began = clock()
            with torch.inference_mode():  # `act` brings the chunk to the CPU: nothing is left running on a GPU
                policy.act(policy.look(seen), keys, np.zeros(1, np.int64), body, temperature)
            seconds.append(clock() - began)
    finally:
        torch.set_num_threads(before)
    return LatencyRecord(
        embodiment=body.tag, seconds=tuple(seconds[calls.warmup :]), control_period=1 / body.action.rate,
        horizon=body.action.horizon, hardware=hardware(policy.device, calls.threads),
    )  # fmt: skip


def hardware(device: torch.device, threads: int) -> str:
    """What the policy runs on, in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    told = _cpu() or platform.machine()
    return f"{told}, {threads} of {os.cpu_count()} threads, torch {torch.__version__}"


def _cpu() -> str:
    """Name of the processor, where Linux tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
