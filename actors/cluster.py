"""Ray, started or joined."""

from __future__ import annotations

import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def connect(processes: int) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on loopback, quietly.

    Workers get the repository's root on their path (package names such as `envs` exist elsewhere too), one thread each,
    and software rendering where no other was chosen. They run at this process's own priority: at Ray's niceness of 15 a
    run hardly moves beside other work. Each of the `processes` takes half a core: on a machine with fewer cores Ray is
    told that there are enough, or it would wait for more forever.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    import ray

    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    variables = {
        "PYTHONPATH": path,
        "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl"),
        "LP_NUM_THREADS": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", ""),
        "RAY_worker_niceness": "0",
    }
    runtime = {"env_vars": {name: value for name, value in variables.items() if value}}
    options = dict(runtime_env=runtime, logging_level=logging.ERROR, log_to_driver=False)
    if "RAY_ADDRESS" in os.environ:
        ray.init(**options)
    else:
        cores = max(os.cpu_count() or 1, math.ceil(processes / 2))
        # By name: without an address Ray would join what `ray start` has left running here.
        ray.init("local", **options, num_cpus=cores, include_dashboard=False, _node_ip_address="127.0.0.1")


@contextmanager
def stderr_closed() -> Iterator[None]:
    """Standard error of this process, C++ included, goes nowhere; exceptions still fly."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
