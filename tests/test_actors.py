"""Collecting and playing: how environments are spread changes nothing (flow_rl: test 11), and ends are told apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from builders import episode_keys, tiny_policy

import envs
from actors.evaluator import EpisodeResults, Shuffle, _shuffled, run_episodes, together
from actors.film import film_episodes
from actors.player import Player, Seat, _made
from actors.rollout import collect
from envs.base import VectorEnv
from envs.process import ProcessEnv
from learners.advantages import score
from learners.objectives import OBJECTIVES
from learners.update import Recipe, run_update
from rl_finetune.config import EvaluateConfig, load
from rl_finetune.config.objectives import PPOSection
from rl_finetune.config.schema import EvaluationSection
from rl_finetune.config.worlds import EnvSection, World
from rl_finetune.errors import UserError
from rl_finetune.policy import FlowSDE, QwenVLAPolicy
from rl_finetune.policy.adapters import guide
from rl_finetune.policy.config import WIDOWX
from rl_finetune.policy.critics import PrivilegedCritic
from rl_finetune.policy.laws import ODE
from rl_finetune.policy.policy import Critic
from rl_finetune.policy.sampler import draw_noise
from rl_finetune.types import ActionChunk, ChunkOutcome, Context, Observation, SeedKeys, Trajectory

LAW = FlowSDE()
CHUNKS = 5
"""A standing arm is cut off in the fourth, so that one chunk of a second episode is played."""


@pytest.fixture(scope="module")
def policy() -> QwenVLAPolicy:
    return tiny_policy()


@dataclass
class Recorder(VectorEnv):
    """Passes everything on and keeps what went by."""

    env: VectorEnv
    first: list[Observation] = field(default_factory=list)
    chunks: list[ActionChunk] = field(default_factory=list)
    outcomes: list[ChunkOutcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spec, self.num_envs = self.env.spec, self.env.num_envs

    def reset(self, keys: SeedKeys) -> Observation:
        self.first.append(self.env.reset(keys))
        return self.first[-1]

    def step_chunk(self, chunk: ActionChunk) -> ChunkOutcome:
        self.chunks.append(chunk)
        self.outcomes.append(self.env.step_chunk(chunk))
        return self.outcomes[-1]

    def close(self) -> None:
        self.env.close()


def play(policy: QwenVLAPolicy, first: int, num: int, *, cache: bool = True) -> tuple[Trajectory, Recorder]:
    """One actor's round with the global environments `first`..."""
    with Recorder(envs.make("widowx_reach", num)) as env:
        made = collect(
            policy, env, episode_keys(num, seed=3, first=first), chunks=CHUNKS, body=WIDOWX, law=LAW,
            cache_contexts=cache, policy_version=7,
        )  # fmt: skip
    return made, env


Round = tuple[Trajectory, Recorder]


@pytest.fixture(scope="module")
def whole(policy: QwenVLAPolicy) -> Round:
    return play(policy, 0, 8)


@pytest.fixture(scope="module")
def halves(policy: QwenVLAPolicy) -> tuple[Round, Round]:
    return play(policy, 0, 4), play(policy, 4, 4)


def test_environments_are_shared_out_in_order() -> None:
    (world,) = EnvSection(num_envs=7).worlds()
    assert [world.share(i, 3).env_ids.tolist() for i in range(3)] == [[0, 1, 2], [3, 4], [5, 6]]


def test_actor_spreads_its_environments_over_the_processes_that_are_set() -> None:
    (world,) = EnvSection(num_envs=2, workers=3, patience=7.0).worlds()
    with _made(world.share(0, 2)) as env:
        assert isinstance(env, ProcessEnv) and (env.num_envs, env._supervisor._patience) == (1, 7.0)
    (world,) = EnvSection(num_envs=1).worlds()
    with _made(world) as env:
        assert not isinstance(env, ProcessEnv)


