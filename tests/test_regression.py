"""No objective changes its numbers: losses and gradients on twelve stored decisions, to five digits.

The decisions were sampled by the shipped policy under `FlowSDE(4, 1.0)`. Policy and decisions are in float64: in
float32 the ratios of FPO++ turn what processors round differently into 7e-5 of the gradient.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from learners.batch import Batch
from learners.objectives import OBJECTIVES
from learners.update import Recipe, minibatch_loss, prepare
from learners.values import return_scale
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
from rl_finetune.config.schema import CriticSection, LoraSection
from rl_finetune.policy import FlowSDE, QwenVLAPolicy, TorchContext
from rl_finetune.policy.adapters import add_adapters

ROOT = Path(__file__).resolve().parent.parent
PPO = {
    "loss": 0.43432142, "policy_loss": 0.25616971, "value_loss": 0.17815171, "clip_fraction": 1 / 12,
    "kl": 0.0057891814, "ratio_error": 0.27473978, "effective_samples": 0.98830393, "lora": 4.0106654,
    "value_head": 1.9014566, "lora_A": 0.79234771, "lora_B": 3.9316182,
}  # fmt: skip
OTHERS: list[tuple[ObjectiveSection, float, float]] = [
    (DecoupledPPOSection(), 0.26225167, 3.8552426),
    (GRPOSection(), 0.25616971, 4.0106654),
    (RLOOSection(), 0.25616971, 4.0106654),
    (DiffusionNFTSection(), 0.71412746, 0.088663664),
    (DiffusionNFTSection(adaptive_weight=False), 0.38247918, 0.047031267),
    (StepNFTSection(), 1.1044973, 0.13969409),
    (FPOSection(), 0.2628932, 0.22237298),
    (FPOPlusSection(), 0.26331615, 0.22790118),
    (RECAPSection(), 2.6965933, 0.48152114),
]
"""Settings, the objective's loss, norm of the adapters' gradient; the update began with other weights than it has come
to, so that a comparison with them says something."""
SAME = 1e-5
"""Relative. Times and log-densities are float32 whatever the policy is, so a ratio is known to about 1e-6."""


def policy_of(seed: int) -> QwenVLAPolicy:
    """The shipped policy in float64, moved a little: differently with every seed."""
    policy = QwenVLAPolicy.from_pretrained(ROOT / "checkpoints" / "qwen-vla-tiny", with_backbone=False)
    policy = add_adapters(policy, LoraSection(), seed=0)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(policy.named_parameters()):
            if "lora_B" in name or name.startswith("value_head"):
                parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.01)
    return policy.double()


def stored_batch() -> Batch:
    """Advice turns the contexts by one and by two rows."""
    stored = load_file(ROOT / "tests" / "data" / "stored_batch.safetensors")
    data = {name: x.double() if x.is_floating_point() else x for name, x in stored.items()}
    contexts = TorchContext(data["hidden"], data["context_mask"], data["positions"])
    rows = torch.arange(12)
    return Batch(
        embodiment="widowx", inputs=contexts, advised=(contexts.rows(rows.roll(1)), contexts.rows(rows.roll(2))),
        states=torch.stack((data["x"], data["x_next"]), 1), step=data["step"], sample=data["x"], mask=data["mask"],
        old_log_prob=data["old_log_prob"], advantage=data["advantage"], success=torch.zeros(12, dtype=torch.bool),
        old_value=data["old_value"], returns=data["returns"], privileged=None,
    )  # fmt: skip


def measured(policy: QwenVLAPolicy, started: QwenVLAPolicy, objective: ObjectiveSection) -> dict[str, float]:
    """Loss, diagnostics and gradient norms where an update that began with `started` has come to `policy`."""
    scale = return_scale(stored_batch().old_value, stored_batch().returns)  # the numbers are of a clip of 0.2 as it is
    critic = CriticSection(clip=0.2 / scale, huber=10.0 / scale)
    recipe = Recipe(objective, OBJECTIVES[objective.name], FlowSDE(4, 1.0, None), critic)
    ready = prepare(started, stored_batch(), recipe, (3, 5))
    policy.zero_grad()
    loss, diagnostics = minibatch_loss(policy, ready, np.arange(12), recipe)
    loss.backward()
    found = {name: value.item() for name, value in {"loss": loss, **diagnostics}.items()}
    return found | {part: norm(policy, part) for part in ("lora", "lora_A", "lora_B", "value_head")}


def norm(policy: QwenVLAPolicy, part: str) -> float:
    parts: list[Tensor] = [p.grad for name, p in policy.named_parameters() if part in name and p.grad is not None]
    return float(torch.cat([g.flatten() for g in parts]).norm()) if parts else 0.0


@pytest.fixture(scope="module")
def policy() -> QwenVLAPolicy:
    torch.set_num_threads(1)
    return policy_of(1)


def test_ppo_gives_the_numbers_it_always_gave(policy: QwenVLAPolicy) -> None:
    found = measured(policy, policy, PPOSection())
    assert {name: found[name] for name in PPO} == pytest.approx(PPO, rel=SAME)
    assert found["lora"] == pytest.approx(np.hypot(found["lora_A"], found["lora_B"]), rel=SAME)


@pytest.mark.parametrize(("objective", "loss", "gradient"), OTHERS, ids=[case[0].name for case in OTHERS])
def test_every_other_objective_keeps_its_numbers(
    policy: QwenVLAPolicy, objective: ObjectiveSection, loss: float, gradient: float
) -> None:
    found = measured(policy, policy_of(2), objective)
    assert (found["policy_loss"], found["lora"]) == pytest.approx((loss, gradient), rel=SAME)


def test_every_objective_is_pinned() -> None:
    assert {case[0].name for case in OTHERS} | {"ppo"} == set(OBJECTIVES)
