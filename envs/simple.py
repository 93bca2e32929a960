"""The shortest way to bring a world: write one environment, and `SimpleWorld` keeps the contract for many of it.

chunk [N, H, c] --row--> Episode.prepare -> step, step, ... until the episode ends
                         SimpleWorld: time limit, last observation, next episode, failures
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs import Entry
from envs.base import Disturbance, VectorEnv, check_keys, no_expert, used_actions
from envs.tally import Sight, Tally, gather
from rl_finetune.arrays import as_array, flag, number
from rl_finetune.errors import SimulatorError, UserError, brief, cause, simulator
from rl_finetune.instructions import instruction
from rl_finetune.keys import Stream, generator
from rl_finetune.pictures import fitted, picture
from rl_finetune.spec import EnvSpec
from rl_finetune.types import (
    ActionChunk,
    ChunkOutcome,
    Failure,
    FloatArray,
    Grounding,
    ImageArray,
    Observation,
    SeedKeys,
)


@dataclass(frozen=True, slots=True)
class Step:
    """What came of one environment step."""

    reward: float = 0.0
    """Reward of this step."""
    terminated: bool = False
    """The task itself is over, well or not."""
    success: bool = False
    """The task is done; that ends the episode too."""
    truncated: bool = False
    """Cut by the world itself. The time limit of the spec needs no word here."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where things appear in the first view: labels for supervised training, which no policy is shown."""

    points: Mapping[str, ArrayLike]
    """Name, of the spec's `things` -> (u, v) across the picture, 0..1, u right and v down; what is left out is not
    there."""
    target: str
    """The one that the task names."""


class Episode(ABC):
    """One environment. All that is random in an episode comes from the generator that `begin` is given."""

    def __init__(self, options: Any) -> None:  # noqa: B027
        """Take the options of the world; the base needs none."""

    @abstractmethod
    def begin(self, rng: np.random.Generator) -> str:
        """Start a new episode, and return its task in words."""

    @abstractmethod
    def step(self, action: FloatArray) -> Step:
        """Execute one action [c], in the units of the action convention."""

    def prepare(self, actions: FloatArray) -> FloatArray:
        """The actions [H, c] of a chunk, each as `step` shall get it; override where they refer to its first frame."""
        return actions

    def picture(self, view: str) -> ImageArray:
        """[h, w, 3] uint8, or floats within 0..1, of one of the spec's views; scaled to the spec's `image_size`."""
        raise NotImplementedError(f"{type(self).__name__} has no picture of {view!r}")

    def proprioception(self) -> FloatArray | None:
        """[P], or None where the body reports nothing."""
        return None

    def privileged(self) -> FloatArray | None:
        """[S] in the order of the spec's `privileged`; None where it names nothing."""
        return None

    def expert(self) -> FloatArray | None:
        """The chunk [H, c] that a good hand would play now, in the units of the action convention: what `sft` learns
        from. None where there is nobody to ask."""
        return None

    def places(self) -> Places | None:
        """Where the spec's `things` appear now; None where it names nothing."""
        return None

    def close(self) -> None:  # noqa: B027
        """Release what was opened."""