def test_one_actor_or_two_see_the_same_states_and_noise(whole: Round, halves: tuple[Round, Round]) -> None:
    (one, env), (two, others) = whole, zip(*halves, strict=True)
    privileged = [np.concatenate([o.first[0].privileged for o in others]), env.first[0].privileged]
    assert np.array_equal(*privileged)
    pictures = np.concatenate([o.first[0].images["ego"] for o in others])
    assert np.array_equal(pictures, env.first[0].images["ego"])
    assert np.array_equal(np.concatenate([t.step for t in two], axis=1), one.step)
    noise = draw_noise(one.keys, np.zeros(8, np.int64), 8, 16, LAW)
    assert np.array_equal(one.step[0], noise.step)
    at_start = one.step[0] == 0
    assert at_start.any() and np.array_equal(one.states[0, at_start, 0], noise.start[torch.from_numpy(at_start)])


def test_one_actor_or_two_take_the_same_first_actions(whole: Round, halves: tuple[Round, Round]) -> None:
    (one, env), (two, others) = whole, zip(*halves, strict=True)
    actions = np.concatenate([o.chunks[0].actions for o in others])
    np.testing.assert_allclose(actions, env.chunks[0].actions, rtol=0, atol=1e-5)
    assert np.abs(actions).max() > 0.01
    for name in ("states", "sample", "log_prob", "value"):
        joined = np.concatenate([getattr(t, name)[0] for t in two])
        np.testing.assert_allclose(joined, getattr(one, name)[0], rtol=0, atol=1e-4)


def test_trajectory_has_the_shapes_and_keys_it_promises(whole: Round) -> None:
    made, env = whole
    t, n = CHUNKS, 8
    assert made.states.shape == (t, n, 2, 8, 16)
    for name in ("sample", "action_mask"):
        assert getattr(made, name).shape == (t, n, 8, 16), name
    for name in ("log_prob", "reward"):
        assert getattr(made, name).shape == (t, n, 8), name
    for name in ("step", "steps_executed", "terminated", "truncated", "success", "value", "next_value"):
        assert getattr(made, name).shape == (t, n), name
    assert isinstance(made.inputs, Context) and made.inputs.hidden.shape == (t * n, 60, 128)
    assert made.inputs.positions.shape == (3, t * n, 60)
    assert made.transitions == 40 and made.policy_version == 7 and made.keys.env.tolist() == list(range(8))
    assert made.value.dtype == made.next_value.dtype == made.log_prob.dtype == np.float32
    assert 0.001 < made.executed_std < 0.2
    assert made.contribution.shape == (4,) and (made.contribution > 0).all() and made.advised is None
    assert made.privileged is not None and made.privileged.shape == (t, n, len(env.spec.privileged))


def test_mask_holds_used_channels_of_executed_steps(whole: Round) -> None:
    made, _ = whole
    assert (made.steps_executed < 8).any() and (made.steps_executed == 8).any()
    for index in np.ndindex(made.steps_executed.shape):
        executed = made.steps_executed[index]
        assert made.action_mask[index][:executed, :7].all()
        assert made.action_mask[index].sum() == executed * 7


def test_noise_of_later_episodes_is_keyed_by_their_number(whole: Round) -> None:
    """An environment that restarts counts chunks from zero in the next episode."""
    made, _ = whole
    ended = made.terminated | made.truncated
    assert ended[:-1].any()
    episode, number = np.zeros(8, np.int64), np.zeros(8, np.int64)
    for t in range(CHUNKS):
        noise = draw_noise(SeedKeys(3, np.arange(8), episode), number, 8, 16, LAW)
        assert np.array_equal(made.step[t], noise.step)
        at_start = made.step[t] == 0
        assert np.array_equal(made.states[t, at_start, 0], noise.start[torch.from_numpy(at_start)])
        episode, number = episode + ended[t], np.where(ended[t], 0, number + 1)


