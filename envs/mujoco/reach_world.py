"""`widowx_reach`: many reach episodes side by side in one process."""

from __future__ import annotations

from dataclasses import replace

import mujoco
import numpy as np

from envs.base import VectorEnv, check_keys, used_actions
from envs.mujoco.physics import STATE, Motion, Physics
from envs.mujoco.reach import COLOURS, HORIZON, TIME_LIMIT, ReachOptions, Scene, draw_scene, spec
from envs.mujoco.rendering import Renderer, project
from envs.mujoco.table import CAMERA
from rl_finetune.types import (
    ActionChunk,
    BoolArray,
    ChunkOutcome,
    FloatArray,
    Grounding,
    ImageArray,
    IntArray,
    Observation,
    SeedKeys,
)


class ReachWorld(VectorEnv):
    """N arms, each asked to bring its gripper to the block of one colour."""

    def __init__(self, num_envs: int, options: ReachOptions) -> None:
        """Build model and renderer.

        Raises:
            UserError: this machine cannot draw offscreen.
        """
        self.spec, self.num_envs, self.options = spec(options), num_envs, options
        self._physics = Physics()
        self._renderer = Renderer(self._physics.model, options.image_size)
        self._worlds = self._physics.empty(num_envs)
        self._steps = np.zeros(num_envs, np.int64)
        self._scenes: list[Scene] = []
        self._keys: SeedKeys | None = None

    def reset(self, keys: SeedKeys) -> Observation:
        """See `VectorEnv.reset`."""
        check_keys(keys, self.num_envs)
        self._keys = replace(keys, env=np.array(keys.env), episode=np.array(keys.episode))
        self._scenes = [self._draw(env) for env in range(self.num_envs)]
        everyone = np.arange(self.num_envs)
        self._begin(everyone)
        return self._observe(everyone)

    def step_chunk(self, chunk: ActionChunk) -> ChunkOutcome:
        """See `VectorEnv.step_chunk`."""
        if self._keys is None:
            raise RuntimeError("step_chunk before reset: call reset(keys) first")
        actions = used_actions(chunk, self.spec, self.num_envs).astype(np.float64)
        motion = self._physics.advance(self._worlds, actions)
        executed, reached, success = self._judge(motion)
        if self.filming:
            self.filmed = self._film(motion, executed)
        self._keep(motion, executed)
        truncated = ~reached & (self._steps >= TIME_LIMIT)
        over = np.flatnonzero(reached | truncated)
        final = self._observe(over) if len(over) else None
        self._restart(over)
        reward = _at_last_step(success, executed)
        return ChunkOutcome(
            reward=reward,
            steps_executed=executed,
            terminated=reached,
            truncated=truncated,
            success=success,
            observation=self._observe(np.arange(self.num_envs)),
            final_index=over,
            final_observation=final,
            reward_terms={"success": reward.copy()},
        )

    def close(self) -> None:
        """See `VectorEnv.close`."""
        self._renderer.close()
        self._physics.close()

    def _judge(self, motion: Motion) -> tuple[IntArray, BoolArray, BoolArray]:
        """Steps executed [N], whether any block was reached [N], and whether it was the right one [N]."""
        tops = np.stack([scene.tops for scene in self._scenes])[:, None]
        present = np.stack([scene.present for scene in self._scenes])[:, None]
        distance = np.sqrt(((motion.tools[:, :, None] - tops) ** 2).sum(-1))
        touched = present & (distance <= self.options.tolerance)
        left = np.minimum(TIME_LIMIT - self._steps, HORIZON)
        any_block = touched.any(-1) & (np.arange(HORIZON) < left[:, None])
        reached = any_block.any(-1)
        executed = np.where(reached, any_block.argmax(-1) + 1, left)
        rows = np.arange(self.num_envs)
        target = np.array([scene.target for scene in self._scenes])
        return executed, reached, reached & touched[rows, executed - 1, target]

    def _keep(self, motion: Motion, executed: IntArray) -> None:
        """Make the state after each environment's last executed step the current one."""
        rows, last, worlds = np.arange(self.num_envs), executed - 1, self._worlds
        worlds.state, worlds.aim = motion.states[rows, last], motion.aims[rows, last]
        worlds.tool, worlds.turn = motion.tools[rows, last], motion.turns[rows, last]
        self._steps = self._steps + executed

    def _film(self, motion: Motion, executed: IntArray) -> list[ImageArray]:
        """Pictures [F, h, w, 3] of every executed step of each environment."""
        rows, worlds = np.arange(self.num_envs), self._worlds
        last, films = worlds.state, []
        for step in range(HORIZON):
            worlds.state = motion.states[:, step]
            worlds.tool = motion.tools[:, step]
            films.append(self._draw_pictures(rows))
        worlds.state = last
        return [np.stack([film[env] for film in films[: executed[env]]]) for env in rows]

    def _restart(self, over: IntArray) -> None:
        assert self._keys is not None
        self._keys.episode[over] += 1
        for env in over:
            self._scenes[env] = self._draw(env)
        self._begin(over)

    def _draw(self, env: int) -> Scene:
        assert self._keys is not None
        return draw_scene(self._keys.seed, int(self._keys.scene[env]), int(self._keys.episode[env]))

    def _begin(self, rows: IntArray) -> None:
        for env in rows:
            self._physics.place(self._worlds, env, self._scenes[env])
        self._steps[rows] = 0

    def _observe(self, rows: IntArray) -> Observation:
        scenes = [self._scenes[env] for env in rows]
        tops = np.stack([scene.tops for scene in scenes])
        present = np.stack([scene.present for scene in scenes])
        target = np.array([scene.target for scene in scenes])
        tool = self._worlds.tool[rows]
        return Observation(
            images={CAMERA: self._draw_pictures(rows)},
            instruction=tuple(scene.instruction for scene in scenes),
            embodiment=self.spec.embodiment.tag,
            privileged=_privileged(tool, tops, present, target),
            grounding=self._ground(tool, tops, present, target),
        )

    def _draw_pictures(self, rows: IntArray) -> ImageArray:
        size, model, data, worlds = self.options.image_size, self._physics.model, self._physics.data, self._worlds
        pictures = np.empty((len(rows), size, size, 3), np.uint8)
        for picture, env in zip(pictures, rows, strict=True):
            mujoco.mj_setState(model, data, worlds.state[env], STATE)
            data.mocap_pos[:4], data.mocap_quat[:4] = worlds.block_pos[env], worlds.block_quat[env]
            data.mocap_pos[-1] = [*worlds.tool[env, :2], 0.001]
            mujoco.mj_kinematics(model, data)
            self._renderer.draw(data, CAMERA, picture)
        return pictures

    def _ground(self, tool: np.ndarray, tops: np.ndarray, present: BoolArray, target: IntArray) -> Grounding:
        points = project(self._physics.model, CAMERA, np.concatenate([tops, tool[:, None]], 1))
        there = np.concatenate([present, np.ones((len(tool), 1), bool)], 1)
        return Grounding((*COLOURS, "tool"), np.where(there[..., None], points, np.float32(0)), there, target)


def _privileged(tool: np.ndarray, tops: np.ndarray, present: BoolArray, target: IntArray) -> FloatArray:
    blocks = np.concatenate([tops, present[..., None]], -1).reshape(len(tool), -1)
    return np.concatenate([tool, tops[np.arange(len(tool)), target], blocks], -1).astype(np.float32)


def _at_last_step(success: BoolArray, executed: IntArray) -> FloatArray:
    """Reward [N, H]: one at the step that succeeded."""
    reward: FloatArray = (success[:, None] & (np.arange(HORIZON) == executed[:, None] - 1)).astype(np.float32)
    return reward