class SimpleWorld(VectorEnv):
    """N episodes side by side in this process. One that raises, or leaves the finite numbers, is built anew; the others
    go on."""

    def __init__(self, num_envs: int, spec: EnvSpec, build: Callable[[], Episode]) -> None:
        """Build `num_envs` environments."""
        self.spec, self.num_envs, self._build = spec, num_envs, build
        self._episodes = [build() for _ in range(num_envs)]
        self._steps = np.zeros(num_envs, np.int64)
        self._told = [""] * num_envs
        self._now: list[Sight] = []
        self._keys: SeedKeys | None = None

    def reset(self, keys: SeedKeys) -> Observation:
        """See `VectorEnv.reset`. Raises `SimulatorError` where an episode cannot begin; names it."""
        check_keys(keys, self.num_envs)
        self._keys = replace(keys, env=np.array(keys.env), episode=np.array(keys.episode))
        self._now = [self._begin(row, keys) for row in range(self.num_envs)]
        return gather(self._now, self.spec.embodiment.tag)

    def step_chunk(self, chunk: ActionChunk) -> ChunkOutcome:
        """See `VectorEnv.step_chunk`. A row that breaks down is a `Failure` of the outcome."""
        if self._keys is None:
            raise RuntimeError("step_chunk before reset: call reset(keys) first")
        actions = used_actions(chunk, self.spec, self.num_envs)
        tally = Tally(self.num_envs, actions.shape[1])
        films: list[list[ImageArray]] = [[] for _ in actions]
        for row, plan in enumerate(actions):
            try:
                self._now[row] = self._run(row, plan, tally, films[row])
            except UserError:
                raise
            except Exception as error:
                tally.fail(self._failure(row, self._keys, error), self._now[row])
                self._rebuild(row)
            if not tally.running[row]:
                tally.last.setdefault(row, self._now[row])
                self._keys.episode[row] += 1
                self._now[row] = self._begin(row, self._keys)
        if self.filming:
            view = self.spec.embodiment.views[0]
            self.filmed = [np.stack(film or [self._picture(row, view)]) for row, film in enumerate(films)]
        return tally.outcome(self._now, self.spec.embodiment.tag)

    def expert(self, seen: Observation, disturbed: Disturbance | None = None) -> NDArray[np.float64]:
        """See `VectorEnv.expert`. Each episode is asked what it would do now; raises a `UserError` where one gives
        nothing, or no chunk."""
        chunks = np.stack([self._shown(episode) for episode in self._episodes])
        return chunks + (0.0 if disturbed is None else disturbed.shift[:, None])

    def close(self) -> None:
        """See `VectorEnv.close`."""
        for episode in self._episodes:
            episode.close()
        self._episodes = []

    def _run(self, row: int, plan: FloatArray, tally: Tally, film: list[ImageArray]) -> Sight:
        """Play one row's chunk until it or the episode ends; return what it then shows."""
        episode = self._episodes[row]
        for action in episode.prepare(plan):
            step = self._read(episode.step(action))
            tally.step(row, step.reward)
            self._steps[row] += 1
            if self.filming:
                film.append(self._picture(row, self.spec.embodiment.views[0]))
            terminated = step.terminated or step.success
            if terminated or step.truncated or self._steps[row] >= self.spec.time_limit:
                tally.end(row, terminated=terminated, success=step.success)
                break
        return self._look(row)

    def _shown(self, episode: Episode) -> NDArray[np.float64]:
        convention, asked = self.spec.embodiment.action, episode.expert()
        if asked is None:
            raise no_expert(self.spec)
        chunk, shape = as_array(asked, f"{self.spec.name} expert"), (convention.horizon, convention.channels)
        if chunk.shape != shape or not np.isfinite(chunk).all():
            raise UserError(
                f"{self.spec.name} expert gives no chunk", got=brief(asked),
                expected=f"finite numbers [{shape[0]}, {shape[1]}]: steps, channels", do="correct `expert`",
            )  # fmt: skip
        return chunk.astype(np.float64)

    def _begin(self, row: int, keys: SeedKeys) -> Sight:
        rng = generator(keys.seed, Stream.SCENE, int(keys.scene[row]), int(keys.episode[row]))
        try:
            self._told[row] = instruction(self._episodes[row].begin(rng), f"instruction of {self.spec.name!r}")
            self._steps[row] = 0
            return self._look(row)
        except UserError:
            raise
        except Exception as error:
            raise SimulatorError(f"an episode cannot begin: {self._failure(row, keys, error)}") from error

    def _look(self, row: int) -> Sight:
        """What a row shows, in arrays of its own; raises `NotFiniteError` where a number is not finite."""
        episode, spec = self._episodes[row], self.spec
        sight = Sight(
            self._told[row],
            {view: self._picture(row, view) for view in spec.embodiment.views},
            _channels(episode.proprioception(), f"{spec.name} proprioception"),
            _channels(episode.privileged(), f"{spec.name} privileged", len(spec.privileged)),
            _labels(episode.places(), spec),
        )
        sight.check()
        return sight

    def _read(self, step: object) -> Step:
        """A step in plain numbers; raises a `UserError` where it is none."""
        name = self.spec.name
        if not isinstance(step, Step):
            raise UserError(
                f"{name} step cannot be read", got=brief(step), expected="an envs.simple.Step", do="return one"
            )
        flags = {key: flag(getattr(step, key), f"{name} {key}") for key in ("terminated", "success", "truncated")}
        return Step(number(step.reward, f"{name} reward"), **flags)

    def _picture(self, row: int, view: str) -> ImageArray:
        raw = picture(self._episodes[row].picture(view), f"{self.spec.name} picture {view!r}")
        return np.array(fitted(raw, self.spec.image_size))

    def _failure(self, row: int, keys: SeedKeys, error: Exception) -> Failure:
        return Failure(row, self.spec.name, keys.seed, int(keys.env[row]), int(keys.episode[row]), cause(error))

    def _rebuild(self, row: int) -> None:
        with suppress(Exception):  # what broke may well break again while it is closed
            self._episodes[row].close()
        with simulator():
            self._episodes[row] = self._build()


