"""Every body at the table: its kinematics are MuJoCo's, its plans arrive, and no action makes it run away."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from envs.mujoco import kinematics as kin
from envs.mujoco.bodies.aloha import Aloha
from envs.mujoco.bodies.base import Body
from envs.mujoco.bodies.franka import FrankaEE, FrankaJoint
from envs.mujoco.bodies.jointed import JointedBody
from envs.mujoco.bodies.upper_body import SPREAD, UpperBody
from envs.mujoco.bodies.weld import turned
from envs.mujoco.chain import CLOSE, Chain, Joint, downward, pose
from envs.mujoco.task import Float64, Path

BODIES: dict[str, Body] = {"franka_ee": FrankaEE(), "franka_joint": FrankaJoint(), "aloha": Aloha(), "gr1": UpperBody()}
JOINTED: dict[str, JointedBody] = {name: body for name, body in BODIES.items() if isinstance(body, JointedBody)}
EVERY = pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
SERVOED = pytest.mark.parametrize("body", JOINTED.values(), ids=JOINTED)
HORIZON = 16
BLOCK = '<body name="block" pos="{} {} 0.025"><freejoint/><geom type="box" size=".025 .025 .025" contype="3" \
conaffinity="3" density="400" friction="0.8 0.01 0.0001"/></body>'


def scene(body: Body, props: str = "") -> mujoco.MjModel:
    part = body.fragments()
    return mujoco.MjModel.from_xml_string(f"""
<mujoco>
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{body.timestep}" integrator="implicitfast"/>
  {part.defaults}
  <asset>{part.assets}</asset>
  <worldbody>
    <geom type="box" pos="0.2 0 -0.02" size="0.6 0.6 0.02" contype="2" conaffinity="3"/>
    {part.tree}
    {props}
  </worldbody>
  <equality>{part.equality}</equality>
  <actuator>{part.actuators}</actuator>
  <sensor>{part.sensors}</sensor>
</mujoco>""")


def draw(body: Body, rng: np.random.Generator, count: int) -> Float64:
    """Tool positions [count, hands, 3] in the boxes, hands no further apart in x than the body's arms allow."""
    tools = rng.uniform(body.boxes[..., 0], body.boxes[..., 1], (count, body.hands, 3))
    tools[:, 1:, 0] = np.clip(tools[:, 1:, 0], tools[:, :1, 0] - SPREAD, tools[:, :1, 0] + SPREAD)
    return tools


def line(start: Float64, goal: Float64, rate: float, speed: float = 0.2) -> list[Float64]:
    """Chunks [H, hands, 3] of straight lines that end on `goal` and stay there for a while."""
    far = np.linalg.norm(goal - start, axis=-1).max()
    chunks = int(np.ceil((far / speed * rate + 4) / HORIZON))
    share = np.minimum(np.arange(1, chunks * HORIZON + 1) * speed / rate / max(far, 1e-9), 1.0)
    return np.split(start + share[:, None, None] * (goal - start), chunks)


class Robot:
    """A body in MuJoCo, chunk by chunk."""

    def __init__(self, body: Body, tools: Float64, props: str = "") -> None:
        self.body, self.model = body, scene(body, props)
        self.data = mujoco.MjData(self.model)
        qpos, self.aim, mocap = body.rest(tools)
        self.own = slice(0, len(qpos))
        self.data.qpos[self.own] = qpos
        self.data.mocap_pos[: body.mocaps], self.data.mocap_quat[: body.mocaps] = mocap[:, :3], mocap[:, 3:]
        mujoco.mj_forward(self.model, self.data)

    @property
    def readings(self) -> Float64:
        return self.data.sensordata[None].copy()

    def play(self, actions: Float64) -> Float64:
        """Readings [H, R] after each step of the actions [H, c]."""
        substeps = round(1 / (self.body.embodiment.action.rate * self.body.timestep))
        ctrl, mocap, aims = self.body.drive(self.readings, self.aim[None], actions[None], substeps)
        seen = []
        for step in range(len(actions) * substeps):
            self.data.ctrl[:] = ctrl[0, step]
            self.data.mocap_pos[: self.body.mocaps] = mocap[0, step, :, :3]
            self.data.mocap_quat[: self.body.mocaps] = mocap[0, step, :, 3:]
            mujoco.mj_step(self.model, self.data)
            if (step + 1) % substeps == 0:
                mujoco.mj_forward(self.model, self.data)
                seen.append(self.readings[0])
        self.aim = aims[0, -1]
        return np.array(seen)

    def follow(self, tools: Float64, opening: float, yaw: float = 0.0) -> Float64:
        """Plan and play tool positions [H, hands, 3]; hand readings [H, hands, 8]."""
        shape = (1, *tools.shape[:2])
        plan = self.body.command(self.readings, Path(tools[None], np.full(shape, opening), np.full(shape, yaw)))
        return self.play(plan[0])[:, : 8 * self.body.hands].reshape(len(tools), self.body.hands, 8)

    def go(self, goal: Float64, opening: float) -> Float64:
        """Follow a straight line to `goal` [hands, 3] at 0.2 m/s; the last readings [hands, 8]."""
        start = self.readings[0, : 8 * self.body.hands].reshape(-1, 8)[:, :3]
        path = line(start, goal, self.body.embodiment.action.rate)
        return [self.follow(part, opening) for part in path][-1][-1]


