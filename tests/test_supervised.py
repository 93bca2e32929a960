"""Supervised stages: labels by hand, what each stage trains, and that its loss goes down."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import random_contexts, tiny_policy
from torch.nn import functional as F

import envs
from actors.demonstrations import Demonstrations, collect
from envs.expert import expert_chunk
from learners.grounding import METRES, GroundingHead, GroundingLabels, last_token
from learners.supervised import StepLog, SupervisedData, encode_all, flow_loss, run_stage, sample_times
from rl_finetune.config.schema import StageSection
from rl_finetune.policy import QwenVLAPolicy
from rl_finetune.policy.config import WIDOWX
from rl_finetune.policy.flow import flow_matching_loss
from rl_finetune.types import Grounding, Observation

SPEC = envs.spec("widowx_reach")


@pytest.fixture(scope="module")
def demonstrations() -> Demonstrations:
    with envs.make("widowx_reach", 16) as env:
        return collect(env, 40, seed=5, noise=0.02)


@pytest.fixture(scope="module")
def policy() -> QwenVLAPolicy:
    return tiny_policy(awake=False)


@pytest.fixture(scope="module")
def data(demonstrations: Demonstrations, policy: QwenVLAPolicy) -> SupervisedData:
    return SupervisedData.of(demonstrations.observation, demonstrations.actions, policy, SPEC.privileged)


def test_labels_are_the_experts_own_whatever_was_executed(demonstrations: Demonstrations) -> None:
    assert len(demonstrations) == len(demonstrations.observation) == 40
    with envs.make("widowx_reach", 1) as env:
        own = expert_chunk(env, demonstrations.observation).actions
    np.testing.assert_array_equal(demonstrations.actions, own)


def test_disturbances_change_what_is_seen_next() -> None:
    with envs.make("widowx_reach", 8) as env:
        calm, disturbed = (collect(env, 16, seed=5, noise=noise) for noise in (0.0, 0.02))
    assert np.array_equal(calm.actions[:8], disturbed.actions[:8])
    assert not np.array_equal(calm.observation.privileged[8:], disturbed.observation.privileged[8:])  # type: ignore[index]


# ---- grounding


def labels_of(points: list[list[float]], present: list[bool], target: int) -> GroundingLabels:
    """One sample with P things; the tool is at (0.1, 0.2, 0.3) and the target 5 cm further along x."""
    state = np.zeros((1, len(SPEC.privileged)), np.float32)
    for name, value in zip(("tool_x", "tool_y", "tool_z"), (0.1, 0.2, 0.3), strict=True):
        state[0, SPEC.privileged.index(name)] = value
        state[0, SPEC.privileged.index(name.replace("tool", "target"))] = value + 0.05 * (name == "tool_x")
    grounding = Grounding(
        tuple("abcd"[: len(points)]), np.array([points], np.float32), np.array([present]), np.array([target])
    )
    return GroundingLabels.of(Observation({}, ("",), "widowx", privileged=state, grounding=grounding), SPEC.privileged)


def test_labels_by_hand() -> None:
    labels = labels_of([[0.25, 0.75], [1.2, 0.5], [0.5, 0.5]], [True, True, False], target=0)
    assert labels.present.tolist() == [[True, False, False]]  # the second lies outside, the third is not there
    np.testing.assert_allclose(labels.named[0], [-0.5, 0.5, 0.05 / METRES, 0, 0], atol=1e-6)
    assert labels.rows(torch.tensor([0, 0])).points.shape == (2, 3, 2)
    with pytest.raises(ValueError, match="expected a world that gives them"):
        GroundingLabels.of(Observation({}, ("",), "widowx"), SPEC.privileged)


def test_dense_loss_by_hand() -> None:
    """2 x 2 tokens whose features are the read-outs; the thing lies in the upper right token, off its middle."""
    labels = labels_of([[0.875, 0.125], [0.2, 0.2]], [True, False], target=0)
    head = GroundingHead(width=6, things=2)
    with torch.no_grad():
        head.dense.weight.copy_(torch.eye(6))
        head.dense.bias.zero_()
    visual = torch.zeros(1, 4, 6)
    # In token sides the point is (1.75, 0.25), so the offset from the token's middle is (0.25, -0.25).
    assert head.dense_loss(visual, labels).item() == pytest.approx(np.log(4) + 0.5)
    visual[0, 1, 0], visual[0, 1, 1:3] = 50, torch.tensor([0.25, -0.25])
    assert head.dense_loss(visual, labels).item() == pytest.approx(0, abs=1e-6)
    visual[0, :, 3:] = 9  # what is read for a thing that is absent does not matter
    assert head.dense_loss(visual, labels).item() == pytest.approx(0, abs=1e-6)


def test_a_world_that_tells_no_displacement_is_asked_for_none() -> None:
    """Only the named thing's place in the picture is read then: of -0.5 and 0.5, where the head says 0, 0."""
    grounding = Grounding(("a",), np.array([[[0.25, 0.75]]], np.float32), np.array([[True]]), np.array([0]))
    labels = GroundingLabels.of(Observation({}, ("",), "dot", grounding=grounding), ())
    assert labels.named[0, :2].tolist() == [-0.5, 0.5] and labels.named[0, 2:].isnan().all()
    head, last = GroundingHead(width=4, things=1), torch.ones(1, 4)
    for layer in (head.everything, head.named):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    loss = head.named_loss(last, labels)
    assert loss.item() == pytest.approx(0.5 + 0.5)
    loss.backward()
    assert head.named.bias.grad is not None
    assert head.named.bias.grad.tolist() == [0.5, -0.5, 0, 0, 0]


