"""A tiny task with everything a robot's model is made of: hinges, slides, a weld to a mocap body, servos, a box."""

from __future__ import annotations

import numpy as np

from envs.mujoco.bodies.base import glide, hold
from envs.mujoco.task import Drive, EpisodeKey, Float64, Judged, Now, Start, Task, View
from rl_finetune.keys import Stream, generator
from rl_finetune.spec import ActionConvention, EmbodimentSpec, EnvSpec
from rl_finetune.types import FloatArray

HORIZON = 4
LIFTED = 0.10
CRANE = EmbodimentSpec(
    tag="crane",
    arms="single arm",
    views=("ego", "side"),
    action=ActionConvention(
        channels=4, horizon=HORIZON, control="delta_ee", rotation="none", gripper="open_positive", rate=5.0
    ),
)
MODEL = """
<mujoco>
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.02" integrator="implicitfast" iterations="10" ls_iterations="10" jacobian="dense">
    <flag island="disable"/>
  </option>
  <visual>
    <headlight ambient="0.45 0.45 0.45" diffuse="0.3 0.3 0.3" specular="0 0 0"/>
    <map znear="0.02" zfar="6"/>
  </visual>
  <default><geom density="600" friction="1"/><joint damping="0.5" armature="0.01"/></default>
  <worldbody>
    <light pos="0.6 -0.3 1.2" dir="-0.3 0.3 -1" directional="true" diffuse="0.5 0.5 0.5" specular="0 0 0"/>
    <camera name="front" pos="0.8 0 0.5" xyaxes="0 1 0 -0.5 0 0.8" fovy="35"/>
    <geom type="box" pos="0 0 -0.02" size="0.4 0.4 0.02" rgba="0.66 0.62 0.57 1"/>
    <body pos="-0.25 0 0" gravcomp="1"><joint axis="0 0 1"/>
      <geom type="capsule" fromto="0 0 0.2 0.2 0 0.2" size="0.02" rgba="0.16 0.17 0.19 1" contype="0" conaffinity="0"/>
      <body pos="0.2 0 0" gravcomp="1"><joint axis="0 0 1"/>
        <geom type="capsule" fromto="0 0 0.2 0.2 0 0.2" size="0.02" rgba="0.2 0.2 0.2 1" contype="0" conaffinity="0"/>
        <body pos="0.2 0 0" gravcomp="1"><joint type="slide" axis="0 0 1"/><joint axis="0 0 1"/>
          <camera name="hand" pos="0.1 0 0.15" xyaxes="0 1 0 -0.8 0 0.5" fovy="60"/>
          <geom type="capsule" fromto="0 0 0.06 0 0 0.12" size="0.02" rgba="0.93 0.95 0.95 1"/>
          <site name="tool" group="5"/>
          <body gravcomp="1"><joint name="left" type="slide" axis="0 1 0" range="0.01 0.05" damping="6"/>
            <geom type="box" size="0.012 0.006 0.03" rgba="0.93 0.1 0.85 1"/></body>
          <body gravcomp="1"><joint name="right" type="slide" axis="0 1 0" range="-0.05 -0.01" damping="6"/>
            <geom type="box" size="0.012 0.006 0.03" rgba="0.93 0.1 0.85 1"/></body>
        </body>
      </body>
    </body>
    <body name="box"><freejoint/><geom type="box" size="0.02 0.02 0.02" rgba="0.1 0.2 0.95 1"/></body>
    <body name="target" mocap="true"><site name="target" group="5"/></body>
  </worldbody>
  <equality><weld site1="tool" site2="target" solref="0.05 1"/></equality>
  <actuator>
    <position joint="left" kp="60" ctrlrange="0.01 0.05"/><position joint="right" kp="60" ctrlrange="-0.05 -0.01"/>
  </actuator>
  <sensor>
    <framepos objtype="site" objname="tool"/><framequat objtype="site" objname="tool"/>
    <jointpos joint="left"/><framepos objtype="body" objname="box"/>
  </sensor>
</mujoco>"""


class Crane(Task):
    """Lift the box."""

    timestep, substeps = 0.02, 10
    views = (View("ego", "front"), View("side", "hand"))
    spec = EnvSpec(
        "crane", CRANE, 32, 12, privileged=tuple(f"{thing}_{axis}" for thing in ("tool", "box") for axis in "xyz")
    )

    def mjcf(self) -> str:
        return MODEL

    def begin(self, key: EpisodeKey) -> Start:
        box = generator(key.seed, Stream.SCENE, key.scene, key.episode).uniform(-0.1, 0.1, 2)
        tool = np.array([*box, 0.1])
        qpos = np.array([*_arm(tool), 0.045, -0.045, *box, 0.02, 1.0, 0.0, 0.0, 0.0])
        return Start(qpos, np.array([[*tool, 1.0, 0.0, 0.0, 0.0]]), tool, np.zeros(0), "lift the box")

    def drive(self, now: Now, actions: Float64) -> Drive:
        aim = now.readings[:, None, :3] + np.clip(actions[..., :3], -0.1, 0.1)
        place = glide(now.aim, aim, self.substeps)
        fingers = hold(0.03 + 0.02 * np.clip(actions[..., 3:], -1, 1), self.substeps)
        still = np.broadcast_to([1.0, 0.0, 0.0, 0.0], (*place.shape[:2], 4))
        controls = np.concatenate([fingers, -fingers, place, still], -1)
        return Drive(np.concatenate([controls, controls[:, -1:]], 1), aim)

    def judge(self, now: Now, readings: Float64) -> Judged:
        success = readings[..., 10] > LIFTED
        return Judged(success, np.zeros_like(success), np.zeros((*success.shape, 0)))

    def describe(self, now: Now) -> FloatArray:
        return now.readings[:, [0, 1, 2, 8, 9, 10]].astype(np.float32)

    def expert(self, privileged: FloatArray, noise: Float64 | None = None) -> Float64:
        raise NotImplementedError


def _arm(tool: Float64) -> list[float]:
    """Shoulder, elbow, lift and wrist of the arm, based at x = -0.25 with two links of 0.2, that holds its tool so."""
    x, y = tool[0] + 0.25, tool[1]
    elbow = float(np.arccos((x * x + y * y) / 0.08 - 1))
    shoulder = float(np.arctan2(y, x)) - elbow / 2
    return [shoulder, elbow, float(tool[2]), -shoulder - elbow]


def lift(num_envs: int) -> list[Float64]:
    """Three chunks [N, H, 4]: down to the box, close, and up with it."""
    ways = [(-0.08, 1.0), (0.0, -1.0), (0.1, -1.0)]
    return [np.broadcast_to([0.0, 0.0, rise, grip], (num_envs, HORIZON, 4)).copy() for rise, grip in ways]
