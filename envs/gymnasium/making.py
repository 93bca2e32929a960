"""Making gymnasium environments, and asking one what it is like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from envs.gymnasium.options import NAME, RENDER, GymnasiumOptions
from envs.imported import imported
from rl_finetune.errors import SimulatorError, UserError, cause, is_theirs

SCALES = (1.0, 255.0)
"""Numbers that stand for white where the bounds of a space are they."""
_probed: dict[str, Facts] = {}


@dataclass(frozen=True, slots=True)
class Facts:
    """What an environment says of itself."""

    channels: int
    """Width of its action."""
    time_limit: int
    """Steps of an episode: the option's, or its own."""
    privileged: tuple[str, ...]
    """Names of the privileged channels."""
    one_by_one: bool
    """Whether its environments can be stepped alone."""


class Telling(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Says where an environment raised before gymnasium hands its exception, and nothing else, to another process."""

    def reset(self, **given: Any) -> Any:
        """See `gymnasium.Env.reset`; raises a `SimulatorError` where it raises anything."""
        return self._told(self.env.reset, **given)

    def step(self, action: Any) -> Any:
        """See `gymnasium.Env.step`; raises like `reset`."""
        return self._told(self.env.step, action)

    def _told(self, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
        try:
            return call(*given, **named)
        except Exception as error:
            raise SimulatorError(cause(error)) from None


def probe(options: GymnasiumOptions) -> Facts:
    """Make one environment, ask it, close it; once for each set of options in a process.

    Raises:
        UserError: there is none, or its spaces do not fit the options.
    """
    known = _probed.get(repr(options))
    if known is not None:
        return known
    one = options.id != "" and options.vectorization == "sync"
    asked: Any = make_one(options) if one else make_together(options, 1)
    try:
        facts = _ask(asked, options)
    finally:
        asked.close()
    _probed[repr(options)] = facts
    return facts


def make_one(options: GymnasiumOptions) -> gymnasium.Env[Any, Any]:
    """A single environment, the way `sync` would make it."""
    if options.factory:
        together = make_together(options, 1)
        assert isinstance(together, SyncVectorEnv)
        together.closed = True  # else it closes the environment as soon as it is collected
        return together.envs[0]
    return _made(options, lambda: gymnasium.make(options.id, disable_env_checker=True, **_arguments(options)))


def make_together(options: GymnasiumOptions, num_envs: int) -> VectorEnv[Any, Any, Any]:
    """`num_envs` environments that step at once."""
    if options.factory:
        factory = imported(options.factory, "factory of environments")
        made = _made(options, lambda: factory(num_envs=num_envs, **options.kwargs))
        if not isinstance(made, VectorEnv):
            raise _unfit("factory", type(made).__name__, "a gymnasium.vector.VectorEnv", "return one")
        return made
    mode, arguments = options.vectorization, _arguments(options)
    # Its own environments restart when they are told to; a vector entry point has a way of its own.
    how = {"autoreset_mode": AutoresetMode.DISABLED} if mode != "vector_entry_point" else None
    wrappers = [Telling] if mode == "async" else None
    return _made(
        options,
        lambda: gymnasium.make_vec(
            options.id, num_envs=num_envs, vectorization_mode=mode, vector_kwargs=how, wrappers=wrappers, **arguments
        ),
    )


def _arguments(options: GymnasiumOptions) -> dict[str, Any]:
    drawn = RENDER in options.views.values()
    return ({"render_mode": "rgb_array"} if drawn else {}) | options.kwargs


def _made(options: GymnasiumOptions, make: Any) -> Any:
    try:
        return make()
    except UserError:
        raise
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise _unfit("id", repr(options.id), f"an environment that can be made here: {error}", "correct it") from error
    except Exception as error:
        if isinstance(error, TypeError) and not is_theirs(error):
            raise _unfit("kwargs", options.kwargs, f"arguments that it takes: {error}", "correct them") from error
        raise UserError(
            f"{NAME} environment {options.id or options.factory!r} cannot be made", got=cause(error),
            expected="no exception", do="mend it there",
        ) from error  # fmt: skip


def _ask(env: Any, options: GymnasiumOptions) -> Facts:
    vector = isinstance(env, VectorEnv)
    action = env.single_action_space if vector else env.action_space
    seen = env.single_observation_space if vector else env.observation_space
    if not isinstance(action, spaces.Box):
        raise _unfit("id", f"actions {action}", "a Box of numbers", "wrap the environment")
    channels = int(np.prod(action.shape))
    if len(options.action_scale) not in (0, 1, channels):
        raise _unfit("action_scale", options.action_scale, f"one number, or {channels}", "count the channels")
    arm = options.arm_width + (options.gripper != "none")
    if options.actions == "per_step" and channels % arm:
        raise _unfit("actions", f"{channels} channels", f"{arm} for each arm", "set rotation and gripper, or as_is")
    if RENDER in options.views.values() and env.render_mode != "rgb_array":
        raise _unfit("views", f"render_mode={env.render_mode!r}", "'rgb_array'", "make the environment so")
    for source in (*options.views.values(), *options.proprioception):
        _part(seen, source)
    names = [name for source in options.privileged for name in _names(source, _part(seen, source))]
    # A wrapped one may do more than its environments do alone.
    one = type(env) is SyncVectorEnv if vector and options.factory else not vector
    return Facts(channels, _time_limit(env, options), tuple(names), one)


def _time_limit(env: Any, options: GymnasiumOptions) -> int:
    registered: Any = env.spec.max_episode_steps if env.spec is not None else None
    if not (options.time_limit or registered):
        raise _unfit("time_limit", 0, "a number: the environment is registered without", "set it")
    if registered and options.time_limit > registered:
        raise _unfit("time_limit", options.time_limit, f"at most its own {registered}", "set kwargs.max_episode_steps")
    return options.time_limit or int(registered)


def whites(space: Any, options: GymnasiumOptions) -> dict[str, float]:
    """Source of a view -> the number that stands for white in it, where the options or the bounds of its space say so.

    Args:
        space: of one environment's observation.
        options: its options.
    """
    found = {source: float(options.image_max) for source in options.views.values() if options.image_max}
    for source in options.views.values():
        bounds = getattr(_part(space, source), "high", None)
        if bounds is not None and source not in found and (high := float(np.max(bounds))) in SCALES:
            found[source] = high
    return found


def _part(space: Any, source: str) -> Any:
    """The space that a source in `obs` names; None where it is no part of the observation."""
    if not source.startswith("obs"):
        return None
    for key in source.split(".")[1:]:
        known = list(space.spaces) if isinstance(space, spaces.Dict) else []
        if key not in known:
            raise _unfit("views, proprioception or privileged", repr(source), f"keys {known}", "correct the source")
        space = space.spaces[key]
    return space


def _names(source: str, space: Any) -> list[str]:
    if space.shape is None:
        raise _unfit("privileged", f"{source!r}, which is {space}", "an array", "name one of its keys")
    return [f"{source.removeprefix('obs.')}_{i}" for i in range(int(np.prod(space.shape)))]


def _unfit(option: str, got: object, expected: str, do: str) -> UserError:
    return UserError(f"{NAME} cannot use option {option!r}", got=got, expected=expected, do=do)