def test_a_planar_arm_by_hand() -> None:
    joints = (Joint("one", (0, 0, 0), (0, 0, 1), -3, 3, 1), Joint("two", (1, 0, 0), (0, 0, 1), -3, 3, 1))
    chain = Chain(joints, pose((0, 0, 0.5)), pose((2, 0, 0)), np.zeros(2))
    there = chain.forward(np.array([[np.pi / 2, -np.pi / 2], [0.0, np.pi / 2]]))
    np.testing.assert_allclose(there[:, :3, 3], [[2, 1, 0.5], [1, 2, 0.5]], atol=1e-12)
    np.testing.assert_allclose(there[0, :3, :3], np.eye(3), atol=1e-12)


@SERVOED
def test_forward_kinematics_are_those_of_the_model(body: JointedBody) -> None:
    model, rng = scene(body), np.random.default_rng(0)
    data = mujoco.MjData(model)
    for _ in range(20):
        base, seen = None, 8 * body.hands
        data.qpos[:] = rng.uniform(model.jnt_range[:, 0], model.jnt_range[:, 1])
        mujoco.mj_forward(model, data)
        angles = data.sensordata[None]
        if body.waist is not None:
            base, seen = body.waist.forward(angles[:, seen : seen + 3]), seen + 3
        for hand, arm in enumerate(body.arms):
            tool = arm.chain.forward(angles[:, seen : seen + len(arm.chain.joints)], base)[0]
            sensed = data.sensordata[8 * hand : 8 * hand + 7]
            np.testing.assert_allclose(tool[:3, 3], sensed[:3], atol=1e-9)
            np.testing.assert_allclose(tool[:3, :3], kin.matrix_from_quaternion(sensed[3:]), atol=1e-9)
            seen += len(arm.chain.joints)


@SERVOED
@pytest.mark.parametrize("yaw", [-0.6, 0.0, 0.6])
def test_every_point_of_the_boxes_is_reached(body: JointedBody, yaw: float) -> None:
    tools = draw(body, np.random.default_rng(1), 200)
    bent = body.bend(np.zeros((200, 1, 3)), tools[:, None], None)[:, 0]
    base = None if body.waist is None else body.waist.forward(bent)
    for hand, arm in enumerate(body.arms):
        start = np.tile(arm.chain.posture, (200, 1))
        found = arm.chain.solve(start, downward(tools[:, hand], np.full(200, yaw)), base)
        assert found.distance.max() < CLOSE and found.angle.max() < CLOSE
        assert ((found.angles > arm.chain.limits[:, 0] + 0.01) & (found.angles < arm.chain.limits[:, 1] - 0.01)).all()


@SERVOED
def test_a_plan_does_not_depend_on_the_rest_of_the_batch(body: JointedBody) -> None:
    tools = draw(body, np.random.default_rng(2), 3)
    readings = np.concatenate([Robot(body, each).readings for each in tools])
    path = Path(tools[:, None] + np.zeros((3, HORIZON, 1, 1)), np.ones((3, HORIZON, body.hands)))
    together = body.command(readings, path)
    for row in range(3):
        only = slice(row, row + 1)
        alone = body.command(readings[only], Path(path.tools[only], path.opening[only]))
        np.testing.assert_allclose(together[only], alone, atol=1e-9)


def test_what_is_out_of_reach_is_refused_and_reported() -> None:
    far = np.array([[0.9, 0.0, 0.1]])
    for body in (BODIES["franka_ee"], BODIES["franka_joint"]):
        with pytest.raises(ValueError, match=r"out of reach.*pointing"):
            body.rest(far)
    chain = FrankaJoint.arms[0].chain
    found = chain.solve(chain.posture[None], downward(far, np.zeros(1)))
    assert not found.reached[0] and found.distance[0] > 0.1


@EVERY
def test_rest_is_at_rest(body: Body) -> None:
    for tools in draw(body, np.random.default_rng(3), 3):
        robot = Robot(body, tools)
        hands = robot.readings[0, : 8 * body.hands].reshape(-1, 8)
        np.testing.assert_allclose(hands[:, :3], tools, atol=CLOSE)
        assert np.abs(turned(hands[:, 3:7])).max() < 2 * CLOSE
        still = robot.follow(np.tile(tools, (HORIZON, 1, 1)), 1.0)
        assert np.abs(still[..., :3] - tools).max() < 2e-3


