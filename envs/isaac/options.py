"""What a user says about an Isaac Lab task, and what the environment promises. Imports no simulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from envs.typed import typed
from rl_finetune.errors import UserError
from rl_finetune.instructions import instruction
from rl_finetune.spec import ActionConvention, EmbodimentSpec, EnvSpec

NAME = "isaac"
SOURCES = ("camera:", "obs:")


@dataclass(frozen=True, slots=True)
class IsaacOptions:
    """One Isaac Lab task, the body in it, and where its pictures and numbers come from."""

    task: str = ""
    """Registered id, for example `Isaac-Stack-Cube-Franka-IK-Rel-Visuomotor-v0`."""
    modules: tuple[str, ...] = ()
    """Modules of Isaac's environment that register tasks when imported, besides `isaaclab_tasks`."""
    overrides: tuple[str, ...] = ()
    """Presets of Isaac Lab 3.0, for example `physics=newton_mjwarp`."""
    python: str | None = None
    """Interpreter of Isaac's environment; null takes the present one."""
    device: str = "cuda:0"
    """Where Isaac simulates. One process a GPU."""
    tag: str = "franka"
    """Robot tag of the prompt."""
    arms: Literal["single arm", "dual arms", ""] = "single arm"
    """Arms of the body."""
    waist: bool = False
    """Whether the body has a waist."""
    mobile_base: bool = False
    """Whether it drives."""
    channels: int = 7
    """Width of the task's action."""
    horizon: int = 16
    """Steps of one open-loop chunk."""
    control: Literal["delta_ee", "joint", "waypoint", "trace"] = "delta_ee"
    """As in `ActionConvention`."""
    rotation: Literal["axis_angle", "none"] = "axis_angle"
    """As in `ActionConvention`."""
    gripper: Literal["open_positive", "none"] = "open_positive"
    """As in `ActionConvention`; Isaac's binary grippers open at positive numbers too."""
    rate: float = 20.0
    """Control frequency in Hz; must be the task's own."""
    actions: Literal["per_step", "as_is"] = "per_step"
    """`per_step` turns displacements from the chunk's first frame into one step's own, as Isaac's relative inverse
    kinematics take them; `as_is` hands actions over unchanged."""
    action_scale: float = 1.0
    """Scale of the task's action term: displacements are divided by it, so that they stay metres and radians."""
    views: Mapping[str, str] = field(default_factory=lambda: {"ego": "camera:table_cam"})
    """View tag -> `camera:NAME` of the scene, or `obs:GROUP/TERM` with uint8 pictures."""
    image_size: int = 224
    """Side of the pictures in pixels; the task's cameras are set to it."""
    proprioception: str | None = None
    """`obs:GROUP` or `obs:GROUP/TERM`, or null."""
    privileged: str | None = None
    """`obs:GROUP` or `obs:GROUP/TERM` for critics that may see the state, or null."""
    privileged_names: tuple[str, ...] = ()
    """Names of the channels of `privileged`."""
    quaternions: tuple[int, ...] = ()
    """First channels of quaternions in `privileged`; they arrive as w, x, y, z whatever Isaac's order is."""
    instructions: tuple[str, ...] = ()
    """The task in words; episodes take turns where there are several."""
    success_term: str = "success"
    """Termination term that means success."""
    without_success_term: Literal["refuse", "terminated", "extras", "never"] = "refuse"
    """Where the task has no such term: `refuse`, count every `terminated` episode, read `extras[success_term]`, or
    `never` succeed."""
    reward: Literal["success", "task"] = "success"
    """`success` is 1 at the step that succeeds, else 0; `task` is the task's own."""
    time_limit: int = 0
    """Environment steps of an episode, a multiple of the horizon. Takes the place of the task's own."""
    seed: int = 0
    """Seed with which the task is built."""
    start_seconds: float = 900.0
    """Longest wait for Isaac to start; the first start compiles shaders."""
    step_seconds: float = 300.0
    """Longest wait for one chunk or one reset."""

    def __post_init__(self) -> None:
        typed(self, NAME)
        _require(bool(self.views), "views", self.views, "tag: source, at least one")
        object.__setattr__(self, "views", MappingProxyType(dict(self.views)))
        _require(bool(self.task), "task", self.task, "the id of a registered Isaac Lab task")
        _require(bool(self.instructions), "instructions", self.instructions, "at least one")
        texts = tuple(instruction(text, f"{NAME} option 'instructions'") for text in self.instructions)
        object.__setattr__(self, "instructions", texts)
        _require(self.horizon >= 1 and self.channels >= 1, "horizon", self.horizon, "at least 1, like channels")
        limit = self.time_limit
        _require(limit >= 1 and limit % self.horizon == 0, "time_limit", limit, f"a multiple of horizon {self.horizon}")
        _require(self.rate > 0 and self.action_scale > 0, "action_scale", self.action_scale, "above 0, like rate")
        _check_sources(self)
        _check_python(self.python)


