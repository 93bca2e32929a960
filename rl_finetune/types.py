"""Records that cross the project's borders. numpy only: torch never crosses a process boundary.

Letters in shapes: N environments side by side, T chunks in a row, H steps of a chunk (padded horizon), K action
channels (padded width), c channels a body really uses (the leading ones), J scored denoising transitions of a chain,
h x w pixels, L context tokens, D context width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
ImageArray = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SeedKeys:
    """Names one episode for each of N environments; everything random in it follows from the key."""

    seed: int
    """Seed of the run, or of an evaluation."""
    env: IntArray
    """[N] global number of the environment, whatever actor holds it."""
    episode: IntArray
    """[N] number of the episode within that environment."""
    group: int = 1
    """Environments in a row that begin each episode in the same state, for objectives that compare them."""

    def __len__(self) -> int:
        return len(self.env)

    @property
    def scene(self) -> IntArray:
        """[N] what initial states are keyed by in place of `env`; noise is keyed by `env`."""
        return self.env // self.group

    def rows(self, index: slice | IntArray) -> SeedKeys:
        """The keys of some of the environments."""
        return replace(self, env=self.env[index], episode=self.episode[index])

    def at(self, episode: IntArray) -> SeedKeys:
        """The same environments in other episodes [N]."""
        return replace(self, episode=episode)


@dataclass(frozen=True, slots=True)
class Grounding:
    """Where named things appear in the first view: labels of the auxiliary 2-D grounding loss, never an input."""

    names: tuple[str, ...]
    """P names in the order of `EnvSpec.things`, the same for every environment."""
    points: FloatArray
    """[N, P, 2] image coordinates (u right, v down), 0..1 across the picture."""
    present: BoolArray
    """[N, P] whether the thing is in the scene."""
    target: IntArray
    """[N] index of the thing that the instruction names."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What N robots of one embodiment see at a chunk boundary."""

    images: Mapping[str, ImageArray]
    """View tag -> [N, h, w, 3] uint8 RGB."""
    instruction: tuple[str, ...]
    """[N] task in words."""
    embodiment: str
    """Robot tag of all N."""
    proprioception: FloatArray | None = None
    """[N, P] or None: the paper's model has none by default."""
    privileged: FloatArray | None = None
    """[N, S] simulator state for experts, critics and labels, in the order of `EnvSpec.privileged`; metres."""
    grounding: Grounding | None = None
    """Labels of the auxiliary grounding loss, where the simulator can tell."""

    def __len__(self) -> int:
        return len(self.instruction)

    def rows(self, index: IntArray) -> Observation:
        """Some of the environments, in the order of `index` [M]."""
        g = self.grounding
        return Observation(
            images={tag: image[index] for tag, image in self.images.items()},
            instruction=tuple(self.instruction[i] for i in index),
            embodiment=self.embodiment,
            proprioception=None if self.proprioception is None else self.proprioception[index],
            privileged=None if self.privileged is None else self.privileged[index],
            grounding=None if g is None else Grounding(g.names, g.points[index], g.present[index], g.target[index]),
        )


@dataclass(frozen=True, slots=True)
class ActionChunk:
    """Actions in the environment's own units, padded to H x K."""

    actions: FloatArray
    """[N, H, K]; channel order and units are the environment's action convention, zero where masked."""
    mask: BoolArray
    """[N, H, K] valid steps and channels."""


@dataclass(frozen=True, slots=True)
class Context:
    """What the backbone made of an observation: the costly part, reusable while the backbone is frozen."""

    hidden: FloatArray
    """[N, L, D] final normed hidden states, zero on padding."""
    mask: BoolArray
    """[N, L] real tokens."""
    positions: IntArray
    """[3, N, L] multi-section rotary positions (time, height, width)."""

    def __len__(self) -> int:
        return len(self.hidden)