def test_stored_observations_are_those_that_were_cached(policy: QwenVLAPolicy, whole: Round) -> None:
    made, _ = play(policy, 0, 8, cache=False)
    assert isinstance(made.inputs, Observation) and len(made.inputs) == 40
    with torch.no_grad():
        again = policy.encode(made.inputs)
    assert isinstance(whole[0].inputs, Context)
    torch.testing.assert_close(again.hidden, torch.from_numpy(whole[0].inputs.hidden), rtol=0, atol=1e-5)
    assert np.array_equal(made.states, whole[0].states)


def test_what_was_collected_has_ratio_one(policy: QwenVLAPolicy, whole: Round, halves: tuple[Round, Round]) -> None:
    """The whole path: world, contexts, chain, log-density, minibatches of other sizes."""
    data = [score(made, gamma=0.99, lam=0.95) for made in (whole[0], halves[0][0], halves[1][0])]
    report = run_update(
        policy, data, Recipe(PPOSection(epochs=1, minibatch=20), OBJECTIVES["ppo"], LAW),
        optimise=lambda loss: None, seed=0, version=0,
    )  # fmt: skip
    assert report.first_ratio_error < 1e-4 and report.diagnostics["ratio_error"] < 1e-4


# ---- groups and advice


def test_environments_of_a_group_begin_alike_and_explore_on_their_own(policy: QwenVLAPolicy) -> None:
    """Episode after episode, whichever actor plays them; groups among themselves begin differently."""
    keys = replace(episode_keys(4, seed=3, episode=6), group=2)
    with Recorder(envs.make("widowx_reach", 4)) as env:
        made = collect(
            policy, env, keys, chunks=CHUNKS, body=WIDOWX, law=LAW, cache_contexts=True, policy_version=0
        )  # fmt: skip
        later = env.reset(keys.at(keys.episode + 1))
    for seen in (env.first[0], later):
        state, picture = seen.privileged, seen.images["ego"]
        assert state is not None and np.array_equal(state[0::2], state[1::2]) and not np.array_equal(state[0], state[2])
        assert np.array_equal(picture[0::2], picture[1::2]) and not np.array_equal(picture[0], picture[2])
        assert seen.instruction[0::2] == seen.instruction[1::2]
    restarted = [(t, n) for t, n in np.argwhere(made.truncated | made.terminated) if t < CHUNKS - 1]
    assert restarted and made.privileged is not None and later.privileged is not None
    for t, n in restarted:
        assert np.array_equal(made.privileged[t + 1, n], later.privileged[n])
    actions, noise = env.chunks[0].actions, draw_noise(episode_keys(4, seed=3, episode=6), np.zeros(4, int), 8, 16, LAW)
    assert np.abs(actions[0::2] - actions[1::2]).max(axis=(1, 2)).min() > 0.01
    assert np.array_equal(made.step[0], noise.step)
    with envs.make("widowx_reach", 1) as env:
        alone = env.reset(replace(episode_keys(1, seed=3, episode=6, first=3), group=2))
    assert made.privileged is not None and np.array_equal(alone.privileged, made.privileged[0, 3:])


def test_a_guided_policy_keeps_what_advice_makes_of_each_observation() -> None:
    policy = tiny_policy()
    guide(policy, 1.5)
    with envs.make("widowx_reach", 2) as env, Counting(policy) as rows:
        made = collect(
            policy, env, episode_keys(2), chunks=2, body=WIDOWX, law=ODE(4), cache_contexts=True, policy_version=0
        )
        seen = env.reset(episode_keys(2))
    assert rows == [2] * 3 * 2 + [2]  # with and without advice at each boundary; plain after the last
    assert made.advised is not None and isinstance(made.inputs, Context)
    for words, context in (
        ("", made.inputs),
        *zip((". Advantage: positive", ". Advantage: negative"), made.advised, strict=True),
    ):
        with torch.no_grad():
            again = policy.encode(replace(seen, instruction=tuple(text + words for text in seen.instruction)))
        torch.testing.assert_close(again.hidden, torch.from_numpy(context.hidden[:2]), rtol=0, atol=1e-5)
    assert made.states.shape == (2, 2, 1, 8, 16) and not made.log_prob.any() and not made.contribution.any()
    assert made.executed_std == pytest.approx(0, abs=1e-7)


