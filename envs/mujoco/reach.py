"""The reach task: what a scene contains, how one is drawn, and what the environment promises. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rl_finetune.errors import UserError
from rl_finetune.keys import Stream, generator
from rl_finetune.spec import ActionConvention, EmbodimentSpec, EnvSpec

Float64 = NDArray[np.float64]

NAME = "widowx_reach"
COLOURS = ("red", "green", "blue", "yellow")
BLOCK_EDGE = 0.05
BLOCKS = 3
GROUND = np.array([[0.13, 0.37], [-0.16, 0.16]])
"""[2, 2] metres: x and y in which block centres lie, base frame."""
TOOL_BOX = np.array([[0.12, 0.385], [-0.17, 0.17], [0.02, 0.22]])
"""[3, 2] metres: where the tool may be sent."""
START_HEIGHT = (0.12, 0.21)
BLOCK_SPACING = 0.09
START_CLEARANCE = 0.10
FINEST = 0.005
"""Smallest tolerance in metres: fingertips end 3 mm beyond the tool centre point."""
PHRASES = ("reach the {c} block", "touch the {c} block", "move the gripper to the {c} block")
RATE = 5.0
HORIZON = 8
TIME_LIMIT = 32
IMAGE_SIZES = (64, 128, 224)


@dataclass(frozen=True, slots=True)
class ReachOptions:
    """What a user may choose about the environment."""

    image_size: int = 64
    """Side of the picture in pixels: 64, 128 or 224."""
    tolerance: float = 0.03
    """Distance in metres between the tool and the top of a block that counts as reached."""

    def __post_init__(self) -> None:
        if self.image_size not in IMAGE_SIZES:
            raise UserError(
                f"{NAME} has no such picture size",
                got=self.image_size,
                expected=f"one of {IMAGE_SIZES}",
                do="set image_size to one of them",
            )
        if not FINEST <= self.tolerance < BLOCK_SPACING / 2:
            raise UserError(
                f"{NAME} cannot use this tolerance",
                got=self.tolerance,
                expected=f"{FINEST} <= metres < {BLOCK_SPACING / 2}",
                do="choose one that fingertips can meet and that keeps neighbouring blocks apart",
            )


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything random about one episode."""

    tops: Float64
    """[4, 3] centre of each palette colour's upper face in metres, base frame; zero where absent."""
    yaw: Float64
    """[4] rotation of each block about the vertical, radians."""
    present: NDArray[np.bool_]
    """[4] which colours lie on the table."""
    target: int
    """Index into `COLOURS` of the block that the instruction names."""
    instruction: str
    """The task in words."""
    tool: Float64
    """[3] where the tool starts, metres."""


def draw_scene(seed: int, env: int, episode: int) -> Scene:
    """The scene of one episode: a pure function of its key."""
    rng = generator(seed, Stream.SCENE, env, episode)
    colours = rng.permutation(len(COLOURS))[:BLOCKS]
    tops = np.zeros((len(COLOURS), 3))
    tops[colours] = _spread(rng)
    present = np.zeros(len(COLOURS), bool)
    present[colours] = True
    target = int(colours[rng.integers(BLOCKS)])
    phrase = PHRASES[rng.integers(len(PHRASES))]
    return Scene(
        tops=tops,
        yaw=rng.uniform(-np.pi / 4, np.pi / 4, len(COLOURS)),
        present=present,
        target=target,
        instruction=phrase.format(c=COLOURS[target]),
        tool=_start(rng, tops[colours]),
    )


def _spread(rng: np.random.Generator) -> Float64:
    """Tops [3, 3] of blocks that keep `BLOCK_SPACING`; a set that does not is drawn again whole."""
    while True:
        centres = rng.uniform(GROUND[:, 0], GROUND[:, 1], (BLOCKS, 2))
        apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1)[np.triu_indices(BLOCKS, 1)]
        if apart.min() >= BLOCK_SPACING:
            return np.column_stack([centres, np.full(BLOCKS, BLOCK_EDGE)])


def _start(rng: np.random.Generator, tops: Float64) -> Float64:
    low, high = (np.append(GROUND[:, side], START_HEIGHT[side]) for side in (0, 1))
    while True:
        tool = rng.uniform(low, high)
        if np.linalg.norm(tops - tool, axis=-1).min() >= START_CLEARANCE:
            return tool


def spec(options: ReachOptions) -> EnvSpec:
    """What the environment promises; needs neither MuJoCo nor a renderer."""
    action = ActionConvention(
        channels=7, horizon=HORIZON, control="delta_ee", rotation="axis_angle", gripper="open_positive", rate=RATE
    )
    place = [f"{thing}_{axis}" for thing in ("tool", "target") for axis in "xyz"]
    blocks = [f"{colour}_{field}" for colour in COLOURS for field in ("x", "y", "z", "present")]
    return EnvSpec(
        name=NAME,
        embodiment=EmbodimentSpec(tag="widowx", arms="single arm", views=("ego",), action=action),
        image_size=options.image_size,
        time_limit=TIME_LIMIT,
        privileged=tuple(place + blocks),
        tasks=tuple(phrase.format(c=colour) for colour in COLOURS for phrase in PHRASES),
    )
