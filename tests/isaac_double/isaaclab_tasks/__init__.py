"""Registers the double's one task."""

import gymnasium
from isaaclab import HABITS, envs

print("[double] registering tasks on stdout")
gymnasium.register(
    "Isaac-Double-v0",
    entry_point=envs.DirectEnv if "direct" in HABITS else envs.ManagedEnv,
    disable_env_checker=True,
    order_enforce=False,
)