def test_what_exploration_adds_is_not_what_the_temperature_takes_away(policy: QwenVLAPolicy) -> None:
    with envs.make("widowx_reach", 2) as env:
        made = collect(
            policy, env, episode_keys(2), chunks=1, body=WIDOWX, law=ODE(4, temperature=0.4), cache_contexts=True,
            policy_version=0,
        )  # fmt: skip
    assert made.executed_std == pytest.approx(0, abs=1e-7)


# ---- a scripted world, in which every observation can be recognised

Ends = Sequence[str]
"""One a chunk: "" goes on, "T" terminated, "S" terminated with success, "C" cut by the time limit."""


class Script(VectorEnv):
    """Plays scripted ends, two executed steps where one ends; the picture of a state names it."""

    def __init__(self, ends: Sequence[Ends]) -> None:
        self.ends, self.num_envs, self.spec = ends, len(ends), envs.spec("widowx_reach")
        self.time = 0

    def reset(self, keys: SeedKeys) -> Observation:
        self.time = 0
        return self.see(range(self.num_envs), "start")

    def see(self, rows: Sequence[int], kind: str) -> Observation:
        pictures = []
        for row in rows:
            number = hash((row, self.time, {"start": 0, "state": 1, "final": 2}[kind])) % 2**32
            pictures.append(np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8))
        state = np.array([[picture[0, 0, 0], picture[0, 0, 1]] for picture in pictures], np.float32) / 1000
        words = tuple(f"touch block {row}" for row in rows)
        return Observation({"ego": np.stack(pictures)}, words, "widowx", privileged=state)

    def step_chunk(self, chunk: ActionChunk) -> ChunkOutcome:
        now = np.array([ends[self.time] if self.time < len(ends) else "" for ends in self.ends])
        self.time += 1
        over = np.flatnonzero(now != "")
        reward = np.zeros((self.num_envs, 8), np.float32)
        reward[now == "S", 1] = 1
        return ChunkOutcome(
            reward=reward,
            steps_executed=np.where(now != "", 2, 8),
            terminated=(now == "T") | (now == "S"),
            truncated=now == "C",
            success=now == "S",
            observation=self.see(range(self.num_envs), "state"),
            final_index=over,
            final_observation=self.see(over.tolist(), "final") if over.size else None,
            reward_terms={"success": reward},
        )

    def close(self) -> None:
        pass


class Counting:
    """Counts observations that a policy encodes, as long as the block lasts."""

    def __init__(self, policy: QwenVLAPolicy) -> None:
        self.policy, self.rows = policy, list[int]()

    def __enter__(self) -> list[int]:
        real = self.policy.encode
        self.policy.encode = lambda seen, _=None: self.rows.append(len(seen)) or real(seen)  # type: ignore[method-assign]
        return self.rows

    def __exit__(self, *_: object) -> None:
        del self.policy.encode


ENDS = [["", "", ""], ["", "T", ""], ["C", "", "S"], ["", "C", "C"]]


@pytest.mark.parametrize(
    ("critic", "encoded"),
    [
        ("linear", [4, 4, 4, 2, 1, 1, 1]),  # each boundary, the two that go on, each that the time limit cut off
        ("privileged", [4, 4, 4]),
        ("none", [4, 4, 4]),
    ],
)
def test_only_a_critic_on_contexts_encodes_more_than_what_is_acted_on(critic: Critic, encoded: list[int]) -> None:
    policy = tiny_policy()
    policy.critic = critic
    policy.privileged_critic = wake_critic() if critic == "privileged" else None
    with Counting(policy) as rows:
        made = collect(
            policy, Script(ENDS), episode_keys(4), chunks=3, body=WIDOWX, law=LAW, cache_contexts=True, policy_version=0
        )
    assert rows == encoded
    assert (made.value.any() and made.next_value.any()) == (critic != "none")