@dataclass(frozen=True, slots=True)
class Failure:
    """A world that broke down: it raised, hung or left the finite numbers. Its episode counts for nothing."""

    row: int
    """Its place among the N environments of the outcome."""
    world: str
    """Registered name of the environment."""
    seed: int
    """Seed of the run; with `env` and `episode` it names the episode, so that it can be played again."""
    env: int
    """Global number of the environment."""
    episode: int
    """Number of the episode that broke."""
    cause: str
    """What happened, in words."""

    def __str__(self) -> str:
        episode = f"seed {self.seed}, environment {self.env}, episode {self.episode}"
        return f"{self.world} broke down ({episode}): {self.cause}"


@dataclass(frozen=True, slots=True)
class ChunkOutcome:
    """What came of one open-loop chunk. A finished environment has already begun its next episode."""

    reward: FloatArray
    """[N, H] per environment step, zero after the episode ended."""
    steps_executed: IntArray
    """[N] 1..H."""
    terminated: BoolArray
    """[N] ended by the task itself: no value beyond."""
    truncated: BoolArray
    """[N] cut by the time limit: the value of `final_observation` stands for what was cut."""
    success: BoolArray
    """[N] the task was done within this chunk."""
    observation: Observation
    """At the boundary; of the new episode where the old one ended."""
    final_index: IntArray
    """[M] environments whose episode ended in this chunk, ascending."""
    final_observation: Observation | None
    """Their last observation, M rows; None when M = 0."""
    reward_terms: Mapping[str, FloatArray]
    """Name -> [N, H]; they sum to `reward`."""
    measures: Mapping[str, FloatArray] = field(default_factory=dict)
    """Name -> [N] what else the task reports of an episode that ended in this chunk (SPL, final displacement error);
    NaN where none ended."""
    failures: tuple[Failure, ...] = ()
    """Worlds that broke down in this chunk. Their rows are truncated without success or reward, and the next episode
    has begun."""

    @property
    def failed(self) -> BoolArray:
        """[N] whether the world broke down in this chunk."""
        broken = np.zeros(len(self.success), bool)
        broken[[failure.row for failure in self.failures]] = True
        return broken


@dataclass(frozen=True, slots=True)
class Trajectory:
    """T chunks in a row for N environments, as collected under one policy version."""

    inputs: Context | Observation
    """What the decoder is conditioned on, T*N rows (chunk-major): cached contexts while the backbone is frozen, else
    the observations to encode again."""
    states: FloatArray
    """[T, N, J + 1, H, K] chain states (normalised, padding included) before, between and after the scored transitions:
    J = 1 where one step is stochastic, all steps for Flow-Noise, 0 for the ODE."""
    step: IntArray
    """[T, N] index k of the first scored transition on the Euler grid."""
    log_prob: FloatArray
    """[T, N, H] log-density of the scored transitions, summed over valid channels, one value per action step."""
    sample: FloatArray
    """[T, N, H, K] the chain's last state: the executed chunk in normalised units."""
    action_mask: BoolArray
    """[T, N, H, K] valid channels of executed steps."""
    reward: FloatArray
    """[T, N, H]."""
    steps_executed: IntArray
    """[T, N]."""
    terminated: BoolArray
    """[T, N]."""
    truncated: BoolArray
    """[T, N]."""
    success: BoolArray
    """[T, N]."""
    failed: BoolArray
    """[T, N] the world broke down in this chunk: nothing is learned from its episode."""
    value: FloatArray
    """[T, N] value of the state in which the chunk was chosen."""
    next_value: FloatArray
    """[T, N] value of the state it led to: of the final observation where an episode was truncated."""
    privileged: FloatArray | None
    """[T, N, S] simulator state in which the chunk was chosen, for a critic that may see it."""
    advised: tuple[Context, Context] | None
    """What the decoder would be conditioned on with the words for a good and for a bad chunk in the prompt, T*N rows
    each; only where an objective asks for it."""
    executed_std: float
    """What exploration added to executed actions, RMS in action units."""
    contribution: FloatArray
    """[num_steps] what the law's noise at each denoising step alone would add, RMS in action units."""
    policy_version: int
    """Version of the weights that acted; one for the whole trajectory."""
    keys: SeedKeys
    """Episodes at the first chunk."""
    embodiment: str
    """Robot tag of all N environments."""
    world: str
    """Label of the world that they are in."""
    rate: float
    """Control frequency of the body in Hz: environment steps in a second of its time."""
    failures: tuple[Failure, ...]
    """Who broke down and why, one for each `failed`."""

    @property
    def transitions(self) -> int:
        """Number of chunk decisions, T * N."""
        return int(self.value.size)


