"""Qwen-VLA: backbone, action decoder, value head and normalisation under one roof.

Folder layout of `save_pretrained`:

    config.json            architecture and embodiments
    model.safetensors      decoder and value head
    normalisation.json     action quantiles of each embodiment
    backbone/              config, safetensors and tokenizer, loadable by transformers alone
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rl_finetune.errors import UserError
from rl_finetune.instructions import instruction
from rl_finetune.policy import normalisation
from rl_finetune.policy.config import QwenVLAConfig
from rl_finetune.policy.critics import PrivilegedCritic
from rl_finetune.policy.decoder import ActionDecoder, Prepared
from rl_finetune.policy.hub import local_folder
from rl_finetune.policy.laws import ODE, FlowSDE, Law
from rl_finetune.policy.noise_net import NoiseNet
from rl_finetune.policy.normalisation import Quantiles, channel_mask
from rl_finetune.policy.sampler import Noise, Spread, Transition, Velocity, draw_noise, sample, sample_ode, score
from rl_finetune.spec import EmbodimentSpec, EnvSpec
from rl_finetune.types import ActionChunk, Context, IntArray, Observation, SeedKeys

if TYPE_CHECKING:
    from rl_finetune.policy.backbone import Backbone

Critic = Literal["linear", "privileged", "none"]
"""What tells the value of a state: the linear head on the mean backbone state, a net on the simulator's, or nothing."""
WEIGHTS_FILE = "model.safetensors"
BACKBONE_FOLDER = "backbone"


@dataclass(frozen=True, slots=True)
class TorchContext:
    """Torch side of `Context`: hidden [N, L, D], mask [N, L], positions [3, N, L]."""

    hidden: Tensor
    mask: Tensor
    positions: Tensor

    @classmethod
    def from_numpy(cls, context: Context) -> TorchContext:
        """Share memory with the arrays."""
        return cls(*(torch.from_numpy(a) for a in (context.hidden, context.mask, context.positions)))

    def numpy(self) -> Context:
        """Arrays on the CPU, float32 hidden states."""
        return Context(self.hidden.float().cpu().numpy(), self.mask.cpu().numpy(), self.positions.cpu().numpy())

    def to(self, device: torch.device) -> TorchContext:
        """On another device."""
        return TorchContext(self.hidden.to(device), self.mask.to(device), self.positions.to(device))

    def rows(self, index: Tensor) -> TorchContext:
        """Some of the samples."""
        return TorchContext(self.hidden[index], self.mask[index], self.positions[:, index])

    @property
    def pooled(self) -> Tensor:
        """[N, D] mean over real tokens."""
        weight = self.mask[..., None].to(self.hidden.dtype)
        return (self.hidden * weight).sum(1) / weight.sum(1)


@dataclass(frozen=True, slots=True)
class Advised:
    """Contexts of one observation without advice and with the words for a good and for a bad chunk in the prompt."""

    plain: TorchContext
    good: TorchContext
    bad: TorchContext

    def rows(self, index: Tensor) -> Advised:
        """Some of the samples."""
        return Advised(self.plain.rows(index), self.good.rows(index), self.bad.rows(index))


Seen = TorchContext | Advised
"""What a policy acts on: advised where it is guided."""


def plain(seen: Seen) -> TorchContext:
    """The context without advice."""
    return seen.plain if isinstance(seen, Advised) else seen


