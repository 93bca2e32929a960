"""What an objective is given of a batch: points that stay, references from the start, advice, what is left out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from builders import blind_policy, decisions, noisy_policy, observations, random_contexts, tiny_policy, trajectory
from torch import Tensor

from learners.advantages import score
from learners.batch import Batch, flatten, minibatches
from learners.objectives import OBJECTIVES
from learners.objectives.base import DensityInputs, LossInputs, LossOutputs, PairInputs, TransitionInputs
from learners.update import Recipe, minibatch_loss, prepare, run_update
from learners.views import AdvisedPairs, Densities, Pairs, Transitions, positive, view_of
from rl_finetune.config.objectives import (
    DecoupledPPOSection,
    DiffusionNFTSection,
    FPOPlusSection,
    FPOSection,
    GRPOSection,
    ObjectiveSection,
    PPOSection,
    RECAPSection,
    RLOOSection,
    StepNFTSection,
)
from rl_finetune.policy import QwenVLAPolicy, TorchContext
from rl_finetune.policy.critics import PrivilegedCritic
from rl_finetune.policy.laws import ODE, FlowNoise, FlowSDE, Law
from rl_finetune.types import ScoredTrajectory, Trajectory, UpdateReport

LAW = FlowSDE()
LIKELIHOOD_FREE = (DiffusionNFTSection, StepNFTSection, FPOSection, FPOPlusSection, RECAPSection)
PAIRED = (DiffusionNFTSection, FPOSection, FPOPlusSection, RECAPSection)
COMPARING = (DecoupledPPOSection, DiffusionNFTSection, StepNFTSection, FPOSection, FPOPlusSection)


def named(*sections: type[ObjectiveSection]) -> Any:
    return pytest.mark.parametrize("section", sections, ids=[s.model_fields["name"].default for s in sections])


@dataclass
class Watch:
    """One update, and everything that the objective was given during it, by decision."""

    policy: QwenVLAPolicy
    objective: ObjectiveSection
    lr: float = 0.0
    law: Law = LAW
    rank: int = 0
    world: int = 1
    seed: int = 0
    version: int = 4
    given: list[LossInputs] = field(default_factory=list)

    def run(self, data: list[ScoredTrajectory]) -> UpdateReport:
        adam = torch.optim.AdamW([p for p in self.policy.parameters() if p.requires_grad], lr=self.lr)

        def optimise(loss: Tensor) -> None:
            adam.zero_grad()
            loss.backward()
            adam.step()

        return run_update(
            self.policy, data, Recipe(self.objective, self.loss, self.law), optimise=optimise,
            seed=self.seed, version=self.version, rank=self.rank, world=self.world,
        )  # fmt: skip

    def loss(self, inputs: LossInputs, config: ObjectiveSection) -> LossOutputs:
        self.given.append(inputs)
        return OBJECTIVES[config.name](inputs, config)

    def epochs(self, name: str, samples: int) -> list[dict[int, Tensor]]:
        """Epoch -> decision -> what stood in that field."""
        found: list[dict[int, Tensor]] = []
        given = iter(self.given)
        for epoch in range(self.objective.epochs):
            order = minibatches(
                samples, self.objective.minibatch, seed=self.seed, update=self.version, epoch=epoch,
                rank=self.rank, world=self.world,
            )  # fmt: skip
            rows = [(int(i), row) for index in order for i, row in zip(index, getattr(next(given), name), strict=True)]
            found.append({i: row.detach() for i, row in rows})
        assert next(given, None) is None
        return found


def scored(*made: Trajectory) -> list[ScoredTrajectory]:
    return [score(t, gamma=0.99, lam=0.95) for t in made]


def a_round(policy: QwenVLAPolicy, num: int = 24, *, law: Law = LAW, **changes: Any) -> list[ScoredTrajectory]:
    """With contexts for good and bad chunks, whether anyone asks for them or not."""
    advised = tuple(random_contexts(num, seed=seed).numpy() for seed in (8, 9))
    return scored(trajectory(policy, random_contexts(num), chunks=2, law=law, **({"advised": advised} | changes)))


def batch_of(policy: QwenVLAPolicy, num: int = 24, **changes: Any) -> Batch:
    return flatten(a_round(policy, num, **changes), normalise=True)


# ---- points


@named(*PAIRED)
def test_points_are_fixed_during_an_update(section: type[ObjectiveSection]) -> None:
    watch = Watch(blind_policy(), section(epochs=3, minibatch=8), lr=1e-3)
    watch.run(a_round(watch.policy))
    for name in ("eps", "tau", "x", "sample"):
        first, *others = watch.epochs(name, 24)
        assert len(first) == 24
        for other in others:
            assert all(torch.equal(other[i], first[i]) for i in first), name
    first, *_, last = watch.epochs("velocity", 24)
    assert max((last[i] - first[i]).abs().max().item() for i in first) > 1e-3


@named(*PAIRED, StepNFTSection)
def test_two_learners_look_where_one_does(section: type[ObjectiveSection]) -> None:
    objective = section(epochs=2, minibatch=8)
    watches = [Watch(blind_policy(), objective, rank=rank, world=world) for rank, world in ((0, 1), (0, 2), (1, 2))]
    for watch in watches:
        watch.run(a_round(watch.policy))
    names = ("x_next", "mean", "old_mean") if section is StepNFTSection else ("eps", "tau", "velocity", "old_velocity")
    for name in names:
        for whole, *parts in zip(*(watch.epochs(name, 24) for watch in watches), strict=True):
            assert [len(part) for part in parts] == [12, 12]
            joined = parts[0] | parts[1]
            assert joined.keys() == whole.keys()
            for i, row in joined.items():
                torch.testing.assert_close(row, whole[i], rtol=0, atol=1e-5)


def test_another_update_or_seed_looks_elsewhere() -> None:
    batch = batch_of(blind_policy())
    one, same = Pairs(batch, 4, (0, 4, 0)), Pairs(batch, 4, (0, 4, 0))
    assert torch.equal(one.x, same.x) and torch.equal(one.tau, same.tau)
    for other in (Pairs(batch, 4, (0, 5, 0)), Pairs(batch, 4, (1, 4, 0))):
        assert (other.eps - one.eps).abs().flatten(1).amax(1).min() > 0.5 and (other.tau != one.tau).all()


@pytest.mark.parametrize("pairs", [1, 2, 4])
def test_times_are_stratified_and_points_lie_on_straight_paths(pairs: int) -> None:
    blank = torch.zeros(3000, 2, 1, 2)
    sample = torch.randn(3000, 1, 2, generator=torch.Generator().manual_seed(0))
    batch = decisions(blank, torch.zeros(3000, dtype=torch.long), blank[:, 0].bool(), sample=sample)
    view = Pairs(batch, pairs, (0, 0, 0))
    within = view.tau * pairs - torch.arange(pairs)
    assert view.tau.shape == (3000, pairs) and view.tau.min() > 0 and view.tau.max() <= 1
    assert -1e-6 <= within.min() < 0.01 and 0.99 < within.max() <= 1
    assert within.mean().item() == pytest.approx(0.5, abs=4.5 * 0.29 / (3000 * pairs) ** 0.5)
    assert view.eps.shape == (3000, pairs, 1, 2) and view.eps.std().item() == pytest.approx(1, abs=0.03)
    tau = view.tau[..., None, None]
    torch.testing.assert_close(view.x, (1 - tau) * sample[:, None] + tau * view.eps)


def test_settings_name_the_view() -> None:
    batch = batch_of(blind_policy())
    wanted = {
        PPOSection: Densities, DecoupledPPOSection: Densities, GRPOSection: Densities, RLOOSection: Densities,
        StepNFTSection: Transitions, DiffusionNFTSection: Pairs, FPOSection: Pairs, FPOPlusSection: Pairs,
        RECAPSection: AdvisedPairs,
    }  # fmt: skip
    assert {s().name for s in wanted} == set(OBJECTIVES)
    for section, kind in wanted.items():
        view = view_of(batch, section(), LAW, (0, 0, 0))
        assert type(view) is kind
        assert view.x.shape[1] == view.tau.shape[1] == getattr(section(), "pairs", 1)
    assert view_of(batch_of(noisy_policy(), law=FlowNoise(3)), PPOSection(), FlowNoise(3), (0, 0, 0)).x.shape[1] == 3


# ---- what the weights said at the start


REFERENCE = {"velocity": "old_velocity", "mean": "old_mean", "log_prob": "start_log_prob"}


@named(*COMPARING)
def test_references_are_of_the_start_of_the_update(section: type[ObjectiveSection]) -> None:
    watch = Watch(blind_policy(), section(epochs=3, minibatch=8), lr=1e-3)
    watch.run(a_round(watch.policy))
    (now, reference), *_ = [pair for pair in REFERENCE.items() if hasattr(watch.given[0], pair[0])]
    start = getattr(watch.given[0], now).detach()
    torch.testing.assert_close(getattr(watch.given[0], reference), start, rtol=0, atol=1e-4)
    first, *others = watch.epochs(reference, 24)
    for other in others:
        assert all(torch.equal(other[i], first[i]) for i in first)
    *_, last = watch.epochs(now, 24)
    assert max((last[i] - first[i]).abs().max().item() for i in first) > 1e-3
    assert not any(getattr(given, reference).requires_grad for given in watch.given)


@named(*COMPARING)
def test_references_do_not_depend_on_the_minibatch(section: type[ObjectiveSection]) -> None:
    policy = blind_policy()
    batch = batch_of(policy)
    one, other = (
        prepare(policy, batch, Recipe(section(minibatch=size), OBJECTIVES["ppo"], LAW), (0, 0)) for size in (5, 24)
    )
    assert one.reference is not None and other.reference is not None and len(one.reference) == 24
    torch.testing.assert_close(one.reference, other.reference, rtol=0, atol=1e-4)


def test_stale_decisions_have_three_likelihoods() -> None:
    """Of the weights that acted, of those at the start of the update, of the present ones."""
    policy = blind_policy()
    data = a_round(policy)
    with torch.no_grad():
        policy.decoder.action_out[2].weight.mul_(1.02)
    watch = Watch(policy, DecoupledPPOSection(epochs=1, minibatch=24), lr=1e-3)
    report = watch.run(data)
    (given,) = watch.given
    assert isinstance(given, DensityInputs)
    assert (given.start_log_prob - given.old_log_prob).abs().max() > 0.01
    torch.testing.assert_close(given.log_prob, given.start_log_prob, rtol=0, atol=1e-4)
    assert report.first_ratio_error < 1e-4 and report.diagnostics["stale_weight"] != 1
    fresh = Watch(policy, PPOSection(epochs=1, minibatch=24))
    fresh.run(data)
    assert isinstance(fresh.given[0], DensityInputs) and fresh.given[0].start_log_prob is fresh.given[0].old_log_prob


def test_transitions_by_hand() -> None:
    """At k the mean is x0_hat (1 - tau') + eps_hat (tau' - sigma^2 delta / (2 tau)), of both velocities."""
    policy, moved = blind_policy(), blind_policy(1)
    data = a_round(policy)
    batch = flatten(data, normalise=False)
    recipe = Recipe(StepNFTSection(), OBJECTIVES["step_nft"], LAW)
    ready, rows = prepare(policy, batch, recipe, (0, 0)), torch.arange(24)
    context = ready.view.context(rows)
    tau = 1 - batch.step / 4
    x, x_next = batch.states.unbind(1)
    with torch.no_grad():
        old, new = (p.velocity(context, x, tau) for p in (policy, moved))
        given = ready.view.inputs(moved, context, rows, new[:, None], ready.reference)
    assert isinstance(given, TransitionInputs)
    tau = tau[:, None, None]
    sigma2 = 0.25 * tau / (1 - torch.where(tau == 1, torch.tensor(0.75), tau))
    std = (sigma2 / 4).sqrt()
    for v, mean in ((old, given.old_mean), (new, given.mean)):
        expected = (x - tau * v) * (1.25 - tau) + (x + (1 - tau) * v) * (tau - 0.25 - sigma2 / 8 / tau)
        torch.testing.assert_close(mean, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(given.std, std)
    assert torch.equal(given.x_next, x_next) and len(batch.step.unique()) == 4
    z = ((x_next - given.old_mean) / std)[batch.mask]
    assert abs(z.mean().item()) < 0.15 and z.std().item() == pytest.approx(1, abs=0.1)


@named(*LIKELIHOOD_FREE[:-1])
def test_cached_contexts_and_encoding_again_give_the_same(section: type[ObjectiveSection]) -> None:
    policy, seen = tiny_policy(), observations(12)
    made = trajectory(policy, seen, chunks=2)
    with torch.no_grad():
        cached = replace(made, inputs=policy.encode(seen).numpy())
    watches = [Watch(policy, section(epochs=1, minibatch=6)) for _ in range(2)]
    reports = [watch.run(scored(data)) for watch, data in zip(watches, (made, cached), strict=True)]
    names = ("mean", "old_mean") if section is StepNFTSection else ("velocity", "old_velocity", "x")
    for one, other in zip(*(watch.given for watch in watches), strict=True):
        for name in names:
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-5)
    losses = [report.diagnostics["policy_loss"] for report in reports]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


# ---- advice


def marked(num: int = 40) -> Batch:
    """Contexts filled with 0 (plain), 1 (good) and 2 (bad), positions too; advantages 0, 1, 2... shuffled."""
    contexts = [
        TorchContext(
            torch.full((num, 3, 2), float(kind)), torch.arange(3).expand(num, 3) <= kind,
            torch.full((3, num, 3), kind),
        )
        for kind in range(3)
    ]  # fmt: skip
    blank = torch.zeros(num, 2, 1, 2)
    order = torch.randperm(num, generator=torch.Generator().manual_seed(0)).float()
    return decisions(
        blank, torch.zeros(num, dtype=torch.long), blank[:, 0].bool(), inputs=contexts[0],
        advised=(contexts[1], contexts[2]), advantage=order,
    )  # fmt: skip


def kinds(view: AdvisedPairs, rows: Tensor) -> Tensor:
    """0 plain, 1 good, 2 bad; hidden states, masks and positions agree about it."""
    context = view.context(rows)
    kind = context.hidden[:, 0, 0]
    assert (context.hidden == kind[:, None, None]).all() and (context.positions == kind[None, :, None]).all()
    assert torch.equal(context.mask.sum(1), kind.long() + 1)
    return kind


def test_advice_follows_from_the_quantile() -> None:
    batch = marked()
    for quantile, good in ((0.7, 12), (0.5, 20), (0.9, 4)):
        view = AdvisedPairs(batch, 1, (0, 0, 0), quantile=quantile, dropout=0.0)
        found = kinds(view, torch.arange(40))
        assert torch.equal(found == 1, batch.advantage >= 40 - good) and not (found == 0).any()


@pytest.mark.parametrize(
    ("advantages", "quantile", "called"),
    [
        ([1] * 9 + [0], 0.7, 9),  # 90 % success: those that are equal to the quantile, which are nearer to 3 than none
        ([1] * 2 + [0] * 8, 0.7, 2),  # 20 %: not the failures, which the quantile is equal to
        ([1] * 5 + [0] * 5, 0.7, 5),
        ([1] + [0] * 9, 0.1, 1),
        ([2] * 2 + [1] * 7 + [0], 0.7, 2),  # 2 is nearer to 3 than 9 is
        ([2] + [1] * 3 + [0] * 6, 0.7, 4),  # 4 is nearer to 3 than 1 is
        (list(range(10)), 0.7, 3),
    ],
)
def test_equal_advantages_get_equal_advice(advantages: list[int], quantile: float, called: int) -> None:
    """The best `called` of ten, whatever the order."""
    found = positive(torch.tensor(advantages).float(), quantile)
    assert found.sum() == called and min(np.array(advantages)[found]) > max(np.array(advantages)[~found])
    assert torch.equal(positive(torch.tensor(advantages[::-1]).float(), quantile), found.flip(0))


def test_where_no_chunk_is_better_than_another_none_has_advice() -> None:
    batch = replace(marked(), advantage=torch.full((40,), 0.5))
    assert not kinds(AdvisedPairs(batch, 1, (0, 0, 0), quantile=0.7, dropout=0.1), torch.arange(40)).any()


def test_some_are_learned_without_advice_and_stay_so_during_the_update() -> None:
    batch, everyone = marked(4000), torch.arange(4000)
    view = AdvisedPairs(batch, 1, (0, 0, 0), quantile=0.7, dropout=0.1)
    found = kinds(view, everyone)
    assert (found == 0).float().mean().item() == pytest.approx(0.1, abs=4.5 * (0.09 / 4000) ** 0.5)
    advised = found > 0
    assert torch.equal((found == 1)[advised], (batch.advantage >= 2800)[advised])
    assert (found == 0)[batch.advantage >= 2800].float().mean().item() == pytest.approx(0.1, abs=0.03)
    order = everyone.flip(0)
    assert torch.equal(kinds(view, order), found.flip(0))
    same, other = (AdvisedPairs(batch, 1, key, quantile=0.7, dropout=0.1) for key in ((0, 0, 0), (0, 1, 0)))
    assert torch.equal(kinds(same, everyone), found) and not torch.equal(kinds(other, everyone), found)


def test_an_update_conditions_the_decoder_on_the_advice() -> None:
    policy = blind_policy()
    data = a_round(policy)
    watch = Watch(policy, RECAPSection(epochs=1, minibatch=24))
    watch.run(data)
    (given,), batch = watch.given, flatten(data, normalise=False)
    assert isinstance(given, PairInputs) and isinstance(batch.inputs, TorchContext) and batch.advised is not None
    (order,) = minibatches(24, 24, seed=0, update=4, epoch=0, rank=0, world=1)
    view = view_of(batch, watch.objective, LAW, (0, 4, 0))
    assert isinstance(view, AdvisedPairs) and 0 < view.plain.sum() < 12
    for row, i in enumerate(order):
        which = batch.inputs if view.plain[i] else batch.advised[0 if view.good[i] else 1]
        here = torch.tensor([i])
        with torch.no_grad():
            expected = policy.velocity(which.rows(here), view.x[here, 0], view.tau[here, 0])
        torch.testing.assert_close(given.velocity[row], expected, rtol=0, atol=1e-5)


# ---- what is left out


def with_used(data: list[ScoredTrajectory], used: np.ndarray, spoil: float = 0.0) -> list[ScoredTrajectory]:
    (one,) = data
    return [replace(one, used=used, advantage=np.where(used, one.advantage, spoil).astype(np.float32))]


@named(GRPOSection, *LIKELIHOOD_FREE)
def test_dropped_decisions_are_not_learned_from(section: type[ObjectiveSection]) -> None:
    """Whatever stands in them, they are in no minibatch, and are normalised over no more than looked at."""
    used = np.random.default_rng(0).random((2, 12)) < 0.6
    outcomes = []
    for spoil in (0.0, np.nan):
        policy = blind_policy()
        watch = Watch(policy, section(epochs=1, minibatch=4, normalise_advantages=True), lr=1e-3)
        data = with_used(a_round(policy), used, spoil)
        report = watch.run(data)
        rows = np.flatnonzero(used)
        assert report.diagnostics["decisions_used"] == len(rows)
        batch = flatten(data, normalise=True)
        assert len(batch) == used.sum() < 24
        assert np.array_equal(batch.sample, data[0].trajectory.sample.reshape(24, 8, 16)[rows])
        assert isinstance(batch.inputs, TorchContext) and isinstance(batch.advised, tuple)
        assert torch.equal(batch.inputs.hidden, random_contexts(24).hidden[rows])
        assert torch.equal(batch.advised[1].hidden, random_contexts(24, seed=9).hidden[rows])
        assert batch.advantage.mean().item() == pytest.approx(0, abs=1e-6)
        assert sum(len(given.advantage) for given in watch.given if hasattr(given, "advantage")) == len(rows) // 4 * 4
        outcomes.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    assert torch.equal(*outcomes) and outcomes[0].isfinite().all()


@named(GRPOSection, RLOOSection, DiffusionNFTSection, StepNFTSection)
def test_a_round_that_decides_nothing_teaches_nothing(section: type[ObjectiveSection]) -> None:
    """All decisions are kept, lest a learner has none, with advantage zero: no gradient from the objective."""
    policy = blind_policy()
    policy.critic = "none"
    data = with_used(a_round(policy), np.zeros((2, 12), bool))
    recipe = Recipe(section(minibatch=24), OBJECTIVES[section().name], LAW)
    batch = flatten(data, normalise=recipe.objective.normalise_advantages)
    assert len(batch) == 24 and not batch.advantage.any()
    minibatch_loss(policy, prepare(policy, batch, recipe, (0, 0)), np.arange(24), recipe)[0].backward()
    assert max(p.grad.abs().max().item() for p in policy.parameters() if p.grad is not None) < 1e-6


def test_chunks_of_episodes_that_ended_in_success() -> None:
    """Columns: success and an unfinished episode; failure; success in the second chunk of the next episode."""
    ended = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]], bool)
    success = np.array([[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]], bool)
    made = trajectory(blind_policy(), random_contexts(12), chunks=3, terminated=ended, success=success)
    found = flatten(scored(made), normalise=False).success.reshape(3, 4)
    assert found.int().tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]]


# ---- critics


def privileged_policy(width: int = 5) -> QwenVLAPolicy:
    policy = blind_policy()
    policy.critic = "privileged"
    policy.privileged_critic = PrivilegedCritic(width)
    return policy


def privileged_round(policy: QwenVLAPolicy) -> list[ScoredTrajectory]:
    """Returns that the state tells and the context does not."""
    state = np.random.default_rng(0).normal(size=(2, 24, 5)).astype(np.float32) / 10
    worth = (5 * state[..., 0] + np.abs(3 * state[..., 1])).astype(np.float32)
    nothing, end = np.zeros((2, 24), np.float32), np.ones((2, 24), bool)
    reward = np.zeros((2, 24, 8), np.float32)
    reward[..., 0] = worth
    return a_round(policy, 48, privileged=state, value=nothing, next_value=nothing, terminated=end, reward=reward)


def test_a_privileged_critic_sees_the_state_alone() -> None:
    policy = privileged_policy()
    state = torch.randn(6, 5)
    assert policy.privileged_critic is not None and not policy.value(None, state).any()
    torch.nn.init.normal_(policy.privileged_critic.layers[-1].weight)
    value = policy.value(None, state)
    assert value.shape == (6,) and value.std() > 0.1
    assert torch.equal(policy.value(random_contexts(6), state), value)
    with pytest.raises(ValueError, match="critic 'privileged' got neither"):
        policy.value(random_contexts(6))


def test_a_privileged_critic_learns_and_nothing_else_does_from_its_loss() -> None:
    policy = privileged_policy()
    batch = flatten(privileged_round(policy), normalise=True)
    recipe = Recipe(PPOSection(), OBJECTIVES["ppo"], LAW)
    ready = prepare(policy, replace(batch, advantage=torch.zeros(48)), recipe, (0, 0))
    minibatch_loss(policy, ready, np.arange(48), recipe)[0].backward()
    moved = {name.split(".")[0] for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"privileged_critic"} and batch.privileged is not None and batch.privileged.shape == (48, 5)

    def error() -> float:
        with torch.no_grad():
            return (policy.value(None, batch.privileged) - batch.returns).pow(2).mean().item()

    before, losses = error(), []
    for version in range(4):
        watch = Watch(policy, PPOSection(epochs=4, minibatch=16), lr=3e-3, version=version)
        losses.append(watch.run(privileged_round(policy)).diagnostics["value_loss"])
    assert error() < 0.2 * before and losses == sorted(losses, reverse=True)


def test_without_a_critic_there_is_no_value_loss() -> None:
    policy, data = blind_policy(), a_round(blind_policy())
    with_head = Watch(policy, GRPOSection(epochs=1, minibatch=8)).run(data).diagnostics
    policy.critic = "none"
    without = Watch(policy, GRPOSection(epochs=1, minibatch=8)).run(data).diagnostics
    assert with_head.keys() - without.keys() == {"value_loss"}
    assert without["policy_loss"] == with_head["policy_loss"]
    recipe = Recipe(GRPOSection(), OBJECTIVES["grpo"], LAW)
    ready = prepare(policy, flatten(data, normalise=False), recipe, (0, 0))
    loss, diagnostics = minibatch_loss(policy, ready, np.arange(24), recipe)
    assert loss.item() == diagnostics["policy_loss"].item()
    loss.backward()
    assert policy.value_head.weight.grad is None
    with pytest.raises(ValueError, match="critic 'none' got neither"):
        policy.value(random_contexts(2))


# ---- the ODE


@named(*PAIRED)
def test_objectives_on_pairs_learn_from_the_ode(section: type[ObjectiveSection]) -> None:
    watch = Watch(blind_policy(), section(epochs=1, minibatch=8), lr=1e-3, law=ODE())
    before = torch.cat([p.detach().flatten() for p in watch.policy.decoder.parameters()])
    watch.run(a_round(watch.policy, law=ODE()))
    after = torch.cat([p.detach().flatten() for p in watch.policy.decoder.parameters()])
    assert after.isfinite().all() and (after - before).abs().max() > 1e-4
