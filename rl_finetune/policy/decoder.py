"""The DiT flow-matching action decoder.

One stream: [projected backbone states ; noisy action tokens], attention over all of it, AdaLN-Zero time conditioning,
multi-section rotary positions that continue the backbone's, velocity read off the action tokens.

Per block 30 d^2 parameters at the paper's split: attention 8 d^2, SwiGLU 16 d^2, AdaLN 6 d^2; no biases there.
In the last block only action tokens are read out, so the context passes through its keys and values alone: exact,
and at the tiny size almost half of the decoder's cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl_finetune.policy.config import DecoderConfig

Rope = tuple[Tensor, Tensor]


def rope_tables(positions: Tensor, config: DecoderConfig) -> Rope:
    """Cosine and sine tables [N, 1, L, r/2] of interleaved multi-section rotary positions [3, N, L].

    Frequencies follow the backbone's: theta^(-2i/r); frequency i belongs to height where i % 3 == 1, to width where
    i % 3 == 2 (as far as their sections reach), else to time.
    """
    half = int(config.head_dim * config.rope_fraction) // 2
    exponent = torch.arange(half, dtype=torch.float32, device=positions.device) / half
    angles = positions[..., None].float() * config.rope_theta**-exponent
    chosen = angles[0].clone()
    for axis in (1, 2):
        index = torch.arange(axis, config.rope_sections[axis] * 3, 3, device=positions.device)
        index = index[index < half]
        chosen[..., index] = angles[axis][..., index]
    return chosen.cos()[:, None], chosen.sin()[:, None]


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotate the leading channels of heads [N, heads, L, head_dim]; the rest passes unchanged."""
    cos, sin = rope
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Parameter-free RMS normalisation, then AdaLN's affine map with [N, 1, d] shift and scale."""
    return F.rms_norm(x, x.shape[-1:]) * (1 + scale) + shift