@EVERY
def test_plans_bring_the_tools_along_straight_lines(body: Body) -> None:
    rng, far = np.random.default_rng(4), []
    for start, goal in zip(draw(body, rng, 4), draw(body, rng, 4), strict=True):
        robot = Robot(body, start)
        for part in line(start, goal, body.embodiment.action.rate):
            hands = robot.follow(part, 1.0)
            far.append(np.linalg.norm(hands[..., :3] - part, axis=-1))
        assert np.linalg.norm(turned(hands[-1, :, 3:7]), axis=-1).max() < 0.02
    errors = np.concatenate(far)
    assert errors.mean() < 0.01 and errors.max() < 0.015


@EVERY
def test_yaw_turns_the_fingers(body: Body) -> None:
    tools = body.boxes.mean(-1)
    hands = Robot(body, tools).follow(np.tile(tools, (HORIZON, 1, 1)), 1.0, yaw=0.5)
    np.testing.assert_allclose(turned(hands[-1, :, 3:7]), np.tile([0, 0, 0.5], (body.hands, 1)), atol=0.03)


@EVERY
def test_grippers_open_close_and_lift_a_block(body: Body) -> None:
    middle = body.boxes.mean(-1)
    for hand in range(body.hands):
        robot = Robot(body, middle)
        opened = robot.go(middle, 1.0)[hand, 7]
        for _ in range(4):
            closed = robot.go(middle, -1.0)[hand, 7]
        assert opened > 0.014 and closed < -0.014
        low, high = middle.copy(), middle.copy()
        low[hand, 2], high[hand, 2] = 0.025, 0.15
        robot = Robot(body, middle, BLOCK.format(*middle[hand, :2]))
        robot.go(low, 1.0)
        for _ in range(4):
            robot.go(low, -1.0)
        end = robot.go(high, -1.0)
        np.testing.assert_allclose(robot.data.body("block").xpos, end[hand, :3], atol=0.015)


@SERVOED
def test_absurd_actions_move_targets_no_faster_than_joints_may(body: JointedBody) -> None:
    robot, rng = Robot(body, body.boxes.mean(-1)), np.random.default_rng(5)
    chains = [*([] if body.waist is None else [body.waist]), *(arm.chain for arm in body.arms)]
    speeds, ranges = (np.concatenate([getattr(chain, name) for chain in chains]) for name in ("speeds", "limits"))
    sizes = [len(arm.chain.joints) + 1 for arm in body.arms]
    grippers = np.cumsum(sizes) - 1 + (0 if body.waist is None else 3)
    for size in (1e12, 3.0):
        actions = rng.normal(size=(1, HORIZON, body.aims)) * size
        controls, _, aims = body.drive(robot.readings, robot.aim[None], actions, 5)
        moves = np.delete(np.diff(np.concatenate([robot.aim[None], aims[0]]), axis=0), grippers, axis=1)
        assert (np.abs(moves) <= speeds / body.embodiment.action.rate + 1e-12).all()
        angles = np.delete(aims[0], grippers, axis=1)
        assert (angles >= ranges[:, 0]).all() and (angles <= ranges[:, 1]).all()
        assert np.abs(aims[0, :, grippers]).max() <= 1 and np.isfinite(controls).all()


@EVERY
def test_ten_seconds_of_random_actions_leave_everything_in_its_place(body: Body) -> None:
    rng, convention = np.random.default_rng(6), body.embodiment.action
    robot = Robot(body, body.boxes.mean(-1), BLOCK.format(*body.boxes.mean(-1)[0, :2]))
    for _ in range(round(10 * convention.rate / HORIZON)):
        seen = robot.play(rng.normal(size=(HORIZON, convention.channels)) * rng.choice([0.1, 1.0, 100.0]))
        assert np.isfinite(seen).all() and np.abs(robot.data.qvel[robot.own]).max() < 50
        ranges, angles = robot.model.jnt_range[robot.own], robot.data.qpos[robot.own]
        assert (angles > ranges[:, 0] - 0.1).all() and (angles < ranges[:, 1] + 0.1).all()
    assert not any(warning.number for warning in robot.data.warning)


@EVERY
def test_numbers_of_a_body_are_those_of_its_model(body: Body) -> None:
    model, convention = scene(body), body.embodiment.action
    assert model.nu == body.actuators and model.nmocap == body.mocaps and model.nsensordata == body.readings
    substeps = 1 / (convention.rate * body.timestep)
    assert substeps == pytest.approx(round(substeps)) and round(substeps) >= 1
    assert 3 < model.body_mass.sum() < 25 and (model.dof_M0 > 0.01).all()
    assert {view.camera for view in body.cameras} == {model.camera(index).name for index in range(model.ncam)}
    middle = body.boxes.mean(-1)
    qpos, aim, mocap = body.rest(middle)
    assert (len(qpos), len(aim), mocap.shape) == (model.nq, body.aims, (body.mocaps, 7))
    assert all(np.array_equal(one, two) for one, two in zip((qpos, aim, mocap), body.rest(middle), strict=True))
    path = Path(np.tile(middle, (1, HORIZON, 1, 1)), np.ones((1, HORIZON, body.hands)))
    assert body.command(Robot(body, middle).readings, path).shape == (1, HORIZON, convention.channels)
