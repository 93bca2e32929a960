"""What a user may choose about a simulated world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from envs.typed import typed
from rl_finetune.errors import UserError

IMAGE_SIZES = (64, 96, 128, 224)
FINEST = 0.005
"""Smallest tolerance in metres: fingertips end 3 mm beyond the tool centre point."""
COARSEST = 0.045
"""Largest: neighbouring blocks stay apart."""
Engines = Literal["mujoco", "mujoco_warp"]
Controls = Literal["delta_ee", "joint"]
Suite = Literal[
    "none", "colour", "instance", "position", "background", "lighting", "paraphrase", "distractors", "all"
]  # fmt: skip
Randomised = Literal["visual", "mass", "friction", "latency", "action_noise"]
STRONGEST = 2.0
"""Of randomisation."""
LARGEST = 10.0
"""Reward a metre."""


@dataclass(frozen=True, slots=True)
class WorldOptions:
    """Common to all worlds that MuJoCo simulates."""

    image_size: int = 64
    """Side of the pictures in pixels: 64, 96, 128 or 224."""
    backend: Engines = "mujoco"
    """`mujoco` simulates on the CPU, `mujoco_warp` thousands of worlds on a GPU (extra `warp`)."""
    perturb: Suite = "none"
    """What differs from training, to test a policy out of distribution: `colour` (dark and light shades), `instance`
    (shapes), `position` (places and starts), `background`, `lighting`, `paraphrase`, `distractors`, or `all`."""
    randomise: tuple[Randomised, ...] = ()
    """What varies from episode to episode in training: `visual`, `mass`, `friction`, `latency`, `action_noise`."""
    strength: float = 1.0
    """How far what is randomised varies; 0 leaves it as it is."""

    def __post_init__(self) -> None:
        typed(self, "this world")
        one_of("image_size", self.image_size, IMAGE_SIZES)
        within("strength", self.strength, 0.0, STRONGEST, "strength")


@dataclass(frozen=True, slots=True)
class ReachOptions(WorldOptions):
    """Of worlds in which a block is reached."""

    tolerance: float = 0.03
    """Distance in metres between the tool and the top of a block that counts as reached."""
    progress: float = 0.0
    """Reward for each metre by which a chunk brings the tool nearer, beside 1 for success; 0 rewards success alone."""

    def __post_init__(self) -> None:
        WorldOptions.__post_init__(self)
        within("tolerance", self.tolerance, FINEST, COARSEST, "metres")
        within("progress", self.progress, 0.0, LARGEST, "reward a metre")


@dataclass(frozen=True, slots=True)
class MovingOptions(ReachOptions):
    """Of worlds in which the blocks slide."""

    block_speed: float = 0.04
    """Metres a second at which blocks slide across the table, at most."""

    def __post_init__(self) -> None:
        ReachOptions.__post_init__(self)
        within("block_speed", self.block_speed, 0.001, 0.15, "metres a second")


@dataclass(frozen=True, slots=True)
class TraceOptions(WorldOptions):
    """Of trajectory prediction."""

    tolerance: float = 0.05
    """Picture widths by which points may be off, on average and at the end."""

    def __post_init__(self) -> None:
        WorldOptions.__post_init__(self)
        within("tolerance", self.tolerance, 0.005, 0.2, "picture widths")


@dataclass(frozen=True, slots=True)
class FrankaReachOptions(ReachOptions):
    """Of the arm with two control modes."""

    control: Controls = "delta_ee"
    """`delta_ee` (robot tag `franka_ee`) or `joint` (`franka_joint`)."""


@dataclass(frozen=True, slots=True)
class FrankaOptions(WorldOptions):
    """Of the same arm where it grasps."""

    control: Controls = "delta_ee"
    """`delta_ee` (robot tag `franka_ee`) or `joint` (`franka_joint`)."""


def one_of(name: str, got: object, allowed: tuple[object, ...]) -> None:
    """Raise a `UserError` unless the option `name` has one of the `allowed` values."""
    if got not in allowed:
        raise UserError(f"no such {name}", got=got, expected=f"one of {allowed}", do=f"set {name} to one of them")


def within(name: str, got: float, low: float, high: float, unit: str) -> None:
    """Raise a `UserError` unless the option `name` lies in [low, high)."""
    if not low <= got < high:
        raise UserError(
            f"impossible {name}", got=got, expected=f"{low} <= {unit} < {high}", do=f"choose {name} within these bounds"
        )
