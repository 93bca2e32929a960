"""Several worlds in one run: how environments are shared out, what is reported of each, and what a broken one costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import blind_policy, episode_keys, observations, random_contexts, tiny_policy, trajectory
from metrics_data import evaluation, report_data, row

import envs
from actors.evaluator import EpisodeResults, run_episodes, together
from actors.rollout import collect
from envs.base import VectorEnv
from learners.advantages import credit
from learners.batch import flatten
from rl_finetune.algorithm import job as jobs
from rl_finetune.algorithm.evaluation import evaluation_of
from rl_finetune.algorithm.summary import Clock, iteration_row
from rl_finetune.checkpoint import RunState, complete, load_state
from rl_finetune.config import EvaluateConfig, TrainConfig, dump, load
from rl_finetune.config.objectives import GRPOSection, ObjectiveSection, PPOSection
from rl_finetune.config.worlds import apportion
from rl_finetune.errors import UserError
from rl_finetune.metrics.console import plain_line
from rl_finetune.metrics.evaluation import Comparison, Evaluation
from rl_finetune.metrics.intervals import mean_gain, mean_over, paired_gain, wilson
from rl_finetune.metrics.report import render
from rl_finetune.metrics.rows import IterationRow, WorldRow
from rl_finetune.policy import FlowSDE, QwenVLAPolicy
from rl_finetune.policy.config import WIDOWX
from rl_finetune.policy.critics import PrivilegedCritic
from rl_finetune.store import load_round, save_round
from rl_finetune.types import ActionChunk, ChunkOutcome, Failure, Observation, SeedKeys, Trajectory, UpdateReport

MIX = "env.mix=[{name: widowx_reach, share: 2}, {name: widowx_reach, options: {tolerance: 0.02}}, {name: b, chunks: 6}]"


# ---- sharing out


def test_largest_remainders_by_hand() -> None:
    # Quotas 4.7, 4.7, .6 of 10: floors 4, 4, 0; the two seats left go to .7 and .7.
    assert apportion(10, [47, 47, 6]) == [5, 5, 0]
    assert apportion(7, [1, 1]) == [4, 3] and apportion(3, [0.1, 0.2]) == [1, 2]


def test_worlds_have_labels_numbers_and_groups_of_their_own() -> None:
    words = ["objective.name=grpo", "objective.group_size=4", "env.num_envs=32"]
    worlds = load(TrainConfig, None, [*words, MIX]).env.worlds(4)
    assert [w.label for w in worlds] == ["widowx_reach", "widowx_reach#2", "b"]
    assert [(int(w.env_ids[0]), int(w.env_ids[-1])) for w in worlds] == [(0, 15), (16, 23), (24, 31)]
    assert [w.options for w in worlds] == [{}, {"tolerance": 0.02}, {}] and worlds[2].chunks == 6
    held = np.concatenate([w.share(actor, 3).env_ids for actor in range(3) for w in worlds])
    assert sorted(held) == list(range(32))


def test_one_world_is_what_it_was() -> None:
    for words in ([], ["env.mix=null"], ["env.mix=[]"]):
        env = load(TrainConfig, None, [*words, "env.options.tolerance=0.03"]).env
        (world,) = env.worlds()
        assert (world.label, world.name, world.options, env.title) == (
            "widowx_reach", "widowx_reach", {"tolerance": 0.03}, "widowx_reach",
        )  # fmt: skip
        assert world.env_ids.tolist() == list(range(128))


def test_a_mix_survives_a_round_trip(tmp_path: Path) -> None:
    config = load(TrainConfig, None, [MIX])
    (tmp_path / "a.yaml").write_text(dump(config))
    assert load(TrainConfig, tmp_path / "a.yaml") == config
    assert load(TrainConfig, tmp_path / "a.yaml", ["env.mix.0.share=5"]).env.mix[0].share == 5


@pytest.mark.parametrize(
    ("told", "kind", "words"),
    [
        ("'env.mix': got 1 of 4 environments for widowx_reach#2; expected at least rollout.num_actors = 2", TrainConfig,
         ["env.num_envs=4", "objective.minibatch=16", MIX]),
        ("'env.mix': got 0 of 9 environments for b; expected at least num_actors = 1", EvaluateConfig,
         ["env.num_envs=9", "num_actors=1", "env.mix=[{name: a, share: 99}, {name: b}]"]),
        ("'objective.minibatch': got 576; expected at most", TrainConfig, [MIX, "objective.minibatch=576",
         "env.mix.2.chunks=4"]),
        ("'exploration.levels': got None; expected numbers", TrainConfig, [MIX, "exploration.law=calibrated"]),
        ("'exploration.odds': got contribution; expected numbers", TrainConfig, [MIX, "exploration.odds=contribution"]),
        ("'env.mix.1.share' has a wrong value: got 0; expected number > 0", TrainConfig, [MIX, "env.mix.1.share=0"]),
        ("did you mean 'env.mix.0.share'?", TrainConfig, ["env.mix=[{name: a, shares: 2}]"]),
        ("'prompt_as': got c; expected worlds among ['a', 'b']", EvaluateConfig,
         ["env.mix=[{name: a}, {name: b}]", "prompt_as={c: widowx}"]),
    ],
)  # fmt: skip
def test_impossible_mixes_are_named(told: str, kind: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load(kind, None, words)
    assert told in str(caught.value)


def test_chunks_of_a_world_count_towards_what_a_minibatch_may_hold() -> None:
    words = [MIX, "env.num_envs=128", "objective.minibatch=576"]
    assert load(TrainConfig, None, words).objective.minibatch == 576  # 64 * 4 + 32 * 4 + 32 * 6


# ---- broken worlds


class Scripted(VectorEnv):
    """Each environment's chunks by letter: `.` goes on, S succeeds, C is cut off, B breaks down."""

    def __init__(self, script: Sequence[str]) -> None:
        self.script, self.num_envs, self.spec = script, len(script), envs.spec("widowx_reach")

    def reset(self, keys: SeedKeys) -> Observation:
        self.keys, self.time = keys, 0
        return self.see(range(self.num_envs))

    def see(self, rows: Sequence[int]) -> Observation:
        seen = observations(len(rows), seed=self.time)
        return replace(seen, privileged=np.full((len(rows), 2), 0.01 * self.time, np.float32))

    def step_chunk(self, chunk: ActionChunk) -> ChunkOutcome:
        now = np.array([letters[self.time] for letters in self.script])
        self.time += 1
        over = np.flatnonzero(now != ".")
        final = self.see(over) if over.size else None
        if final is not None and final.privileged is not None:
            final.privileged[now[over] == "B"] = np.nan
        reward = np.zeros((self.num_envs, 8), np.float32)
        reward[now == "S", -1] = 1
        spl = np.where(now == "S", 0.5, np.where(now == "C", 0.0, np.nan)).astype(np.float32)
        broken = tuple(
            Failure(int(i), self.spec.name, self.keys.seed, int(self.keys.env[i]), self.time, "it raised")
            for i in np.flatnonzero(now == "B")
        )
        return ChunkOutcome(
            reward=reward, steps_executed=np.full(self.num_envs, 8), terminated=now == "S",
            truncated=(now == "C") | (now == "B"), success=now == "S", observation=self.see(range(self.num_envs)),
            final_index=over, final_observation=final, reward_terms={"success": reward}, measures={"spl": spl},
            failures=broken,
        )  # fmt: skip

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def policy() -> QwenVLAPolicy:
    made = tiny_policy()
    made.critic, made.privileged_critic = "privileged", PrivilegedCritic(2)
    return made


