"""Pictures of many worlds at once by mujoco_warp's ray caster, which needs no OpenGL. They stay on the device."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import mujoco_warp as mjw
import numpy as np
import warp as wp

from envs.mujoco import warp_kernels as kernels
from envs.mujoco.task import Float64, View
from rl_finetune.types import IntArray

AT_ONCE = {"cpu": 16, "cuda": 256}
"""Pictures of a view drawn together. A CPU draws one after the other anyway; 256 x 64 x 64 rays fill a large GPU. More
would only waste time where few worlds are asked for, which is so whenever episodes end."""


class Painter:
    """Draws a model from some of its cameras, with worlds of its own: a drawing leaves the simulation as it is."""

    def __init__(self, model: mujoco.MjModel, views: Sequence[View], num_envs: int, size: int) -> None:
        """Make room for pictures of `num_envs` worlds on warp's current device.

        Args:
            model: what to draw; shapes of groups 0 to 2, as MuJoCo's own renderer does by default.
            views: cameras.
            num_envs: N, most pictures of a view in one call of `draw`.
            size: side of the picture in pixels.
        """
        self._views, self._size = tuple(views), size
        self._at_once = min(num_envs, AT_ONCE["cuda" if wp.get_device().is_cuda else "cpu"])
        # Its own model, so that colours may come to differ between worlds (`batch_sizes={"geom_rgba": ...}`).
        self._model = mjw.put_model(model)
        self._data = mjw.put_data(model, mujoco.MjData(model), nworld=self._at_once, nconmax=0, njmax=0)
        self._context = mjw.create_render_context(
            model,
            nworld=self._at_once,
            cam_res=(size, size),
            render_rgb=True,
            render_depth=False,
            render_seg=False,
            cam_active=[view.camera for view in views],
        )
        self._pictures = [wp.zeros((num_envs, size, size, 3), dtype=wp.uint8) for _ in views]

    def draw(self, states: wp.array, rows: IntArray, mocap: Float64) -> dict[str, wp.array]:
        """Pictures of the worlds `rows` [n]: view tag -> [n, h, w, 3] uint8 on the device, until the next call.

        Args:
            states: [N, S] on the device.
            rows: which of them.
            mocap: [n, B, 7] mocap bodies as they shall be seen.
        """
        which = wp.array(rows.astype(np.int32), dtype=wp.int32)
        poses = wp.array(mocap.astype(np.float32), dtype=wp.float32, ndim=3)
        pictures = [each[: len(rows)] for each in self._pictures]
        for first in range(0, len(rows), self._at_once):
            self._draw_batch(states, which, poses, first, pictures)
        return {view.tag: picture for view, picture in zip(self._views, pictures, strict=True)}

    def _draw_batch(
        self, states: wp.array, rows: wp.array, mocap: wp.array, first: int, pictures: list[wp.array]
    ) -> None:
        model, data, context = self._model, self._data, self._context
        wp.launch(
            kernels.pose_batch,
            dim=self._at_once,
            inputs=[states, rows, mocap, first],
            outputs=[data.qpos, data.mocap_pos, data.mocap_quat],
        )
        mjw.kinematics(model, data)
        mjw.camlight(model, data)
        mjw.refit_bvh(model, data, context)
        mjw.render(model, data, context)
        for view, picture in enumerate(pictures):
            wp.launch(
                kernels.unpack_pixels,
                dim=(self._at_once, self._size, self._size),
                inputs=[context.rgb_data, context.rgb_adr, view, first],
                outputs=[picture],
            )