class Block(nn.Module):
    """One transformer block over the joint stream."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        d, inner = config.width, config.heads * config.head_dim
        self.heads = config.heads
        self.q_proj = nn.Linear(d, inner, bias=False)
        self.k_proj = nn.Linear(d, inner, bias=False)
        self.v_proj = nn.Linear(d, inner, bias=False)
        self.o_proj = nn.Linear(inner, d, bias=False)
        self.gate_proj = nn.Linear(d, config.mlp, bias=False)
        self.up_proj = nn.Linear(d, config.mlp, bias=False)
        self.down_proj = nn.Linear(config.mlp, d, bias=False)
        self.adaln = nn.Linear(d, 6 * d, bias=False)
        nn.init.zeros_(self.adaln.weight)

    def modulation(self, time: Tensor) -> tuple[Tensor, ...]:
        """Six [N, 1, d] tensors from the time embedding [N, d]: shift, scale, gate of attention, then of the MLP."""
        return self.adaln(F.silu(time))[:, None].chunk(6, dim=-1)

    def keys_values(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """Keys (normalised, rotated) and values [N, heads, L, head_dim] of the normed stream `x`."""
        return rotate(_rms(self._heads(self.k_proj(x))), rope), self._heads(self.v_proj(x))

    def attend(self, x: Tensor, rope: Rope, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attention output [N, L, d] of queries from the normed stream `x` under a boolean key mask [N, 1, 1, S]."""
        queries = rotate(_rms(self._heads(self.q_proj(x))), rope)
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def feed_forward(self, x: Tensor) -> Tensor:
        """SwiGLU."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Blocks(nn.ModuleList):
    """A list of blocks that says so to a type checker."""

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[Block]: ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """A context made ready for the decoder once per chunk, used at every Euler step."""

    stream: Tensor
    """[N, L, d] projected context (joint), empty in prefix mode."""
    cache: tuple[tuple[Tensor, Tensor], ...]
    """Keys and values of the context for each block (prefix), empty in joint mode."""
    mask: Tensor
    """[N, 1, 1, L + H] keys that may be attended to."""
    context_rope: Rope
    """Rotary tables of the context."""
    action_rope: Rope
    """Rotary tables of the action tokens."""


class ActionDecoder(nn.Module):
    """Predicts the flow velocity of an action chunk from a context and a noise level."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        d = config.width
        self.config = config
        self.context_proj = nn.Linear(config.context_width, d, bias=False)
        self.action_in = nn.Sequential(nn.Linear(config.action_width, d), nn.SiLU(), nn.Linear(d, d))
        self.action_out = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, config.action_width))
        self.time_mlp = nn.Sequential(nn.Linear(config.time_features, d), nn.SiLU(), nn.Linear(d, d))
        self.blocks = Blocks(Block(config) for _ in range(config.depth))
        self.out_adaln = nn.Linear(d, 2 * d)
        nn.init.zeros_(self.out_adaln.weight)
        nn.init.zeros_(self.out_adaln.bias)

    def prepare(self, hidden: Tensor, mask: Tensor, positions: Tensor, horizon: int) -> Prepared:
        """Project the context and lay out positions; in prefix mode also run it through the blocks.

        Args:
            hidden: [N, L, context_width].
            mask: [N, L] bool.
            positions: [3, N, L] rotary positions of the backbone.
            horizon: H action tokens, at the positions after the last context token.
        """
        last = positions.masked_fill(~mask, 0).amax(dim=(0, 2))
        steps = torch.arange(1, horizon + 1, device=hidden.device)
        action_positions = (last[:, None] + steps).expand(3, -1, -1)
        full = F.pad(mask, (0, horizon), value=True)[:, None, None]
        ropes = rope_tables(positions, self.config), rope_tables(action_positions, self.config)
        stream = self.context_proj(hidden)
        if self.config.context_attention == "joint":
            return Prepared(stream, (), full, *ropes)
        cache = self._prefix_cache(stream, mask[:, None, None], ropes[0])
        return Prepared(stream[:, :0], cache, full, *ropes)

    def forward(self, prepared: Prepared, x: Tensor, tau: Tensor) -> Tensor:
        """Velocity [N, H, K] at chain state `x` [N, H, K] and noise level `tau` [N]."""
        time = self.time_mlp(time_features(tau, self.config.time_features).to(x.dtype))
        actions = self.action_in(x)
        if prepared.cache:
            actions = self._prefix_pass(prepared, actions, time)
        else:
            actions = self._joint_pass(prepared, actions, time)
        shift, scale = self.out_adaln(F.silu(time))[:, None].chunk(2, dim=-1)
        return self.action_out(modulate(actions, shift, scale))

    def _joint_pass(self, prepared: Prepared, actions: Tensor, time: Tensor) -> Tensor:
        horizon = actions.shape[1]
        ropes = zip(prepared.context_rope, prepared.action_rope, strict=True)
        cos, sin = (torch.cat(pair, dim=2) for pair in ropes)
        stream = torch.cat((prepared.stream, actions), dim=1)
        for i, block in enumerate(self.blocks):
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.modulation(time)
            normed = modulate(stream, shift_a, scale_a)
            keys, values = block.keys_values(normed, (cos, sin))
            if i + 1 == len(self.blocks):
                stream, normed, cos, sin = (
                    stream[:, -horizon:], normed[:, -horizon:], cos[:, :, -horizon:], sin[:, :, -horizon:],
                )  # fmt: skip
            stream = stream + gate_a * block.attend(normed, (cos, sin), keys, values, prepared.mask)
            stream = stream + gate_m * block.feed_forward(modulate(stream, shift_m, scale_m))
        return stream

    def _prefix_pass(self, prepared: Prepared, actions: Tensor, time: Tensor) -> Tensor:
        rope = prepared.action_rope
        for block, (context_keys, context_values) in zip(self.blocks, prepared.cache, strict=True):
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.modulation(time)
            normed = modulate(actions, shift_a, scale_a)
            keys, values = block.keys_values(normed, rope)
            keys, values = torch.cat((context_keys, keys), dim=2), torch.cat((context_values, values), dim=2)
            actions = actions + gate_a * block.attend(normed, rope, keys, values, prepared.mask)
            actions = actions + gate_m * block.feed_forward(modulate(actions, shift_m, scale_m))
        return actions

    def _prefix_cache(self, stream: Tensor, mask: Tensor, rope: Rope) -> tuple[tuple[Tensor, Tensor], ...]:
        cache = []
        for block in self.blocks:
            normed = _rms(stream)
            keys, values = block.keys_values(normed, rope)
            cache.append((keys, values))
            stream = stream + block.attend(normed, rope, keys, values, mask)
            stream = stream + block.feed_forward(_rms(stream))
        return tuple(cache)


def time_features(tau: Tensor, width: int) -> Tensor:
    """Sinusoidal features [N, width] of 1000 tau, periods from 2 pi to 20,000 pi."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=tau.device) / half)
    angles = 1000 * tau.float()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def _rms(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])
