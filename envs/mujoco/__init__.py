"""Worlds simulated by MuJoCo, embedded in the process that uses them.

Importing this package imports numpy only; the engines (`cpu`, `warp`) and what they use bring in MuJoCo itself.
"""

from __future__ import annotations

import os

from rl_finetune.errors import UserError

# Both are read once: MUJOCO_GL when MuJoCo is imported, LP_NUM_THREADS when Mesa's rasteriser makes its first context.
# Zero means that the calling thread draws: small pictures are not worth waking another one (248 -> 156 us at 64 px).
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("LP_NUM_THREADS", "0")


def cannot_draw(error: Exception) -> UserError:
    """What to tell a person whose machine has no offscreen OpenGL."""
    return UserError(
        "cannot draw offscreen",
        got=f"{type(error).__name__}: {error} (MUJOCO_GL={os.environ.get('MUJOCO_GL')})",
        expected="an OpenGL context",
        do="install Debian's libegl1 libegl-mesa0 libgl1-mesa-dri and set MUJOCO_GL=egl",
    )


def load_mujoco() -> None:
    """Import MuJoCo itself; that already opens the library that MUJOCO_GL names.

    Raises:
        UserError: there is none.
    """
    try:
        import mujoco  # noqa: F401
    except Exception as error:  # PyOpenGL fails with AttributeError on None where the library is missing
        raise cannot_draw(error) from error
