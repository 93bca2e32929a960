"""What a user says about a gymnasium environment, and what the world then promises."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from envs.typed import typed
from rl_finetune.errors import UserError
from rl_finetune.instructions import instruction
from rl_finetune.spec import ActionConvention, EmbodimentSpec, EnvSpec

NAME = "gymnasium"
RENDER = "render"
SUCCESS_KEYS = ("is_success", "success")
Positive = Annotated[float, Gt(0)]
Whole = Annotated[int, Ge(1)]


@dataclass(frozen=True, slots=True)
class GymnasiumOptions:
    """One environment, the body in it, and where its pictures and numbers come from.

    A source is `obs` (the whole observation), `obs.KEY.KEY` (a part of a dict observation), `info.KEY`, or for pictures
    `render` (the frame that the environment draws).
    """

    id: str = ""
    """Registered id; `module:Id-v0` imports the module that registers it first."""
    factory: str = ""
    """Instead of an id, `package.module:callable`: called with `num_envs` and `kwargs`, it returns a vector
    environment."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment."""
    vectorization: Literal["sync", "async", "vector_entry_point"] = "sync"
    """How environments with an id are put side by side, in gymnasium's words. `sync` keeps a failure in its row."""
    tag: str = "robot"
    """Robot tag of the prompt."""
    arms: Literal["single arm", "dual arms", ""] = ""
    """Arms of the body."""
    waist: bool = False
    """Whether the body has a waist."""
    mobile_base: bool = False
    """Whether it drives."""
    horizon: Whole = 8
    """Steps of one open-loop chunk."""
    control: Literal["delta_ee", "joint", "waypoint", "trace"] = "joint"
    """As in `ActionConvention`."""
    rotation: Literal["axis_angle", "none"] = "none"
    """As in `ActionConvention`."""
    gripper: Literal["open_positive", "none"] = "none"
    """As in `ActionConvention`."""
    rate: Positive = 10.0
    """Control frequency in Hz."""
    actions: Literal["as_is", "per_step"] = "as_is"
    """`per_step` turns displacements from the chunk's first frame into one step's own, which most environments with
    end-effector control take; `as_is` hands actions over unchanged."""
    action_scale: tuple[float, ...] = ()
    """Actions are divided by it, and then clipped to the environment's bounds: what 1 of the environment's own action
    means in the convention's units. One number for each channel, or one for all; empty is 1."""
    views: dict[str, str] = field(default_factory=dict)
    """View tag -> source. None at all is a world of state only, which a policy with eyes cannot act in."""
    image_size: Whole = 64
    """Side in pixels to which pictures are scaled; what is not square is padded with black."""
    image_max: Literal[0, 1, 255] = 0
    """The number that stands for white in pictures that are not uint8. 0 takes the upper bound of their space where
    that is 1 or 255, else 255 for whole numbers and 1 for floats."""
    proprioception: tuple[str, ...] = ()
    """Sources in `obs` that are joined to `Observation.proprioception`."""
    privileged: tuple[str, ...] = ()
    """Sources in `obs` that are joined to `Observation.privileged`."""
    instruction: str = ""
    """The task in words, or a source of them."""
    success: str = "info"
    """`info` (its `is_success` or `success`), `info.KEY`, `terminated` (every end by the task), or `never`. Success
    ends an episode."""
    time_limit: Annotated[int, Ge(0)] = 0
    """Steps of an episode; 0 takes the limit that the environment is registered with."""

    def __post_init__(self) -> None:
        typed(self, NAME)
        named = bool(self.id) != bool(self.factory)
        _require(named, "id", f"id={self.id!r}, factory={self.factory!r}", "one of id and factory")
        _require(bool(self.instruction), "instruction", self.instruction, "the task in words, or a source of them")
        if not is_source(self.instruction):
            object.__setattr__(self, "instruction", instruction(self.instruction, f"{NAME} option 'instruction'"))
        for tag, source in self.views.items():
            _require(source == RENDER or is_source(source), f"views.{tag}", source, "`render`, `obs...` or `info.KEY`")
        for name in ("proprioception", "privileged"):
            fits = all(is_source(source) and source.startswith("obs") for source in getattr(self, name))
            _require(fits, name, getattr(self, name), "sources `obs` or `obs.KEY`")
        known = self.success in ("info", "terminated", "never") or self.success.startswith("info.")
        _require(known, "success", self.success, "`info`, `info.KEY`, `terminated` or `never`")
        _require(0.0 not in self.action_scale, "action_scale", self.action_scale, "numbers other than 0")

    @property
    def arm_width(self) -> int:
        """Channels of one arm's displacement, without its gripper."""
        return 6 if self.rotation == "axis_angle" else 3


def is_source(text: str) -> bool:
    """Whether `text` names a part of an observation or of an info."""
    return text == "obs" or text.startswith(("obs.", "info."))


def _require(holds: bool, option: str, got: object, expected: str) -> None:
    if not holds:
        raise UserError(f"{NAME} cannot use option {option!r}", got=repr(got), expected=expected, do=f"set {option}")


def spec(options: GymnasiumOptions) -> EnvSpec:
    """What the world promises. Makes one environment to ask for the width of its action, its state and its time limit.

    Raises:
        UserError: there is no such environment, or its spaces do not fit the options.
    """
    from envs.gymnasium.making import probe

    facts = probe(options)
    action = ActionConvention(
        channels=facts.channels,
        horizon=options.horizon,
        control=options.control,
        rotation=options.rotation,
        gripper=options.gripper,
        rate=options.rate,
    )
    body = EmbodimentSpec(
        tag=options.tag,
        arms=options.arms,
        views=tuple(options.views),
        action=action,
        waist=options.waist,
        mobile_base=options.mobile_base,
    )
    return EnvSpec(
        name=NAME,
        embodiment=body,
        image_size=options.image_size,
        time_limit=facts.time_limit,
        privileged=facts.privileged,
        tasks=() if is_source(options.instruction) else (options.instruction,),
    )