def test_the_last_token_is_the_last_real_one() -> None:
    context = random_contexts(3)
    last = last_token(context.hidden, context.mask)
    for row in range(3):
        assert torch.equal(last[row], context.hidden[row, int(context.mask[row].sum()) - 1])


# ---- flow matching


@pytest.mark.parametrize(
    ("distribution", "quantiles"),
    [
        ("uniform", [0.25, 0.5, 0.75]),
        ("beta", [1 - 0.75 ** (1 / 3), 1 - 0.5 ** (1 / 3), 1 - 0.25 ** (1 / 3)]),  # P(tau < t) = 1 - (1 - t)^3
        ("logit_normal", [1 / (1 + np.exp(0.6745)), 0.5, 1 / (1 + np.exp(-0.6745))]),
    ],
)
def test_noise_levels_have_their_distribution(distribution: str, quantiles: list[float]) -> None:
    times = sample_times(40_000, distribution, torch.Generator().manual_seed(0))
    assert ((times > 0) & (times < 1)).all()
    np.testing.assert_allclose(np.quantile(times, [0.25, 0.5, 0.75]), quantiles, atol=0.01)


def test_flow_loss_counts_the_bodys_channels_only(policy: QwenVLAPolicy) -> None:
    context, actions = random_contexts(6), torch.randn(6, 8, 16, generator=torch.Generator().manual_seed(2))
    seeded = [flow_loss(policy, context, a, WIDOWX, "beta", torch.Generator().manual_seed(1)) for a in (actions,) * 2]
    assert torch.equal(*seeded)
    eps = torch.randn(actions.shape, generator=torch.Generator().manual_seed(1))
    blind = tiny_policy(awake=False)
    torch.nn.init.zeros_(blind.decoder.action_out[2].weight)
    torch.nn.init.zeros_(blind.decoder.action_out[2].bias)
    loss = flow_loss(blind, context, actions, WIDOWX, "beta", torch.Generator().manual_seed(1))
    assert loss.item() == pytest.approx(F.mse_loss(eps[..., :7], actions[..., :7]).item(), rel=1e-5)
    mask = (torch.arange(16) < 7).expand(6, 8, 16)
    assert loss.item() == pytest.approx(flow_matching_loss(torch.zeros(6, 8, 16), actions, eps, mask).item())


def test_contexts_encoded_in_batches_are_the_same(policy: QwenVLAPolicy, demonstrations: Demonstrations) -> None:
    encoded = encode_all(policy, demonstrations.observation, limit=5)
    with torch.no_grad():
        plain = policy.encode(demonstrations.observation.rows(np.arange(5)))
    torch.testing.assert_close(encoded.hidden, plain.hidden, rtol=0, atol=1e-5)
    assert torch.equal(encoded.mask, plain.mask) and torch.equal(encoded.positions, plain.positions)


@pytest.mark.parametrize(
    ("train", "parts"),
    [
        ("vision", {"backbone.model.model.visual"}),
        ("backbone", {"backbone.model.model.visual", "backbone.model.model.language_model"}),
        ("decoder", {"decoder"}),
        ("all", {"backbone.model.model.visual", "backbone.model.model.language_model", "decoder"}),
    ],
)
def test_a_stage_trains_its_part_and_learns(data: SupervisedData, train: str, parts: set[str]) -> None:
    policy, head, lines = tiny_policy(awake=False), GroundingHead(128, 5), []
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    stage = StageSection(name="s", train=train, steps=12, batch=8, lr=2e-3, time_distribution="uniform")  # type: ignore[arg-type]
    run_stage(
        stage, policy, head, [data], seed=0, grounding_weight=0.1, weight_decay=0.0, log=lines.append, log_every=4
    )
    moved = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    known = ("backbone.model.model.visual", "backbone.model.model.language_model", "decoder", "value_head")
    assert {next(k for k in known if name.startswith(k)) for name in moved} == parts
    assert [line.step for line in lines] == [4, 8, 12] and all(isinstance(line, StepLog) for line in lines)
    assert lines[-1].loss < lines[0].loss and lines[-1].left == 0
    assert lines[-1].lr == pytest.approx(0.05 * 2e-3)
    assert np.isnan(lines[0].pixel_error) == (train in {"vision", "decoder"})


@pytest.mark.parametrize("train", ["decoder", "all", "vision", "backbone"])
def test_without_labels_only_actions_teach(data: SupervisedData, train: str) -> None:
    policy, head, lines = tiny_policy(awake=False), GroundingHead(128, 1), []
    bare = replace(data, labels=None)
    eyes = policy.eyes.model.model.visual.patch_embed.proj.weight
    before = eyes.detach().clone()
    stage = StageSection(name="s", train=train, steps=8, batch=8, lr=2e-3, time_distribution="uniform")  # type: ignore[arg-type]

    def run() -> None:
        run_stage(
            stage, policy, head, [bare], seed=0, grounding_weight=0.1, weight_decay=0.0, log=lines.append, log_every=4
        )

    if train in ("vision", "backbone"):
        with pytest.raises(ValueError, match="learns from grounding labels"):
            run()
        return
    run()
    assert lines[-1].loss < lines[0].loss and all(np.isnan(line.pixel_error) for line in lines)
    assert torch.equal(eyes, before) == (train == "decoder")