class QwenVLAPolicy(nn.Module):
    """A vision-language-action policy for every embodiment in its config.

    `backbone` is None in a learner that is fed cached contexts: with a frozen backbone it needs no 9 GB of it.
    """

    backbone: Backbone | None

    def __init__(self, config: QwenVLAConfig, backbone: Backbone | None, quantiles: dict[str, Quantiles]) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.decoder = ActionDecoder(config.decoder)
        self.value_head = nn.Linear(config.decoder.context_width, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.quantiles = quantiles
        self.critic: Critic = "linear"
        self.privileged_critic: PrivilegedCritic | None = None
        self.noise_net: NoiseNet | None = None
        self.guidance: float | None = None

    @classmethod
    def build(cls, config: QwenVLAConfig, tokenizer: Any, quantiles: dict[str, Quantiles]) -> QwenVLAPolicy:
        """Freshly initialised weights; the caller seeds torch."""
        from rl_finetune.policy.backbone import build_backbone

        dtype = getattr(torch, config.dtype)
        backbone = build_backbone(config.backbone, tokenizer, config.max_context_tokens, dtype, config.context_tokens)
        return cls(config, backbone, quantiles)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, backbone: str | None = None, *, with_backbone: bool = True
    ) -> QwenVLAPolicy:
        """Load a policy from a local folder or a hub id.

        Args:
            path: folder written by `save_pretrained`, or hub id of such a folder.
            backbone: another folder or hub id for the backbone.
            with_backbone: False leaves the backbone (and transformers) out.

        Raises:
            UserError: missing, truncated or of another shape; nothing is half-loaded.
        """
        folder = local_folder(path)
        config = QwenVLAConfig.load(folder)
        quantiles = normalisation.load(folder)
        loaded = _load_backbone(config, backbone or str(folder / BACKBONE_FOLDER)) if with_backbone else None
        model = cls(config, loaded, quantiles)
        model._load_heads(folder / WEIGHTS_FILE)
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the layout described in the module's header into `folder` (made if missing)."""
        from rl_finetune.policy.backbone import save_backbone

        if self.backbone is None:
            raise ValueError("a policy without its backbone cannot be saved whole; save its adapters")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save(folder)
        normalisation.save(folder, self.quantiles)
        save_file({k: v.contiguous() for k, v in self.head_state()}, folder / WEIGHTS_FILE)
        save_backbone(self.backbone, folder / BACKBONE_FOLDER)

    @property
    def eyes(self) -> Backbone:
        """The backbone.

        Raises:
            ValueError: the policy was loaded without it.
        """
        if self.backbone is None:
            raise ValueError("this policy was loaded without its backbone; it can only use cached contexts")
        return self.backbone

    def body(self, tag: str) -> EmbodimentSpec:
        """The embodiment of that tag.

        Raises:
            UserError: the policy was not trained for it.
        """
        known = {body.tag: body for body in self.config.embodiments}
        if tag not in known:
            raise UserError(
                "embodiment that the policy was not trained for",
                got=repr(tag),
                expected=f"one of {sorted(known)}",
                do="choose another environment, or fine-tune the policy on this body first",
            )
        return known[tag]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.value_head.weight.device

    def encode(self, observation: Observation, prompt_as: str | None = None) -> TorchContext:
        """Run the backbone: the costly part, reusable while the backbone is frozen.

        Args:
            observation: N robots of one embodiment.
            prompt_as: another robot tag for the prompt's sentence (tag, arms, rate, chunk size); views stay the body's.
        """
        body = self.body(observation.embodiment)
        told = body if prompt_as is None else replace(self.body(prompt_as), views=body.views)
        inputs = self.eyes.tokenise(observation, told)
        return TorchContext(self.eyes(inputs).float(), inputs.mask, inputs.positions)

    def make_room(self, tokens: int) -> None:
        """Let prompts be that many tokens longer than the config says; a policy without its backbone has none."""
        if self.backbone is not None:
            self.backbone.spare = max(self.backbone.spare, tokens)

    def make_room_in(self, tag: str, tokens: int) -> None:
        """Let that body's prompts be at least that many tokens long."""
        if self.backbone is not None:
            lengths = self.backbone.lengths
            lengths[tag] = max(lengths.get(tag, self.backbone.max_tokens), tokens)

    def make_room_for(self, spec: EnvSpec) -> None:
        """Let the prompts of that environment be as long as its longest task: reworded ones may be longer than any that
        was trained on."""
        if self.backbone is not None:
            self.backbone.fit(self.body(spec.embodiment.tag), spec.tasks, spec.image_size)

    def look(self, observation: Observation, prompt_as: str | None = None) -> Seen:
        """`encode` as this policy acts: with advice in the prompt too where it is guided."""
        seen = self.encode(observation, prompt_as)
        if self.guidance is None:
            return seen
        return Advised(seen, *(self.encode(advise(observation, word), prompt_as) for word in ADVICE))

    def prepare(self, context: TorchContext, horizon: int) -> Prepared:
        """Decoder-side preparation, once per chunk."""
        return self.decoder.prepare(context.hidden, context.mask, context.positions, horizon)

    def velocity(self, context: TorchContext, x: Tensor, tau: Tensor) -> Tensor:
        """Flow velocity [N, H, K] at chain state `x` and noise level `tau` [N]."""
        return self.decoder(self.prepare(context, x.shape[1]), x, tau)

    def value(self, context: TorchContext | None, privileged: Tensor | None = None) -> Tensor:
        """State value [N] by the present critic; no gradient into the backbone.

        Args:
            context: N encoded observations; a privileged critic needs none.
            privileged: [N, S] simulator state, for a privileged critic.

        Raises:
            ValueError: the critic was not given what it judges, or there is none.
        """
        if self.critic == "linear" and context is not None:
            return self.value_head(context.pooled.detach())[:, 0]
        if self.privileged_critic is not None and privileged is not None:
            return self.privileged_critic(privileged)
        raise ValueError(f"critic {self.critic!r} got neither the context nor the state that it judges")

    @torch.no_grad()
    def sample(
        self, seen: Seen, keys: SeedKeys, chunk: IntArray, body: EmbodimentSpec, law: Law
    ) -> tuple[ActionChunk, Transition]:
        """Explore: one chunk a sample, in the environment's units, and the transitions to score.

        Args:
            seen: N observations as `look` gives them.
            keys: episodes they belong to.
            chunk: [N] number of the chunk within its episode.
            body: embodiment of all N.
            law: sampling law.
        """
        noise = draw_noise(keys, chunk, body.action.horizon, self.config.decoder.action_width, law)
        return self.play(seen, noise, body, law)

    @torch.no_grad()
    def play(self, seen: Seen, noise: Noise, body: EmbodimentSpec, law: Law) -> tuple[ActionChunk, Transition]:
        """`sample` from given noise."""
        noise = noise.to(self.device)
        _, horizon, width = noise.start.shape
        mask = channel_mask(len(noise.start), horizon, body.action.channels, width)
        valid = torch.from_numpy(mask).to(self.device)
        moved = sample(self.field(seen, horizon), noise, law, valid, self.spread(plain(seen)))
        return self._chunk(moved.sample, mask, body), moved

    def field(self, seen: Seen, horizon: int) -> Velocity:
        """The velocity that is integrated; guided, v_0 + beta (v_good - v_0) (flow_rl, advantage-conditioned)."""
        prepared = self.prepare(plain(seen), horizon)
        if not isinstance(seen, Advised) or self.guidance is None:
            return lambda x, tau: self.decoder(prepared, x, tau)
        good, scale = self.prepare(seen.good, horizon), self.guidance

        def guided(x: Tensor, tau: Tensor) -> Tensor:
            v = self.decoder(prepared, x, tau)
            return v + scale * (self.decoder(good, x, tau) - v)

        return guided

    def spread(self, context: TorchContext) -> Spread | None:
        """Standard deviations of Flow-Noise, where the policy has a noise net."""
        if self.noise_net is None:
            return None
        net, pooled = self.noise_net, context.pooled.detach()
        return lambda x, tau: net(pooled, x, tau)

    @torch.no_grad()
    def act(
        self,
        seen: Seen,
        keys: SeedKeys,
        chunk: IntArray,
        body: EmbodimentSpec,
        temperature: float,
        num_steps: int | None = None,
    ) -> ActionChunk:
        """Evaluate: the ODE from initial noise scaled by `temperature`; `num_steps` is the policy's own by default."""
        horizon, width = body.action.horizon, self.config.decoder.action_width
        law = ODE(num_steps or self.config.num_steps)
        noise = draw_noise(keys, chunk, horizon, width, law).to(self.device)
        x = sample_ode(self.field(seen, horizon), noise.start * temperature, law.num_steps)
        return self._chunk(x, channel_mask(len(keys), horizon, body.action.channels, width), body)

    def log_prob(self, context: TorchContext, states: Tensor, step: Tensor, law: FlowSDE, mask: Tensor) -> Tensor:
        """Log-density [N, H] of stored Flow-SDE transitions under the present weights."""
        return score(self.field(context, states.shape[2]), states, step, law, mask)

    def _chunk(self, x: Tensor, mask: np.ndarray, body: EmbodimentSpec) -> ActionChunk:
        actions = self.quantiles[body.tag].denormalise(x.cpu().numpy())
        return ActionChunk(actions * mask, mask)

    def head_state(self) -> Iterator[tuple[str, Tensor]]:
        for name, module in (("decoder", self.decoder), ("value_head", self.value_head)):
            for key, tensor in module.state_dict().items():
                yield f"{name}.{key}", tensor

    def _load_heads(self, path: Path) -> None:
        advice = "copy the checkpoint again from its source"
        try:
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(
                "policy weights cannot be read", got=f"{path}: {error}", expected="safetensors", do=advice
            ) from error
        want = dict(self.head_state())
        for key in sorted(want.keys() | state.keys()):
            have_shape = tuple(state[key].shape) if key in state else "nothing"
            want_shape = tuple(want[key].shape) if key in want else "no such weight"
            if have_shape != want_shape:
                raise UserError(
                    f"policy weights do not fit config.json at {key!r}", got=have_shape, expected=want_shape, do=advice
                )
        with torch.no_grad():
            for key, tensor in want.items():
                tensor.copy_(state[key])


def _load_backbone(config: QwenVLAConfig, source: str) -> Backbone:
    from rl_finetune.policy.backbone import load_backbone

    dtype = getattr(torch, config.dtype)
    return load_backbone(source, config.max_context_tokens, dtype, config.views, config.context_tokens)


ADVICE = ("positive", "negative")
"""Words of the prompt for a good and for a bad chunk."""


def advise(observation: Observation, word: str) -> Observation:
    """The same observation with the advantage in words behind the task (flow_rl, advantage-conditioned)."""
    texts = map(instruction, observation.instruction)
    return replace(observation, instruction=tuple(f"{text}. Advantage: {word}" for text in texts))


def parameter_count(module: nn.Module) -> int:
    """Number of distinct parameters, also on the meta device."""
    return sum(p.numel() for p in module.parameters())