@dataclass(frozen=True, slots=True)
class ScoredTrajectory:
    """A trajectory with the credit assigned."""

    trajectory: Trajectory
    advantage: FloatArray
    """[T, N] as estimated, not normalised."""
    returns: FloatArray
    """[T, N] target of the value head."""
    used: BoolArray
    """[T, N] whether there is anything to learn from the decision: False in episodes that a broken world ended; where
    groups are compared also where the returns of a group are all equal."""


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What one pass of the learner over its trajectories did."""

    policy_version: int
    """Version of the weights it produced."""
    diagnostics: Mapping[str, float]
    """Means over minibatches by name, for example `clip_fraction`."""
    first_ratio_error: float
    """max |ratio - 1| over the first minibatch, before any step, over all ranks' shares of it: sampler and scorer agree
    when it is ~0. NaN where the objective has no ratio."""
    seconds: float
    """Wall time of the update."""


@dataclass(frozen=True, slots=True)
class EvalReport:
    """Success and return on held-out episodes, of one world or of several together."""

    successes: tuple[bool, ...]
    """One per episode, ordered by environment then episode: the same order for every policy, so reports pair."""
    seed: int
    """Seed of the evaluation's initial states."""
    success: float
    """Share of successes."""
    interval: tuple[float, float]
    """95 % interval: Wilson's; of several worlds together `intervals.mean_over`."""
    returns: tuple[float, ...]
    """Undiscounted return of each, in the order of `successes`."""
    mean_return: float
    """Their mean; of several worlds together the mean of the worlds' means."""
    return_interval: tuple[float, float]
    """95 % interval of `mean_return`: Student's; of several worlds together `intervals.mean_over`."""
    mean_steps: float
    """Environment steps an episode took on average."""
    policy_version: int
    """Version of the weights that were evaluated."""
    failed: int = 0
    """Episodes whose world broke down; they count as not successful."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Name -> mean of what else the task reports, over the episodes for which it does."""


def concatenate_contexts(parts: list[Context]) -> Context:
    """Stack contexts of the same L and D along the samples."""
    return Context(
        np.concatenate([p.hidden for p in parts]),
        np.concatenate([p.mask for p in parts]),
        np.concatenate([p.positions for p in parts], axis=1),
    )


def concatenate_grounding(parts: Sequence[Grounding]) -> Grounding | None:
    """Stack labels of the same things along the environments; None where there are none."""
    if not parts:
        return None
    arrays = {f.name: np.concatenate([getattr(g, f.name) for g in parts]) for f in fields(Grounding)[1:]}
    return Grounding(names=parts[0].names, **arrays)


def concatenate(items: list[Observation]) -> Observation:
    """Stack observations of one embodiment along the environments; shapes must agree."""
    first = items[0]

    def joined(name: str) -> FloatArray | None:
        return None if getattr(first, name) is None else np.concatenate([getattr(o, name) for o in items])

    return Observation(
        images={tag: np.concatenate([o.images[tag] for o in items]) for tag in first.images},
        instruction=tuple(text for o in items for text in o.instruction),
        embodiment=first.embodiment,
        proprioception=joined("proprioception"),
        privileged=joined("privileged"),
        grounding=concatenate_grounding([o.grounding for o in items if o.grounding is not None]),
    )
