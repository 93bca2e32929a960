"""Real tiny policies, contexts and trajectories for tests."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import envs
from learners.batch import Batch
from rl_finetune.config.schema import PolicySection
from rl_finetune.policy import FlowSDE, QwenVLAConfig, QwenVLAPolicy, TorchContext
from rl_finetune.policy.adapter_files import Origin, origin_of
from rl_finetune.policy.backbone import tiny_tokenizer
from rl_finetune.policy.config import WIDOWX
from rl_finetune.policy.identity import Base
from rl_finetune.policy.laws import Law
from rl_finetune.policy.noise_net import NoiseNet
from rl_finetune.policy.normalisation import Quantiles
from rl_finetune.policy.prompt import body_sentence
from rl_finetune.spec import EmbodimentSpec
from rl_finetune.types import Context, Observation, SeedKeys, Trajectory

torch.set_num_threads(1)

HORIZON, WIDTH, CHANNELS = WIDOWX.action.horizon, 16, WIDOWX.action.channels
QUANTILES = {"widowx": Quantiles((-0.1, -0.1, -0.1, -0.2, -0.2, -0.2, -1.0), (0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 1.0))}

NOWHERE = Origin(Base("a policy in memory", "1" * 64, "2" * 64))
"""Of adapters whose base policy no test has on disk."""


@cache
def tokenizer() -> Any:
    """Learned from the tasks of `widowx_reach`, as `rl-finetune sft` does."""
    spec = envs.spec("widowx_reach")
    corpus = [body_sentence(spec.embodiment, task) for task in spec.tasks]
    return tiny_tokenizer(corpus, spec.embodiment.views, QwenVLAConfig.tiny().backbone["text_config"]["vocab_size"])


def tiny_policy(seed: int = 0, *, awake: bool = True, **changes: Any) -> QwenVLAPolicy:
    """Freshly initialised. A decoder begins with all gates shut: `awake` opens them, so that everything has a say."""
    torch.manual_seed(seed)
    policy = QwenVLAPolicy.build(replace(QwenVLAConfig.tiny(), **changes), tokenizer(), QUANTILES).eval()
    return wake(policy) if awake else policy


def origin(folder: Path) -> Origin:
    """Of adapters that are trained on the policy in that folder."""
    return origin_of(PolicySection(path=str(folder)))


def blind_policy(seed: int = 0, *, context_attention: str = "joint") -> QwenVLAPolicy:
    """Decoder and value head alone, for cached contexts."""
    torch.manual_seed(seed)
    tiny = QwenVLAConfig.tiny()
    config = replace(tiny, decoder=replace(tiny.decoder, context_attention=context_attention))  # type: ignore[arg-type]
    return wake(QwenVLAPolicy(config, None, QUANTILES).eval())


def wake(policy: QwenVLAPolicy) -> QwenVLAPolicy:
    """Random numbers in place of the zeros of a fresh initialisation."""
    zeros = [block.adaln.weight for block in policy.decoder.blocks]
    zeros += [policy.decoder.out_adaln.weight, policy.decoder.out_adaln.bias, policy.value_head.weight]
    for parameter in zeros:
        nn.init.normal_(parameter, std=0.1)
    return policy


def noisy_policy(seed: int = 0) -> QwenVLAPolicy:
    """A blind policy with a noise net that is no longer the same everywhere."""
    policy = blind_policy(seed)
    decoder = policy.config.decoder
    policy.noise_net = NoiseNet(decoder.context_width, decoder.action_width, 0.08, 0.16)
    nn.init.normal_(policy.noise_net.out.weight, std=0.5)
    nn.init.normal_(policy.noise_net.out.bias, std=0.5)
    return policy


def random_contexts(num: int, seed: int = 0, tokens: int = 12) -> TorchContext:
    """Contexts of between `tokens` - 4 and `tokens` real tokens, as the backbone would leave them."""
    rng = torch.Generator().manual_seed(seed)
    mask = torch.arange(tokens) < torch.randint(tokens - 4, tokens + 1, (num, 1), generator=rng)
    hidden = torch.randn(num, tokens, 128, generator=rng) * mask[..., None]
    return TorchContext(hidden, mask, torch.arange(tokens).expand(3, num, -1).contiguous())


def episode_keys(num: int, *, seed: int = 0, episode: int = 0, first: int = 0) -> SeedKeys:
    """Environments `first`... of one episode number."""
    return SeedKeys(seed, np.arange(first, first + num, dtype=np.int64), np.full(num, episode, np.int64))


def observations(num: int, seed: int = 0, size: int = 64) -> Observation:
    """Random pictures and real instructions."""
    rng = np.random.default_rng(seed)
    tasks = envs.spec("widowx_reach").tasks
    return Observation(
        images={"ego": rng.integers(0, 256, (num, size, size, 3), dtype=np.uint8)},
        instruction=tuple(tasks[i] for i in rng.integers(len(tasks), size=num)),
        embodiment="widowx",
    )


def trajectory(
    policy: QwenVLAPolicy,
    inputs: TorchContext | Observation,
    *,
    chunks: int = 1,
    law: Law | None = None,
    seed: int = 0,
    whole: bool = False,
    body: EmbodimentSpec = WIDOWX,
    **changes: Any,
) -> Trajectory:
    """What the exploring policy does on `inputs` [chunks * N] in that body.

    Rewards, values and, unless chunks are executed `whole`, lengths are random; `changes` replace any field.
    """
    rows = len(inputs.mask) if isinstance(inputs, TorchContext) else len(inputs)
    n, rng, horizon = rows // chunks, np.random.default_rng(seed), body.action.horizon
    context = inputs if isinstance(inputs, TorchContext) else policy.encode(inputs)
    everyone = episode_keys(rows, seed=seed)
    chunk, moved = policy.sample(context, everyone, np.zeros(rows, np.int64), body, law or FlowSDE())
    executed = np.full((chunks, n), horizon) if whole else rng.integers(1, horizon + 1, (chunks, n))
    mask = chunk.mask.reshape(chunks, n, horizon, WIDTH) & (np.arange(horizon) < executed[..., None])[..., None]
    fields = dict(
        inputs=_stored(inputs),
        states=moved.states.numpy().reshape(chunks, n, -1, horizon, WIDTH),
        step=moved.step.numpy().reshape(chunks, n),
        log_prob=moved.log_prob.numpy().reshape(chunks, n, horizon),
        sample=moved.sample.numpy().reshape(mask.shape),
        action_mask=mask,
        reward=rng.normal(size=(chunks, n, horizon)).astype(np.float32),
        steps_executed=executed,
        terminated=np.zeros((chunks, n), bool),
        truncated=np.zeros((chunks, n), bool),
        success=np.zeros((chunks, n), bool),
        failed=np.zeros((chunks, n), bool),
        value=rng.normal(size=(chunks, n)).astype(np.float32),
        next_value=rng.normal(size=(chunks, n)).astype(np.float32),
        privileged=None,
        advised=None,
        executed_std=0.0,
        contribution=np.zeros(4, np.float32),
        policy_version=0,
        keys=everyone.rows(slice(0, n)),
        embodiment=body.tag,
        world="widowx_reach",
        rate=1.0,
        failures=(),
    )
    return Trajectory(**(fields | changes))  # type: ignore[arg-type]


def decisions(states: Tensor, step: Tensor, mask: Tensor, **changes: Any) -> Batch:
    """A batch of given transitions [M, J + 1, H, K] and otherwise of zeros; `changes` replace any field."""
    m, nothing = len(states), torch.zeros(len(states))
    fields = dict(
        embodiment=WIDOWX.tag, inputs=random_contexts(m), advised=None, states=states, step=step, sample=states[:, -1],
        mask=mask, old_log_prob=nothing, advantage=nothing, success=torch.zeros(m, dtype=torch.bool), old_value=nothing,
        returns=nothing, privileged=None,
    )  # fmt: skip
    return Batch(**(fields | changes))  # type: ignore[arg-type]


def _stored(inputs: TorchContext | Observation) -> Context | Observation:
    return inputs.numpy() if isinstance(inputs, TorchContext) else inputs
