"""Worlds simulated by MuJoCo, embedded in the process that uses them.

Importing this package imports numpy only; `physics`, `rendering` and `world` bring in MuJoCo itself.
"""

from __future__ import annotations

import os

# Both are read once: MUJOCO_GL when MuJoCo is imported, LP_NUM_THREADS when Mesa's rasteriser makes its first context.
# Zero means that the calling thread draws: small pictures are not worth waking another one (248 -> 156 us at 64 px).
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("LP_NUM_THREADS", "0")
