"""When Isaac draws: in the last step of a chunk and after a reset, for a drawn step costs about two undrawn ones."""

from __future__ import annotations

from .api import Env, pauses_drawing

RARELY = 1 << 40
"""A rendering interval, in environment steps, that never comes."""
WARM_FRAMES = 1
"""Frames drawn after a reset where the task asks for none: without one the picture is the old episode's."""


class Shutter:
    """Switches drawing.

    Isaac Lab 3.0 has a switch (`render_enabled`). 2.3 draws whenever the physics counter is a multiple of
    `cfg.sim.render_interval`, which it reads at every step, so the interval is set before each step instead.
    """

    def __init__(self, env: Env) -> None:
        """Take over the drawing of an environment."""
        self._env, self._frames = env, max(WARM_FRAMES, env.cfg.num_rerenders_on_reset)
        self.switched = pauses_drawing(env)
        env.cfg.sim.render_interval = env.cfg.decimation

    def set(self, *, drawn: bool) -> None:
        """Whether the next step is drawn, once. Resets inside a step are not drawn: nobody looks at them."""
        env = self._env
        env.cfg.num_rerenders_on_reset = 0
        if pauses_drawing(env):
            env.render_enabled = drawn
        else:
            env.cfg.sim.render_interval = env.cfg.decimation * (1 if drawn else RARELY)

    def open_for_reset(self) -> None:
        """Let a reset at the boundary draw as many frames as the task asks for."""
        env = self._env
        env.cfg.num_rerenders_on_reset = self._frames
        if pauses_drawing(env):
            env.render_enabled = True

    def draw(self) -> None:
        """Draw the frames of a reset by hand, where no reset did."""
        for _ in range(self._frames):
            self._env.sim.render()