def _check_sources(options: IsaacOptions) -> None:
    for tag, source in options.views.items():
        _require(source.startswith(SOURCES), f"views.{tag}", source, "`camera:NAME` or `obs:GROUP/TERM`")
    for name in ("proprioception", "privileged"):
        source = getattr(options, name)
        _require(source is None or source.startswith("obs:"), name, source, "`obs:GROUP` or `obs:GROUP/TERM`")
    names, firsts = options.privileged_names, options.quaternions
    told = (options.privileged is None) == (not names)
    _require(told, "privileged_names", names, "a name for each channel of privileged, and none without it")
    fits = all(0 <= first <= len(names) - 4 for first in firsts)
    _require(fits, "quaternions", firsts, f"first of four channels among {len(names)}")
    if options.actions == "per_step" and options.control == "delta_ee":
        arm = 6 if options.rotation == "axis_angle" else 3
        whole = options.channels % (arm + (options.gripper != "none")) == 0
        _require(whole, "channels", options.channels, f"{arm} channels an arm, and one for its gripper")


def _check_python(python: str | None) -> None:
    _require(
        python is None or Path(python).is_file(), "python", python, "a file: the interpreter of Isaac's environment"
    )


def _require(holds: bool, option: str, got: object, expected: str) -> None:
    if not holds:
        known = next((f.name for f in fields(IsaacOptions) if f.name == option.split(".")[0]), option)
        raise UserError(f"{NAME} cannot use option {option!r}", got=repr(got), expected=expected, do=f"set {known}")


def convention(options: IsaacOptions) -> ActionConvention:
    """The action convention that the options declare."""
    return ActionConvention(
        channels=options.channels,
        horizon=options.horizon,
        control=options.control,
        rotation=options.rotation,
        gripper=options.gripper,
        rate=options.rate,
    )


def spec(options: IsaacOptions) -> EnvSpec:
    """What the environment promises; starts no Isaac. The worker compares it with the task when it has started."""
    body = EmbodimentSpec(
        tag=options.tag,
        arms=options.arms,
        views=tuple(options.views),
        action=convention(options),
        waist=options.waist,
        mobile_base=options.mobile_base,
    )
    return EnvSpec(
        name=NAME,
        embodiment=body,
        image_size=options.image_size,
        time_limit=options.time_limit,
        privileged=options.privileged_names,
        tasks=options.instructions,
    )


def arm_width(options: IsaacOptions) -> int:
    """Channels of one arm without its gripper, for displacement control."""
    return 6 if options.rotation == "axis_angle" else 3


def held_channels(options: IsaacOptions) -> tuple[int, ...]:
    """Channels that keep their last value when an episode ends inside a chunk; the others go to zero.

    A zero displacement stands still, but a zero gripper command moves it, and so do zero joint positions.
    """
    if options.control != "delta_ee":
        return tuple(range(options.channels))
    width = arm_width(options) + (options.gripper != "none")
    return tuple(c for c in range(options.channels) if options.gripper != "none" and c % width == width - 1)