@pytest.fixture(scope="module")
def broken(policy: QwenVLAPolicy) -> Trajectory:
    """Four environments in one group; the first breaks down at the end of its second chunk."""
    env = Scripted([".B.S", ".S.C", "...S", "B..."])
    keys = replace(episode_keys(4, seed=5), group=4)
    return collect(
        policy, env, keys, chunks=4, body=WIDOWX, law=FlowSDE(), cache_contexts=True, policy_version=0, world="here"
    )


def test_a_trajectory_says_where_worlds_broke_down_and_nothing_of_what_they_left(broken: Trajectory) -> None:
    assert np.argwhere(broken.failed).tolist() == [[0, 3], [1, 0]] and broken.world == "here"
    assert [str(f) for f in broken.failures] == [
        f"widowx_reach broke down (seed 5, environment {env}, episode {episode}): it raised"
        for env, episode in ((3, 1), (0, 2))
    ]
    assert np.isfinite(broken.next_value).all() and (broken.next_value[broken.failed] == 0).all()


def test_stored_rounds_keep_failures(broken: Trajectory, tmp_path: Path) -> None:
    (again,) = load_round(save_round(tmp_path, 0, [broken]))
    assert again.failures == broken.failures and np.array_equal(again.failed, broken.failed)


@pytest.mark.parametrize("objective", [PPOSection(), GRPOSection()], ids=lambda o: o.name)
def test_nothing_is_learned_from_an_episode_that_broke(broken: Trajectory, objective: ObjectiveSection) -> None:
    (scored,) = credit([broken], objective)
    inside = np.array([[1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], bool)
    assert not scored.used[inside].any() and (scored.advantage[inside] == 0).all()
    assert scored.used[:, 1].any() if objective.credit != "gae" else scored.used[~inside].all()
    other = replace(broken, value=np.where(inside, 9, broken.value), reward=broken.reward + 7 * inside[..., None])
    (again,) = credit([other], objective)
    for name in ("advantage", "returns", "used"):
        assert np.array_equal(getattr(again, name)[~inside], getattr(scored, name)[~inside])
    assert len(flatten([scored], normalise=True)) == scored.used.sum()


def test_groups_compare_what_is_left_and_go_on_counting_episodes(broken: Trajectory) -> None:
    # First episodes: 1 succeeds, 2 succeeds; 0 and 3 broke. Second ones: 0 succeeds, 1 is cut off, 3 is unfinished.
    (scored,) = credit([broken], GRPOSection())
    assert scored.used.tolist() == [[False] * 4, [False] * 4, [True, True, False, False], [True, True, False, False]]
    np.testing.assert_allclose(scored.advantage[2, :2], [1, -1], rtol=1e-5)


def test_where_everything_broke_nothing_is_learned(broken: Trajectory) -> None:
    everyone = replace(broken, failed=np.ones((4, 4), bool), truncated=np.ones((4, 4), bool))
    (scored,) = credit([everyone], PPOSection())
    batch = flatten([scored], normalise=True)
    assert (batch.advantage == 0).all() and bool((batch.returns == batch.old_value).all())


def test_an_evaluation_counts_broken_episodes_as_failed_and_averages_what_tasks_report(policy: QwenVLAPolicy) -> None:
    env = Scripted(["SC", "CB", ".B", "BS"])
    found = run_episodes(policy, env, episode_keys(4, seed=5), temperature=0.6)
    assert found.success.tolist() == [True, False, False, False]
    assert [f and f.env for f in found.failures] == [None, None, 2, 3]
    assert found.measures["spl"][:2].tolist() == [0.5, 0] and np.isnan(found.measures["spl"][2:]).all()
    twice = together([found, found]).first(7)
    made, failures = evaluation_of({"a": twice}, seed=7, version=2)
    report = made.worlds["a"]
    assert (report.success, report.failed, report.measures) == (2 / 7, 3, {"spl": 0.25}) and len(failures) == 3
    assert report.interval == wilson(2, 7)
    assert made.lines() == ["success 28.6% [8.2%, 64.1%], spl 0.25, 3 broke down"]


# ---- numbers over worlds


def test_the_interval_of_a_mean_by_hand() -> None:
    mean, (low, high) = mean_over([(0.2, (0.1, 0.5)), (0.8, (0.4, 0.9))])
    assert (mean, low, high) == pytest.approx((0.5, 0.5 - np.hypot(0.1, 0.4) / 2, 0.5 + np.hypot(0.3, 0.1) / 2))
    assert mean_over([(0.3, wilson(3, 10))]) == (0.3, wilson(3, 10))
    certain = [(0.0, wilson(0, 20)), (1.0, wilson(20, 20))]
    assert mean_over(certain)[1][0] < 0.5 < mean_over(certain)[1][1]
    gain = paired_gain([False] * 4, [True] * 4)
    assert mean_gain([gain]) == gain and mean_gain([gain, gain]).won == 8


def test_the_interval_of_a_mean_covers_the_truth_as_often_as_it_says() -> None:
    rng, rates, n = np.random.default_rng(0), (0.05, 0.6, 0.9), 60
    hits = 0
    for _ in range(2000):
        parts = [(k / n, wilson(int(k), n)) for k in rng.binomial(n, rates)]
        low, high = mean_over(parts)[1]
        hits += low <= np.mean(rates) <= high
    assert 0.935 < hits / 2000 < 0.97


def two(before: tuple[int, int], after: tuple[int, int]) -> Comparison:
    """Successes of ten episodes each in two worlds."""
    made = [
        Evaluation(
            {label: evaluation([i < k for i in range(10)], version) for label, k in zip("ab", done, strict=True)}
        )
        for version, done in ((0, before), (3, after))
    ]
    return Comparison(*made)


def test_the_evaluation_file_has_the_mean_and_each_world() -> None:
    compared = two((2, 4), (9, 5))
    found = json.loads(json.dumps(compared.to_dict()))
    assert (found["episodes"], found["before"]["success"], found["after"]["success"]) == pytest.approx((20, 0.3, 0.7))
    assert found["gain"]["points"] == pytest.approx(40) and found["gain"]["won"] == 8
    assert found["successes_after"] == [True] * 9 + [False] + [True] * 5 + [False] * 5
    worlds = found["worlds"]
    assert (worlds["a"]["gain"]["points"], worlds["b"]["gain"]["points"]) == (70, 10)
    assert worlds["b"]["after"]["interval"] == list(wilson(5, 10)) and worlds["a"]["episodes"] == 10
    assert Evaluation.from_dict(json.loads(json.dumps(compared.after.to_dict()))) == compared.after
    assert "mean of 2 worlds (a 20.0% -> 90.0%, +70.0 points" in compared.line()
    assert compared.line().endswith("on 10 held-out episodes each")


def test_one_world_keeps_its_own_report() -> None:
    before, after = evaluation([False, True], 0), evaluation([True, True], 1)
    compared = Comparison(Evaluation({"a": before}), Evaluation({"a": after}))
    assert compared.after.overall is after and compared.gain == paired_gain(before.successes, after.successes)
    whole = compared.to_dict()
    assert {"episodes", "seed", "before", "after", "gain", "successes_before", "successes_after"} < whole.keys()
    assert "worlds" not in compared.line() and compared.line().endswith("on 2 held-out episodes")


# ---- what a round reports


def played(world: str, tag: str, success: Sequence[bool], failed: Sequence[bool], **changes: Any) -> Trajectory:
    n, ended = len(success), np.ones((1, len(success)), bool)
    made = trajectory(blind_policy(), random_contexts(n), truncated=ended, success=np.array([success]), **changes)
    broken = tuple(Failure(int(i), world, 0, int(i), 0, "NaN") for i in np.flatnonzero(failed))
    return replace(made, world=world, embodiment=tag, failed=np.array([failed]), failures=broken, executed_std=0.25)


def test_a_row_tells_worlds_apart() -> None:
    parts = [
        played("a", "widowx", [True, False], [False, False], reward=np.ones((1, 2, 8), np.float32)),
        played("b", "rover", [True, False, False], [False, True, False], steps_executed=np.full((1, 3), 4)),
        played("a", "widowx", [True, True], [False, False], reward=np.zeros((1, 2, 8), np.float32)),
    ]
    numbers = {name: 0.0 for name in ("explained_variance", "grad_norm", "policy_loss", "actor_lr")}
    state = RunState(3, 3, 0, 0.0, 0, (), 1, recent_by_world={"a": (False,) * 3, "b": (True,)})
    state, made = iteration_row(
        state, parts, UpdateReport(4, numbers, 0.0, 1.0), Clock({"collect": 1.0, "update": 1.0}), publish_bytes=1,
        recent=5, healthy=1, events=("lost",),
    )  # fmt: skip
    a, b = made.worlds["a"], made.worlds["b"]
    assert state.recent_by_world == {"a": (False, True, False, True, True), "b": (True, True, False)}
    assert (a.success, a.episodes, a.mean_return, a.transitions, a.failures) == (0.6, 4, 4.0, 4, 0)
    assert (b.success, b.episodes, b.steps, b.failures) == (2 / 3, 2, 12, 1)
    assert (made.success, made.success_interval) == mean_over([(w.success, w.success_interval) for w in (a, b)])
    assert (made.episodes, made.failures, made.contribution) == (6, 1, ()) and np.isnan(made.executed_std)
    assert made.events == ("lost", "b broke down (seed 0, environment 1, episode 0): NaN")


def test_rows_of_several_worlds_come_back_from_the_journal_and_are_shown() -> None:
    worlds = {
        label: WorldRow(success, wilson(5, 10), 0.5, 10, 80, 16, 0, 0.01)
        for label, success in (("reach#2", 0.25), ("rover", float("nan")))
    }
    made = row(3, worlds=worlds, failures=2)
    record = made.to_dict()
    assert record["world/reach#2/success"] == 0.25 and record["world/rover/transitions"] == 16
    again = IterationRow.from_dict(json.loads(json.dumps(record).replace("NaN", "null")))
    assert again.worlds["reach#2"] == worlds["reach#2"] and np.isnan(again.worlds["rover"].success)
    line = plain_line(made, 9, 1.0)
    assert line.endswith("broken 2 v3 | reach#2 25% | rover -")
    old = {name: value for name, value in row(1).to_dict().items() if name != "failures"}
    assert IterationRow.from_dict(old).failures == 0


def test_the_report_shows_each_world_and_its_measures() -> None:
    compared = two((2, 4), (9, 5))
    after = {
        "a": replace(compared.after.worlds["a"], measures={"spl": 0.75}, failed=1),
        "b": compared.after.worlds["b"],
    }
    seen = {label: WorldRow(0.5, (0.4, 0.6), 0.5, 10, 80, 16, 0, 0.01) for label in "ab"}
    page = render(
        report_data(
            compared=Comparison(compared.before, Evaluation(after)), rows=tuple(row(i, worlds=seen) for i in (1, 2))
        )
    )
    assert "mean of 2 worlds" in page and "+70.0 points" in page and "spl" in page and "0.75" in page
    assert page.count("over training") > 3 and "Success in b over training" in page
    assert "<h2>Worlds</h2>" not in render(report_data())


def test_a_checkpoint_keeps_what_is_recent_by_world(tmp_path: Path) -> None:
    state = RunState(3, 3, 9, 0.5, 0, (True,), 2, recent_by_world={"a": (True, False), "b": ()})
    complete(tmp_path, state)
    assert load_state(tmp_path) == state


# ---- the wrong prompt


def test_a_swapped_prompt_changes_the_words_alone(policy: QwenVLAPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(
        WIDOWX, tag="aloha", arms="dual arms", views=("ego", "cam_left_wrist"),
        action=replace(WIDOWX.action, rate=50.0, horizon=6, channels=14, control="joint"),
    )  # fmt: skip
    monkeypatch.setattr(policy, "config", replace(policy.config, embodiments=(WIDOWX, other), max_context_tokens=96))
    monkeypatch.setattr(policy.eyes, "max_tokens", 96)
    asked, tokenise = [], policy.eyes.tokenise
    monkeypatch.setattr(policy.eyes, "tokenise", lambda seen, body: asked.append(body) or tokenise(seen, body))
    seen = observations(2)
    truth, lie = policy.encode(seen), policy.encode(seen, "aloha")
    assert asked == [WIDOWX, replace(other, views=WIDOWX.views)]
    assert (truth.hidden != lie.hidden).any()
    chunk = policy.act(lie, episode_keys(2), np.zeros(2, np.int64), WIDOWX, 0.6)
    assert chunk.actions.shape[1] == 8 and chunk.mask[0, 0].sum() == 7
    with pytest.raises(UserError, match="not trained for"):
        policy.encode(seen, "nobody")


def test_the_swap_is_for_all_worlds_or_by_world() -> None:
    words = ["env.mix=[{name: a}, {name: b}]"]
    everywhere = load(EvaluateConfig, None, [*words, "prompt_as=widowx"])
    one = load(EvaluateConfig, None, [*words, "prompt_as={b: widowx}"])
    assert [everywhere.told(label) for label in "ab"] == ["widowx"] * 2
    assert [one.told(label) for label in "ab"] == [None, "widowx"]


# ---- a whole job, without its actors and learners


@dataclass
class Rounds:
    """Stands in for the algorithm: two worlds, of which the second gets better."""

    state: RunState
    row: IterationRow | None = None

    def train(self) -> None:
        parts = [played(label, tag, [True, False], [False, False]) for label, tag in (("a", "widowx"), ("b", "rover"))]
        numbers = {name: 0.0 for name in ("explained_variance", "grad_norm", "policy_loss", "actor_lr")}
        report = UpdateReport(self.state.version + 1, numbers, 0.0, 1.0)
        clock = Clock({"collect": 1.0, "update": 1.0})
        self.state, self.row = iteration_row(
            self.state, parts, report, clock, publish_bytes=1, recent=8, healthy=1, events=()
        )

    def play(self, episodes: int) -> dict[str, EpisodeResults]:
        won, steps = np.arange(episodes) < 2 * self.state.version, np.ones(episodes, np.int64)
        none: tuple[Failure | None, ...] = (None,) * episodes
        broken = (Failure(0, "a", 0, 0, 0, "it hung"), *none[1:])
        return {
            "a": EpisodeResults(steps < 0, steps, broken, {}),
            "b": EpisodeResults(won, steps, none, {"spl": won / 2}),
        }

    def film(self, episodes: int) -> list[Any]:
        return []

    def save_checkpoint(self, folder: str) -> None:
        (Path(folder) / "adapter").mkdir()
        complete(Path(folder), self.state)

    def stop(self) -> None:
        pass


def test_a_job_reports_every_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs._Job, "_algorithm", lambda self: Rounds(RunState(0, 0, 0, 0.0, 0, (), 1)))
    for name in ("check", "check_critic"):
        monkeypatch.setattr(jobs.preflight, name, lambda *_: None)
    words = ["run.iterations=3", "run.wandb=disabled", "evaluation.episodes=10", "env.mix=[{name: a}, {name: b}]"]
    assert jobs.train(load(TrainConfig, "smoke", [*words, f"run.folder={tmp_path / 'run'}"])) == 0
    out = capsys.readouterr().out
    assert "a + b, seed 0" in out and "10 held-out episodes of each of 2 worlds" in out
    assert "after training: a: success 0.0%" in out and ", 1 broke down" in out and "it hung" in out
    assert "after training: b: success 60.0%" in out and "spl 0.3" in out
    assert "mean of 2 worlds (a 0.0% -> 0.0%" in out.splitlines()[-1]
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["worlds"]["b"]["gain"]["points"] == 60 and found["worlds"]["a"]["after"]["failed"] == 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["world/b/success"] for row in rows] == [0.5] * 3
