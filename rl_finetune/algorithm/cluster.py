"""Ray, started or joined."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on loopback, quietly.

    Workers get the repository's root on their path (package names such as `envs` exist elsewhere too), one thread each,
    and software rendering where no other was chosen.
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
    }
    runtime = {"env_vars": {name: value for name, value in variables.items() if value}}
    options = dict(runtime_env=runtime, logging_level=logging.ERROR, log_to_driver=False)
    if "RAY_ADDRESS" in os.environ:
        ray.init(**options)
    else:
        ray.init(**options, include_dashboard=False, _node_ip_address="127.0.0.1")
