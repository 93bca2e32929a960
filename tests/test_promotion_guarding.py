"""Episodes behind the safety envelope: told what the server tells, counted by hand, and nothing beyond a limit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
from builders import episode_keys, tiny_policy

from actors.evaluator import run_episodes
from actors.film import film_episodes
from actors.guarding import Guard
from actors.watching import MotionLog, Watch, joined
from envs.base import VectorEnv
from envs.mujoco.bodies.franka import FrankaJoint
from envs.mujoco.bodies.rover import EMBODIMENT as ROVER
from rl_finetune.config import load
from rl_finetune.config.promotion import PromoteConfig
from rl_finetune.config.schema import PolicySection
from rl_finetune.errors import UserError
from rl_finetune.policy.config import WIDOWX
from rl_finetune.promotion.evidence.bounds import check_bounds, limits_of, served_limits
from rl_finetune.promotion.evidence.guarding import KINDS, Envelopes, counted
from rl_finetune.promotion.evidence.limits import limits_for
from rl_finetune.promotion.evidence.motion import audit
from rl_finetune.promotion.evidence.policies import Weights
from rl_finetune.promotion.records import Limits, PolicyName
from rl_finetune.promotion.serving.envelope import Envelope
from rl_finetune.promotion.serving.reading import Reading
from rl_finetune.promotion.serving.requests import ActReply
from rl_finetune.promotion.serving.session import Session
from rl_finetune.spec import ActionConvention, EmbodimentSpec, EnvSpec
from rl_finetune.types import ActionChunk, BoolArray, ChunkOutcome, FloatArray, Observation, SeedKeys

JOINT = EmbodimentSpec("one", "single arm", ("ego",), ActionConvention(1, 4, "joint", "none", "none", 1.0))
"""A joint at 1 Hz: units by second are units by step."""
BOTH = np.ones(2, bool)


def guard(limits: Limits, body: EmbodimentSpec = JOINT) -> Guard:
    return Envelopes({body.tag: limits})(body)


def chunk(*rows: list[float]) -> ActionChunk:
    """One joint, padded to three channels."""
    actions = np.zeros((len(rows), 4, 3), np.float32)
    actions[..., 0], actions[..., 1] = rows, 7.0
    return ActionChunk(actions, np.ones_like(actions, bool))


def test_each_body_goes_on_from_its_own_last_command_until_episodes_begin() -> None:
    slow = guard(Limits(velocity=(1.0,)))
    slow.begin(2)
    asked = chunk([0, 3, 3, 3], [5, 5, 5, 6])
    told = slow(asked, BOTH)
    assert told.actions[..., 0].tolist() == [[0, 1, 2, 3], [5, 5, 5, 6]]  # the first command stands where it wants
    assert asked.actions[0, 1, 0] == 3 and (told.actions[..., 1] == 7).all()
    velocity = 1 << KINDS.index("velocity")
    assert slow.changed.tolist() == [[0, velocity, velocity, 0], [0, 0, 0, 0]]
    told = slow(chunk([0, 0, 0, 0], [7, 7, 7, 7]), BOTH)
    assert told.actions[..., 0].tolist() == [[2, 1, 0, 0], [7, 7, 7, 7]]
    told = slow(chunk([9, 9, 9, 9], [9, 9, 9, 9]), np.array([False, True]))
    assert told.actions[..., 0].tolist() == [[9, 9, 9, 9], [8, 9, 9, 9]]  # nobody looks at the first any more
    assert slow.changed.tolist() == [[0, 0, 0, 0], [velocity, 0, 0, 0]]
    slow.begin(2)
    assert slow(chunk([9, 9, 9, 9], [0, 0, 0, 0]), BOTH).actions[:, 0, 0].tolist() == [9, 0]


def test_reasons_are_counted_one_by_one() -> None:
    bits = [1 << KINDS.index(kind) for kind in ("velocity", "jerk")]
    assert counted(np.array([0, bits[0], bits[0] | bits[1], 0])) == {"velocity": 2, "jerk": 1}
    # 9 is beyond the range and too far for a step: 1 for both reasons
    both = guard(Limits(low=(-5.0,), high=(5.0,), velocity=(1.0,)))
    both.begin(1)
    both(chunk([0, 9, 2, 3]), np.ones(1, bool))
    assert counted(both.changed[0]) == {"action": 1, "velocity": 1}


def test_numbers_that_are_none_hold_the_body_or_are_refused_as_on_the_server() -> None:
    held = guard(Limits(velocity=(1.0,)))
    held.begin(1)
    nothing = chunk([np.nan, 0, 0, 0])
    with pytest.raises(UserError, match="one cannot be held"):
        held(nothing, np.ones(1, bool))
    held(chunk([2, 2, 2, 2]), np.ones(1, bool))
    assert held(nothing, np.ones(1, bool)).actions[0, :, 0].tolist() == [2, 2, 2, 2]
    assert counted(held.changed[0]) == {"not_finite": 4}


@dataclass
class _Rules:
    body: EmbodimentSpec
    limits: Limits

    def envelope(self, digest: str, tag: str) -> Envelope:
        return Envelope.of(self.body, self.limits)


def wild(body: EmbodimentSpec, rng: np.random.Generator, chunks: int, limits: Limits) -> list[FloatArray]:
    """Chunks [H, c] that wander, jump, and leave the range now and then; some lie within all limits."""
    shape, reach = (body.action.horizon, body.action.channels), np.array(limits.high) - np.array(limits.low)
    scales = 10 ** rng.uniform(-3, 0, chunks)
    return [(reach * scale * np.cumsum(rng.normal(size=shape), 0)).astype(np.float32) for scale in scales]


@pytest.mark.parametrize("body", [WIDOWX, FrankaJoint.embodiment, ROVER])
def test_bodies_are_told_bit_by_bit_what_the_server_tells_a_client_that_does_not_pause(body: EmbodimentSpec) -> None:
    limits = limits_for(body.tag)
    chunks = wild(body, np.random.default_rng(3), 6, limits)
    session, mine, counts = Session(0, _Rules(body, limits)), guard(limits, body), dict[str, int]()
    mine.begin(1)
    saw = Reading({"ego": np.zeros((8, 8, 3), np.uint8)}, "go", body.tag)
    for actions in chunks:
        session.ask(saw, 0.0)
        served = session.answer(ActReply(actions, "a", 0.0, 1), 0.0)
        told = mine(ActionChunk(actions[None], np.ones((1, *actions.shape), bool)), np.ones(1, bool))
        assert told.actions[0].tobytes() == served.actions.tobytes()
        assert counted(mine.changed[0]) == dict(served.interventions)
        counts |= served.interventions
    assert counts


@dataclass
class Still(VectorEnv):
    """Bodies that do nothing; the first episode ends in the middle of its third chunk, the others after the fifth."""

    body: EmbodimentSpec
    num_envs: int = 3
    told: list[FloatArray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spec = EnvSpec("still", self.body, 64, 8 * self.body.action.horizon)

    def reset(self, keys: SeedKeys) -> Observation:
        self.told.clear()
        return self.seen

    def step_chunk(self, chunk: ActionChunk) -> ChunkOutcome:
        self.told.append(chunk.actions.copy())
        n, horizon, number = self.num_envs, self.body.action.horizon, len(self.told)
        ended = np.array([number == 3] + [number == 5] * (n - 1))
        steps = np.where(ended & (number == 3), horizon // 2, horizon)
        none = np.zeros(n, bool)
        final = np.flatnonzero(ended)
        return ChunkOutcome(
            np.zeros((n, horizon), np.float32), steps, ended, none, none, self.seen, final, None, {},
        )  # fmt: skip

    def close(self) -> None:
        pass

    @property
    def seen(self) -> Observation:
        pictures = np.zeros((self.num_envs, 64, 64, 3), np.uint8)
        return Observation({"ego": pictures}, ("go",) * self.num_envs, self.body.tag)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("body", [WIDOWX, FrankaJoint.embodiment, ROVER])
def test_no_step_of_what_bodies_are_told_is_beyond_a_limit(body: EmbodimentSpec, seed: int) -> None:
    limits, rng, env = limits_for(body.tag), np.random.default_rng(seed), Still(body)
    mine, rows = guard(limits, body), env.num_envs
    asked = [np.stack(parts) for parts in zip(*(wild(body, rng, 5, limits) for _ in range(rows)), strict=True)]
    logs = []
    for between in (None, mine):
        running = np.ones(rows, bool)
        mine.begin(rows)
        with Watch(env, between) as watch:
            watch.reset(episode_keys(rows))
            for actions in asked:
                wanted = ActionChunk(actions, np.ones_like(actions, bool))
                outcome = watch.step_chunk(wanted if between is None else mine(wanted, running))
                running &= ~outcome.terminated
            logs.append(watch.log())
    raw, told = logs
    before, after = (audit(log, body, replace(limits, workspace=()), "still") for log in logs)
    assert sum(before.over.values()) and not before.guarded and not before.changed
    assert after.guarded and not any(after.over.values()), after.over
    _check_counts(after.changed, raw, told, limits)
    assert after.steps == before.steps == int((2.5 + 5 * (rows - 1)) * body.action.horizon)  # only what was executed


def test_a_round_in_which_all_broke_at_once_does_not_hide_what_was_changed_in_others() -> None:
    mine, env = guard(limits_for("widowx"), WIDOWX), Still(WIDOWX)
    mine.begin(3)
    with Watch(env, mine) as watch:
        watch.reset(episode_keys(3))
        nothing = watch.log()
        wanted = np.ones((3, *mine.changed.shape[1:], WIDOWX.action.channels), np.float32)
        watch.step_chunk(mine(ActionChunk(wanted, np.ones_like(wanted, bool)), np.ones(3, bool)))
        changed = joined([nothing, watch.log()]).changed
    assert changed is not None and changed.any()


def _check_counts(changed: int, raw: MotionLog, told: MotionLog, limits: Limits) -> None:
    """As many steps are counted as differ by more than rounding."""
    size = np.maximum(np.abs(limits.low), np.abs(limits.high))
    differs = (np.abs(raw.actions - told.actions) > 1e-5 * size).any(1)
    assert told.changed is not None and changed == (told.changed != 0).sum()
    assert differs.any() and not (differs & (told.changed == 0)).any()
    assert (told.changed != 0).sum() == pytest.approx(differs.sum(), abs=2)


def test_what_is_sealed_is_what_a_policy_is_kept_to_and_what_nobody_can_keep_is_refused() -> None:
    plain = Weights(PolicyName("some", "1" * 64), PolicySection(path="some"))
    own = replace(limits_for("widowx"), stale_after=0.25)
    sealed = replace(plain, bundle=SimpleNamespace(limits={"widowx": own}))  # type: ignore[arg-type]
    written = load(PromoteConfig, None, [f"limits={{widowx: {{low: {[-1] * 7}, high: {[1] * 7}}}}}"])
    assert served_limits(WIDOWX, written, sealed) == own
    assert (
        served_limits(WIDOWX, written, plain) == limits_of(WIDOWX, written, sealed) == Limits((-1.0,) * 7, (1.0,) * 7)
    )
    endless = "limits={widowx: {velocity: [1.0e9, 1, 1, 1, 1, 1, 1], acceleration: [1, 1, 1, 1, 1, 1, 1]}}"
    with pytest.raises(UserError, match="brakes that take minutes"):
        check_bounds([WIDOWX], load(PromoteConfig, None, [endless]), plain)
    check_bounds([WIDOWX], load(PromoteConfig, None, [endless, "guarded=false"]), plain)


class _Open(Guard):
    """Lets everything through, and writes down who ran."""

    def begin(self, num: int) -> None:
        self.ran: list[list[bool]] = []

    def __call__(self, chunk: ActionChunk, running: BoolArray) -> ActionChunk:
        self.ran.append(running.tolist())
        return chunk


def test_an_evaluation_and_a_film_are_guarded_from_the_policy_to_the_world() -> None:
    policy, env = tiny_policy(), Still(WIDOWX)
    run_episodes(policy, env, episode_keys(3), temperature=0.6)
    free = list(env.told)
    run_episodes(policy, env, episode_keys(3), temperature=0.6, guard=(open_ := _Open()))
    assert [a.tobytes() for a in env.told] == [a.tobytes() for a in free]
    assert open_.ran == [[True] * 3] * 3 + [[False, True, True]] * 2
    tight = replace(limits_for("widowx"), velocity=tuple(v / 50 for v in limits_for("widowx").velocity))
    slow = guard(tight, WIDOWX)
    for play in (run_episodes, film_episodes):
        play(policy, env, episode_keys(3), temperature=0.6, guard=slow)
        assert slow.changed[1:].any() and not slow.changed[0].any()  # the first has ended
        paces = np.abs(np.diff(np.stack(env.told)[:, 1:, :, :7], axis=2)).max((0, 1, 2)) * WIDOWX.action.rate
        assert (paces <= np.array(tight.velocity) + 1e-5).all()