def wake_critic() -> PrivilegedCritic:
    torch.manual_seed(0)
    critic = PrivilegedCritic(2)
    torch.nn.init.normal_(critic.layers[-1].weight)
    return critic


def test_a_privileged_critic_judges_the_states_that_were_met() -> None:
    policy = tiny_policy()
    policy.critic, policy.privileged_critic = "privileged", wake_critic()
    world = Recorder(Script(ENDS))
    made = collect(
        policy, world, episode_keys(4), chunks=3, body=WIDOWX, law=LAW, cache_contexts=True, policy_version=0
    )

    def worth(seen: Observation) -> np.ndarray:
        with torch.no_grad():
            return policy.privileged_critic(torch.from_numpy(seen.privileged)).numpy()

    assert made.privileged is not None
    seen = [world.first[0], *(outcome.observation for outcome in world.outcomes)]
    assert np.array_equal(made.privileged, np.stack([s.privileged for s in seen[:3]]))
    np.testing.assert_allclose(made.value, np.stack([worth(s) for s in seen[:3]]), rtol=1e-5)
    expected = np.stack([worth(s) for s in seen[1:]])
    for t, outcome in enumerate(world.outcomes):
        for row, env in enumerate(outcome.final_index):
            expected[t, env] = worth(outcome.final_observation)[row] if outcome.truncated[env] else 0
    np.testing.assert_allclose(made.next_value, expected, rtol=1e-5)
    assert len(np.unique(made.next_value)) == 11  # one was terminated in each of two chunks


def values_of(policy: QwenVLAPolicy, observation: Observation) -> np.ndarray:
    with torch.no_grad():
        return policy.value(policy.encode(observation)).numpy()


def test_bootstrap_values_by_the_way_an_episode_ended(policy: QwenVLAPolicy) -> None:
    world = Recorder(Script(ENDS))
    made = collect(
        policy, world, episode_keys(4), chunks=3, body=WIDOWX, law=LAW, cache_contexts=True, policy_version=0
    )
    boundary = [values_of(policy, outcome.observation) for outcome in world.outcomes]
    final = {
        (t, int(env)): values_of(policy, outcome.final_observation)[row]
        for t, outcome in enumerate(world.outcomes)
        for row, env in enumerate(outcome.final_index)
        if outcome.final_observation is not None
    }
    expected = np.stack(boundary)
    for (t, env), value in final.items():
        expected[t, env] = value if made.truncated[t, env] else 0.0
    np.testing.assert_allclose(made.next_value, expected, rtol=0, atol=1e-5)
    assert (made.next_value == 0).sum() == 2  # the two that were terminated
    np.testing.assert_allclose(made.value[1:], np.stack(boundary[:-1]), rtol=0, atol=1e-5)
    assert abs(final[0, 2] - boundary[0][2]) > 1e-3  # the final state is not the one that the restart shows
    assert made.steps_executed[:, 2].tolist() == [2, 8, 2]


def test_an_episode_counts_until_its_first_end(policy: QwenVLAPolicy) -> None:
    """What a restarted environment does afterwards belongs to another episode."""
    world = Script([["S", "T"], ["T", "S"], ["", "C", "S"], ["", "", "", "S"]])
    results = run_episodes(policy, world, episode_keys(4), temperature=0.6)
    np.testing.assert_array_equal(results.returns, results.success)  # a success is the one reward of its episode
    assert results.success.tolist() == [True, False, False, True]
    assert results.steps.tolist() == [2, 2, 10, 26]
    assert world.time == 4


def test_playing_is_repeatable(policy: QwenVLAPolicy) -> None:
    with Recorder(envs.make("widowx_reach", 4)) as env:
        for _ in range(2):
            results = run_episodes(policy, env, episode_keys(4, seed=9), temperature=0.6)
    rounds = len(env.chunks) // 2
    assert len(env.chunks) == 2 * rounds and results.steps.max() <= 32
    for one, two in zip(env.chunks[:rounds], env.chunks[rounds:], strict=True):
        assert np.array_equal(one.actions, two.actions)


