"""Stands in for Isaac Lab in tests: the names the adapter uses, with the bad habits of the original.

Habits are switched by the environment variable ISAAC_DOUBLE, a comma-separated list:
`three` (launch_simulation, ProxyArray, render_enabled, final_obs, x y z w), `direct` (no termination manager),
`no_success`, `early_cut` (a time-out term inside the episode), `nan`, `die`, `hang`, `raise`, `noisy`.
"""

import os

HABITS = frozenset(filter(None, os.environ.get("ISAAC_DOUBLE", "").split(",")))
STATE = {"launched": False, "closed": [], "renders": 0, "made": 0, "full_resets": 0, "seeds": []}