def _channels(value: object, what: str, width: int | None = None) -> FloatArray | None:
    """Numbers [width] of a row, in an array of its own; None where there are none.

    Raises:
        UserError: it is something else.
    """
    if value is None and not width:
        return None
    found = as_array(value, what)
    if found.ndim != 1 or width not in (None, len(found)):
        raise UserError(
            f"{what} has another shape than the spec", got=brief(value),
            expected=f"[{'P' if width is None else width}]", do="correct it, or the spec",
        )  # fmt: skip
    return np.array(found, np.float32)


def _labels(places: Places | None, spec: EnvSpec) -> Grounding | None:
    """One row of grounding labels.

    Raises:
        UserError: they are not of the spec's things, or are no places in a picture.
    """
    if places is None and not spec.things:
        return None
    named = set() if places is None else {*places.points, places.target}
    if places is None or not named <= set(spec.things) or places.target not in places.points:
        raise UserError(
            f"{spec.name} places do not go with the spec", got=brief(places),
            expected=f"a target and points among the things {spec.things}", do="correct `places`, or EnvSpec.things",
        )  # fmt: skip
    points, present = np.zeros((1, len(spec.things), 2), np.float32), np.zeros((1, len(spec.things)), bool)
    for name, place in places.points.items():
        at = spec.things.index(name)
        points[0, at], present[0, at] = _channels(place, f"{spec.name} place of {name}", 2), True
    return Grounding(spec.things, points, present, np.array([spec.things.index(places.target)]))


@dataclass(frozen=True, slots=True)
class NoOptions:
    """A world without settings of its own."""


def entry(
    episode: Callable[[Any], Episode], spec: EnvSpec | Callable[[Any], EnvSpec], options: type[Any] = NoOptions
) -> Entry:
    """Make a world of an `Episode` class.

    Args:
        episode: options -> one environment, usually the class itself.
        spec: what the world promises, or options -> that; that there is an expert is seen from a class.
        options: frozen dataclass of the world's settings.
    """

    shown = isinstance(episode, type) and issubclass(episode, Episode) and episode.expert is not Episode.expert

    def describe(chosen: Any) -> EnvSpec:
        promised = spec if isinstance(spec, EnvSpec) else spec(chosen)
        return replace(promised, expert=promised.expert or shown)

    def build(num_envs: int, chosen: Any) -> VectorEnv:
        return SimpleWorld(num_envs, describe(chosen), lambda: episode(chosen))

    return Entry(options, describe, build)