@pytest.mark.parametrize("num", [2, 3, 50])
@pytest.mark.parametrize("shuffle", ["images", "instructions"])
def test_shuffling_gives_everyone_what_is_anothers(num: int, shuffle: Shuffle) -> None:
    pictures = np.broadcast_to(np.arange(num, dtype=np.uint8)[:, None, None, None], (num, 2, 2, 3))
    plain = Observation({"ego": pictures}, tuple(map(str, range(num))), "widowx", privileged=np.zeros((num, 1)))
    for seed in range(20):
        mixed = _shuffled(plain, shuffle, seed)
        seen = mixed.images["ego"][:, 0, 0, 0].astype(int)
        asked = np.array([int(text) for text in mixed.instruction])
        moved, stayed = (seen, asked) if shuffle == "images" else (asked, seen)
        assert stayed.tolist() == list(range(num))
        assert (moved != np.arange(num)).all() and sorted(moved) == list(range(num))
        again = _shuffled(plain, shuffle, seed)
        assert again.instruction == mixed.instruction and np.array_equal(again.images["ego"], mixed.images["ego"])
    assert _shuffled(plain, "none", 0) is plain


@pytest.mark.parametrize("too_few", ["env.num_envs=3", "evaluation.episodes=3"])
def test_shuffling_takes_two_in_every_process(too_few: str) -> None:
    load(EvaluateConfig, "evaluate", ["shuffle=images", too_few.replace("3", "4")])
    with pytest.raises(UserError, match="'shuffle': got images; expected none with 1 at a time in each of 2 processes"):
        load(EvaluateConfig, "evaluate", ["shuffle=images", too_few])


def test_episodes_of_which_nothing_is_reported_do_not_cost_what_others_report() -> None:
    told = EpisodeResults(np.array([True]), np.ones(1), np.array([3]), (None,), {"spl": np.array([0.5], np.float32)})
    broken = EpisodeResults(np.array([False]), np.zeros(1), np.array([1]), (None,), {})
    for parts, spl in (([told, broken], [0.5, np.nan]), ([broken, told], [np.nan, 0.5])):
        np.testing.assert_array_equal(together(parts).measures["spl"], spl)


def test_a_world_that_cannot_be_had_twice_is_filmed_where_it_is(policy: QwenVLAPolicy) -> None:
    world, player = Script([["S"], ["", "C"]]), object.__new__(Player)
    world.keyed = False
    player.policy, player.settings = policy, EvaluationSection(seed=9)
    player.seats = (Seat(World("two", "nowhere", {}, np.arange(2), None), world, WIDOWX),)
    films = player.film(0, np.arange(5))
    assert [(film.episode, film.success, film.world) for film in films] == [
        (number, number % 2 == 0, "two") for number in range(5)
    ]
    assert not world.filming


@pytest.fixture(scope="module")
def filmed(policy: QwenVLAPolicy) -> Iterator[tuple[list, Recorder]]:
    with envs.make("widowx_reach", 3) as env:
        yield film_episodes(policy, env, episode_keys(3, seed=9, first=5), temperature=0.6), env


def test_a_film_has_a_frame_for_every_step(policy: QwenVLAPolicy, filmed: tuple[list, Recorder]) -> None:
    films, _ = filmed
    with envs.make("widowx_reach", 3) as env:
        results = run_episodes(policy, env, episode_keys(3, seed=9, first=5), temperature=0.6)
        first = env.reset(episode_keys(3, seed=9, first=5))
    assert [len(film.frames) for film in films] == (results.steps + 1).tolist()
    assert [film.success for film in films] == results.success.tolist()
    assert [film.episode for film in films] == [5, 6, 7]
    for film, picture, text in zip(films, first.images["ego"], first.instruction, strict=True):
        assert np.array_equal(film.frames[0], picture) and film.instruction == text
