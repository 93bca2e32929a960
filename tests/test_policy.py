"""The policy: its size on paper, its eyes against transformers, its decoder against a naive one, and what it saves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import (
    NOWHERE,
    QUANTILES,
    blind_policy,
    episode_keys,
    observations,
    origin,
    random_contexts,
    tiny_policy,
    tokenizer,
)
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tolerance import assert_rounded_alike
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3_5ForConditionalGeneration

import envs
from rl_finetune.config.objectives import GRPOSection, RECAPSection
from rl_finetune.config.schema import CriticSection, ExplorationSection, LoraSection, TrainConfig
from rl_finetune.errors import UserError
from rl_finetune.policy import FlowSDE, QwenVLAConfig, QwenVLAPolicy, TorchContext
from rl_finetune.policy.adapters import (
    ADVICE_TOKENS,
    add_adapters,
    equip,
    guide,
    load_adapters,
    load_trained_state,
    merge_adapters,
    restore_adapters,
    save_adapters,
    set_version,
    trained_state,
    without_adapters,
)
from rl_finetune.policy.backbone import build_backbone, load_backbone, patchify
from rl_finetune.policy.config import WIDOWX, DecoderConfig
from rl_finetune.policy.decoder import ActionDecoder, Block, rope_tables
from rl_finetune.policy.normalisation import Quantiles
from rl_finetune.policy.policy import ADVICE, Advised, advise, parameter_count
from rl_finetune.policy.prompt import prompt
from rl_finetune.spec import handshake
from rl_finetune.types import Observation

ROOT = Path(__file__).resolve().parent.parent
X = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(7))
TAU = torch.tensor([1.0, 0.75, 0.5, 0.25])


@pytest.fixture(scope="module")
def policy() -> QwenVLAPolicy:
    return tiny_policy()


@pytest.fixture(scope="module")
def seen() -> Observation:
    return observations(4)


@pytest.fixture(scope="module")
def context(policy: QwenVLAPolicy, seen: Observation) -> TorchContext:
    with torch.no_grad():
        return policy.encode(seen)


# ---- size


def test_the_large_policy_has_the_published_number_of_parameters() -> None:
    config = QwenVLAConfig.qwen3_5_4b()
    with torch.device("meta"):
        backbone = build_backbone(config.backbone, tokenizer(), config.max_context_tokens, torch.bfloat16)
        decoder = ActionDecoder(config.decoder)
    assert parameter_count(backbone) == 4_539_265_536
    assert parameter_count(backbone.model.model.visual) == 333_514_240
    assert {parameter_count(block) for block in decoder.blocks} == {30 * 1536**2}
    assert len(decoder.blocks) == 16 and config.decoder.action_width == 64
    assert [body.action.horizon for body in config.embodiments] == [16], "the paper's chunk for manipulation"
    assert 1.14e9 < parameter_count(decoder) < 1.16e9


def test_the_tiny_policy_has_every_part_of_the_large_one(policy: QwenVLAPolicy) -> None:
    tiny, large = QwenVLAConfig.tiny(), QwenVLAConfig.qwen3_5_4b()
    kinds = {type(layer).__name__ for layer in policy.eyes.model.model.language_model.layers[0].children()}
    assert "Qwen3_5GatedDeltaNet" in kinds
    config = policy.eyes.model.config.text_config
    assert set(config.layer_types) == {"linear_attention", "full_attention"}
    assert tiny.decoder.context_attention == large.decoder.context_attention == "joint"
    assert parameter_count(policy) * 4 < 16e6  # bytes of the shipped checkpoint
    assert len(policy.eyes.model.model.visual.blocks) == 2


# ---- what it sees and reads


def test_patches_equal_those_of_transformers(policy: QwenVLAPolicy) -> None:
    vision = policy.eyes.model.config.vision_config
    processor = Qwen2VLImageProcessorPil(
        do_resize=False, patch_size=8, temporal_patch_size=2, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    for height, width in ((64, 64), (32, 96)):
        pictures = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
        theirs = processor(list(pictures), return_tensors="pt")
        torch.testing.assert_close(patchify(pictures, vision), theirs["pixel_values"].float(), rtol=0, atol=1e-5)
        assert theirs["image_grid_thw"].tolist() == [[1, height // 8, width // 8]] * 3


def test_prompt_is_worded_as_in_the_paper() -> None:
    assert prompt(WIDOWX, "reach the red block", 2) == (
        "<|ego_start|><|vision_start|><|image_pad|><|image_pad|><|vision_end|><|ego_end|>"
        "The robot is widowx with single arm. The control frequency is 5 Hz. Please predict the next 8 control actions "
        "to execute the following task: reach the red block."
    )
    body = replace(
        WIDOWX, tag="gr1", arms="dual arms", views=("ego", "cam_left_wrist"), waist=True, mobile_base=True,
        action=replace(WIDOWX.action, rate=12.5, horizon=16),
    )  # fmt: skip
    text = prompt(body, "hand over the cup", 1)
    assert text.startswith(
        "<|ego_start|><|vision_start|><|image_pad|><|vision_end|><|ego_end|>"
        "<|cam_left_wrist_start|><|vision_start|><|image_pad|><|vision_end|><|cam_left_wrist_end|>"
    )
    assert text.endswith(
        "The robot is gr1 with dual arms, waist, and mobile base. The control frequency is 12.5 Hz. Please predict the "
        "next 16 control actions to execute the following task: hand over the cup."
    )


def test_tokens_mask_and_positions(policy: QwenVLAPolicy) -> None:
    """Text counts on in all three; a picture holds its time and counts rows and columns; text then goes on."""
    one = replace(observations(2), instruction=("reach the red block", "move the gripper to the yellow block"))
    inputs = policy.eyes.tokenise(one, WIDOWX)
    length = inputs.mask.sum(1)
    assert inputs.input_ids.shape == (2, 60) and (length <= 60).all() and length[0] != length[1]
    for row in range(2):
        n = int(length[row])
        assert inputs.mask[row, :n].all() and not inputs.mask[row, n:].any()
        assert tokenizer().decode(inputs.input_ids[row, :n]) == prompt(WIDOWX, one.instruction[row], 16)
        time, height, width = inputs.positions[:, row]
        assert time[:2].tolist() == height[:2].tolist() == width[:2].tolist() == [0, 1]
        assert time[2:18].tolist() == [2] * 16
        assert height[2:18].tolist() == [2 + i // 4 for i in range(16)]
        assert width[2:18].tolist() == [2 + i % 4 for i in range(16)]
        for axis in (time, height, width):
            assert axis[18:n].tolist() == list(range(6, 6 + n - 18))
    assert inputs.pixels.shape == (2 * 64, 3 * 2 * 8 * 8) and inputs.grid.tolist() == [[1, 8, 8]] * 2


def test_pictures_and_words_both_matter(policy: QwenVLAPolicy, seen: Observation, context: TorchContext) -> None:
    with torch.no_grad():
        other = policy.encode(replace(seen, images=observations(4, seed=1).images))
        words = policy.encode(replace(seen, instruction=tuple("touch it" for _ in range(4))))
    assert (other.hidden - context.hidden).abs().max() > 0.01 and (words.hidden - context.hidden).abs().max() > 0.01


@pytest.mark.parametrize("size", [60, 72])
def test_pictures_that_do_not_divide_are_refused(policy: QwenVLAPolicy, size: int) -> None:
    with pytest.raises(UserError, match=rf"got {size} x {size} pixels; expected multiples of 16"):
        policy.encode(observations(1, size=size))


def test_prompts_that_are_too_long_are_refused(policy: QwenVLAPolicy) -> None:
    with pytest.raises(UserError, match=r"longer than the policy's context: got \d+ tokens; expected at most 60"):
        policy.encode(replace(observations(1), instruction=("reach " * 60,)))


def test_company_and_padding_do_not_change_a_context(seen: Observation, policy: QwenVLAPolicy) -> None:
    longer = tiny_policy(max_context_tokens=80)
    with torch.no_grad():
        together, alone, padded = policy.encode(seen), policy.encode(seen.rows(np.array([2]))), longer.encode(seen)
    torch.testing.assert_close(alone.hidden[0], together.hidden[2], rtol=0, atol=1e-5)
    torch.testing.assert_close(padded.hidden[:, :60], together.hidden, rtol=0, atol=1e-5)
    assert not padded.hidden[~padded.mask].any() and not together.hidden[~together.mask].any()
    with torch.no_grad():
        torch.testing.assert_close(policy.value(together), longer.value(padded), rtol=0, atol=1e-5)
        ours, theirs = policy.velocity(together, X, TAU), longer.velocity(padded, X, TAU)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_value_is_linear_in_the_mean_real_state_and_leaves_the_backbone_alone(policy: QwenVLAPolicy) -> None:
    context = random_contexts(3)
    hidden = context.hidden.clone().requires_grad_(True)
    value = policy.value(replace(context, hidden=hidden))
    for row in range(3):
        mean = hidden[row, context.mask[row]].mean(0)
        expected = (policy.value_head.weight[0] * mean).sum() + policy.value_head.bias[0]
        assert value[row].item() == pytest.approx(expected.item(), abs=1e-5)
    value.sum().backward()
    assert hidden.grad is None


def test_a_bfloat16_backbone_gives_float32_contexts_and_noise(seen: Observation) -> None:
    policy = tiny_policy(dtype="bfloat16")
    with torch.no_grad():
        context = policy.encode(seen)
        _, moved = policy.sample(context, episode_keys(4), np.zeros(4, np.int64), WIDOWX, FlowSDE())
    assert next(policy.eyes.model.parameters()).dtype == torch.bfloat16
    assert context.hidden.dtype == moved.states.dtype == moved.sample.dtype == moved.log_prob.dtype == torch.float32


# ---- the decoder against a naive one


def attention(queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor) -> Tensor:
    logits = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
    return logits.masked_fill(~allowed, -math.inf).softmax(-1) @ values


def rms(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions one pair of channels at a time."""
    out, half = x.clone(), cos.shape[-1]
    for i in range(half):
        a, b = x[..., i], x[..., i + half]
        out[..., i], out[..., i + half] = a * cos[..., i] - b * sin[..., i], b * cos[..., i] + a * sin[..., i]
    return out


def naive_velocity(decoder: ActionDecoder, context: TorchContext, x: Tensor, tau: Tensor) -> Tensor:
    """Every block over the whole stream, context included, with nothing cached and nothing left out."""
    config, (n, tokens), horizon = decoder.config, context.mask.shape, x.shape[1]
    prefix = config.context_attention == "prefix"
    last = torch.stack([context.positions[:, i][:, context.mask[i]].max() for i in range(n)])
    ahead = (last[:, None] + torch.arange(1, horizon + 1)).expand(3, n, horizon)
    cos, sin = rope_tables(torch.cat((context.positions, ahead), dim=2), config)
    time = F.silu(decoder.time_mlp(features(tau, config.time_features)))
    stream = torch.cat((decoder.context_proj(context.hidden), decoder.action_in(x)), dim=1)
    is_action = (torch.arange(tokens + horizon) >= tokens)[:, None]
    allowed = torch.cat((context.mask, torch.ones(n, horizon, dtype=torch.bool)), dim=1)[:, None, None]
    if prefix:
        allowed = allowed & (is_action | ~is_action[:, 0])
    for block in decoder.blocks:
        parts = block.adaln(time)[:, None].chunk(6, dim=-1)
        if prefix:  # the context is modulated by nothing: no shift, no scale, open gates
            parts = tuple(torch.where(is_action, p, p * 0 + (i % 3 == 2)) for i, p in enumerate(parts))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        normed = rms(stream) * (1 + scale_a) + shift_a
        q, k, v = (heads(block, layer(normed)) for layer in (block.q_proj, block.k_proj, block.v_proj))
        mixed = attention(turned(rms(q), cos, sin), turned(rms(k), cos, sin), v, allowed)
        stream = stream + gate_a * block.o_proj(mixed.transpose(1, 2).flatten(2))
        normed = rms(stream) * (1 + scale_m) + shift_m
        stream = stream + gate_m * block.down_proj(F.silu(block.gate_proj(normed)) * block.up_proj(normed))
    shift, scale = decoder.out_adaln(time)[:, None].chunk(2, dim=-1)
    return decoder.action_out((rms(stream) * (1 + scale) + shift)[:, -horizon:])


def heads(block: Block, x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:2], block.heads, -1).transpose(1, 2)


def features(tau: Tensor, width: int) -> Tensor:
    rates = torch.tensor([10_000 ** (-i / (width // 2)) for i in range(width // 2)])
    angles = 1000 * tau[:, None] * rates
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


@pytest.mark.parametrize("mode", ["joint", "prefix"])
def test_decoder_equals_the_naive_one(mode: str) -> None:
    blind, context = blind_policy(context_attention=mode), random_contexts(4)
    with torch.no_grad():
        ours = blind.velocity(context, X, TAU)
        torch.testing.assert_close(ours, naive_velocity(blind.decoder, context, X, TAU), rtol=1e-4, atol=1e-5)


def test_context_depends_on_actions_in_joint_mode_only() -> None:
    """What the modes differ in: with two blocks, a prefix's second layer of keys is the same for all noise levels."""
    context = random_contexts(4)
    found = {}
    for mode in ("joint", "prefix"):
        blind, keys = blind_policy(context_attention=mode), []
        block = list(blind.decoder.blocks)[1]
        real = block.keys_values
        block.keys_values = lambda x, rope, real=real, keys=keys: keys.append(real(x, rope)[0]) or real(x, rope)  # type: ignore[method-assign]
        with torch.no_grad():
            prepared = blind.prepare(context, 8)
            for x, tau in ((X, TAU), (X + 1, TAU), (X, TAU / 2)):
                blind.decoder(prepared, x, tau)
        found[mode] = keys
    joint, prefix = found["joint"], found["prefix"]
    assert [k.shape[2] for k in joint] == [20, 20, 20]
    assert all((k - joint[0])[:, :, :12].abs().max() > 1e-3 for k in joint[1:])
    assert [k.shape[2] for k in prefix] == [12, 8, 8, 8]  # the context once, when it is prepared


@pytest.mark.parametrize("mode", ["joint", "prefix"])
def test_padded_context_is_never_read(mode: str) -> None:
    blind, context = blind_policy(context_attention=mode), random_contexts(4)
    dirty = replace(
        context,
        hidden=context.hidden.masked_fill(~context.mask[..., None], 50.0),
        positions=context.positions.masked_fill(~context.mask, 999),
    )
    cut = context.rows(torch.tensor([1]))
    n = int(cut.mask.sum())
    short = TorchContext(cut.hidden[:, :n], cut.mask[:, :n], cut.positions[:, :, :n])
    with torch.no_grad():
        plain = blind.velocity(context, X, TAU)
        torch.testing.assert_close(blind.velocity(dirty, X, TAU), plain, rtol=0, atol=1e-5)
        torch.testing.assert_close(blind.velocity(short, X[1:2], TAU[1:2])[0], plain[1], rtol=0, atol=1e-5)


def test_every_input_has_a_say(policy: QwenVLAPolicy) -> None:
    context = random_contexts(4)
    with torch.no_grad():
        plain = policy.velocity(context, X, TAU)
        padding = X.clone()
        padding[..., 7:] += 1
        for changed in (
            policy.velocity(replace(context, hidden=context.hidden.roll(1, 0)), X, TAU),
            policy.velocity(replace(context, positions=context.positions.flip(2)), X, TAU),
            policy.velocity(context, padding, TAU),
            policy.velocity(context, X, TAU / 2),
        ):
            assert (changed - plain)[..., :7].abs().max() > 1e-3


def test_rotary_positions_are_the_backbones(policy: QwenVLAPolicy) -> None:
    positions = torch.randint(0, 40, (3, 2, 9), generator=torch.Generator().manual_seed(0))
    cos, sin = policy.eyes.model.model.language_model.rotary_emb(torch.zeros(1), positions)
    ours = rope_tables(positions, policy.config.decoder)
    half = ours[0].shape[-1]
    torch.testing.assert_close(ours[0][:, 0], cos[..., :half])
    torch.testing.assert_close(ours[1][:, 0], sin[..., :half])
    large = DecoderConfig()
    assert rope_tables(positions, large)[0].shape == (2, 1, 9, 32)


def test_chunks_come_in_the_environments_units(policy: QwenVLAPolicy, context: TorchContext) -> None:
    keys, zero = episode_keys(4), np.zeros(4, np.int64)
    chunk = policy.act(context, keys, zero, WIDOWX, temperature=0.6)
    assert chunk.actions.shape == chunk.mask.shape == (4, 8, 16) and chunk.actions.dtype == np.float32
    assert chunk.mask[..., :7].all() and not chunk.mask[..., 7:].any() and not chunk.actions[..., 7:].any()
    again = policy.act(context, keys, zero, WIDOWX, temperature=0.6)
    assert np.array_equal(chunk.actions, again.actions)
    assert not np.array_equal(chunk.actions, policy.act(context, keys, zero, WIDOWX, temperature=1.0).actions)
    finer = policy.act(context, keys, zero, WIDOWX, temperature=0.6, num_steps=8)
    assert np.abs(chunk.actions - finer.actions).max() > 0


def test_quantiles_by_hand() -> None:
    table = Quantiles((0.0, -1.0), (0.2, 1.0))
    normal = table.normalise(np.array([[[0.0, 0.5], [0.05, 3.0]]], np.float32), 4)
    np.testing.assert_allclose(normal, [[[-1, 0.5, 0, 0], [-0.5, 1, 0, 0]]], atol=1e-6)
    np.testing.assert_allclose(table.denormalise(normal), [[[0, 0.5, 0, 0], [0.05, 1, 0, 0]]], atol=1e-6)
    fitted = Quantiles.fit(np.linspace([0, 5], [1, 5], 101, dtype=np.float32)[None])
    np.testing.assert_allclose(fitted.q01, (0.01, 4.995), atol=1e-6)
    np.testing.assert_allclose(fitted.q99, (0.99, 5.005), atol=1e-6)


# ---- what it saves


@pytest.fixture(scope="module")
def folder(policy: QwenVLAPolicy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy")
    policy.save_pretrained(path)
    return path


def copied(folder: Path, to: Path) -> Path:
    """A policy folder that a test may damage."""
    for source in folder.rglob("*"):
        if source.is_file():
            target = to / source.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    return to


def test_a_saved_policy_comes_back_to_the_bit(
    policy: QwenVLAPolicy, folder: Path, seen: Observation, context: TorchContext
) -> None:
    again = QwenVLAPolicy.from_pretrained(folder)
    assert again.config == policy.config and again.quantiles == QUANTILES and not again.training
    blind = QwenVLAPolicy.from_pretrained(folder, with_backbone=False)
    saved = policy.state_dict()
    for other, left_out in ((again, ()), (blind, ("backbone.",))):
        state = other.state_dict()
        assert state.keys() == {name for name in saved if not name.startswith(left_out)}
        assert all(torch.equal(tensor, saved[name]) for name, tensor in state.items())
    with torch.no_grad():
        encoded = again.encode(seen)
        assert torch.equal(encoded.mask, context.mask) and torch.equal(encoded.positions, context.positions)
        assert_rounded_alike(encoded.hidden, context.hidden)
        assert_rounded_alike(again.value(encoded), policy.value(context))
        for other in (again, blind):
            assert_rounded_alike(other.velocity(context, X, TAU), policy.velocity(context, X, TAU))
    with pytest.raises(ValueError, match="without its backbone"):
        blind.encode(seen)


def test_the_backbone_folder_serves_transformers_alone(policy: QwenVLAPolicy, folder: Path, seen: Observation) -> None:
    model = Qwen3_5ForConditionalGeneration.from_pretrained(folder / "backbone")
    words = AutoTokenizer.from_pretrained(folder / "backbone")
    inputs = policy.eyes.tokenise(seen, WIDOWX)
    text = prompt(WIDOWX, seen.instruction[0], 16)
    ids = words(text, return_tensors="pt")["input_ids"]
    n = ids.shape[1]
    assert torch.equal(ids[0], inputs.input_ids[0, :n]) and int(inputs.mask[0].sum()) == n
    with torch.no_grad():
        theirs = model.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=inputs.pixels[:64],
            image_grid_thw=inputs.grid[:1],
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
        ).last_hidden_state
        ours = policy.encode(seen).hidden[0, :n]
    torch.testing.assert_close(theirs[0], ours, rtol=0, atol=1e-5)


def test_another_backbone_learns_the_view_tags_it_does_not_know(folder: Path) -> None:
    grown = load_backbone(str(folder / "backbone"), 60, torch.float32, ("ego", "cam_left_wrist"))
    ids = grown.tokenizer("<|cam_left_wrist_start|><|ego_start|><|image_pad|>")["input_ids"]
    assert len(ids) == 3 and len(set(ids)) == 3
    assert max(ids) < grown.model.get_input_embeddings().num_embeddings


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def widen(path: Path) -> None:
    state = load_file(path)
    state["value_head.weight"] = torch.zeros(1, 64)
    save_file(state, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: truncate(f / "model.safetensors"), "policy weights cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "policy weights cannot be read"),
        (lambda f: widen(f / "model.safetensors"), r"'value_head.weight': got \(1, 64\); expected \(1, 128\)"),
        (lambda f: truncate(f / "config.json"), "policy config is damaged"),
        (lambda f: (f / "config.json").unlink(), "no policy there"),
        (lambda f: (f / "config.json").write_text("{}"), "not a Qwen-VLA policy"),
        (lambda f: (f / "normalisation.json").unlink(), "action normalisation cannot be read"),
        (lambda f: truncate(f / "backbone" / "model.safetensors"), "backbone cannot be loaded"),
        (lambda f: (f / "backbone" / "config.json").unlink(), "backbone cannot be loaded: got no config.json"),
    ],
    ids=["truncated heads", "no heads", "other shape", "half a config", "no config", "foreign config",
         "no normalisation", "truncated backbone", "no backbone"],
)  # fmt: skip
def test_a_damaged_policy_is_refused(folder: Path, tmp_path: Path, change: Callable[[Path], Any], message: str) -> None:
    damaged = copied(folder, tmp_path)
    change(damaged)
    with pytest.raises(UserError, match=message):
        QwenVLAPolicy.from_pretrained(damaged)


def test_a_backbone_of_another_width_is_refused(folder: Path, tmp_path: Path) -> None:
    """Its config says one thing, its weights another."""
    damaged = copied(folder, tmp_path)
    path = damaged / "config.json"
    path.write_text(path.read_text().replace('"context_width": 128', '"context_width": 64'))
    with pytest.raises(UserError, match=r"do not fit config\.json at 'decoder\.context_proj\.weight'"):
        QwenVLAPolicy.from_pretrained(damaged)


def test_a_missing_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"policy not found: got .*nowhere.*; expected an existing folder or a hub id"):
        QwenVLAPolicy.from_pretrained(tmp_path / "nowhere")


def test_a_backbone_of_another_shape_is_refused(folder: Path, tmp_path: Path) -> None:
    damaged = copied(folder, tmp_path)
    weights = damaged / "backbone" / "model.safetensors"
    state = load_file(weights)
    name = next(n for n in state if n.endswith("embed_tokens.weight"))
    right = state[name]
    state[name] = torch.zeros(512, 64)
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="backbone cannot be loaded"):
        QwenVLAPolicy.from_pretrained(damaged)
    state[name] = right
    missing = [n for n in state if ".layers.2." in n]
    save_file({n: t for n, t in state.items() if n not in missing}, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"without the weights model.* and {len(missing) - 1} others"):
        QwenVLAPolicy.from_pretrained(damaged)


# ---- adapters

BOTH = LoraSection(parts=["decoder", "backbone"], rank=2)


def stirred(policy: QwenVLAPolicy, seed: int = 3) -> QwenVLAPolicy:
    """Adapters that change outputs by a quarter. Stirred three times as much, a backbone makes 200 times more of
    rounding."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=rng) * (0.03 if "lora" in name else 0.01))
    return policy


def outputs(policy: QwenVLAPolicy, seen: Observation) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        context = policy.encode(seen)
        return policy.velocity(context, X, TAU), policy.value(context)


def assert_acts_as(policy: QwenVLAPolicy, wanted: tuple[Tensor, Tensor], seen: Observation) -> None:
    """Another module's outputs to rounding."""
    for ours, theirs in zip(outputs(policy, seen), wanted, strict=True):
        assert_rounded_alike(ours, theirs)


def assert_carries(policy: QwenVLAPolicy, source: QwenVLAPolicy) -> None:
    """All that trains, bit for bit."""
    ours, theirs = trained_state(policy), trained_state(source)
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_adapters_begin_as_no_change_and_only_they_train(seen: Observation) -> None:
    plain = outputs(tiny_policy(), seen)
    adapted = add_adapters(tiny_policy(), BOTH, seed=0)
    fresh = outputs(adapted, seen)
    with without_adapters(adapted):
        assert all(map(torch.equal, outputs(adapted, seen), fresh))
    assert_acts_as(adapted, plain, seen)
    trains = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert all("lora_" in name or name.startswith("value_head") for name in trains)
    for part in ("decoder", "language_model"):
        layers = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trains if part in name}
        assert layers >= {"q_proj", "v_proj", "o_proj", "up_proj", "down_proj"}
    assert any("in_proj_qkv" in name for name in trains) and not any("visual" in name for name in trains)
    assert (outputs(stirred(adapted), seen)[0] - plain[0]).abs().max() > 1e-2


def test_fresh_adapters_follow_from_the_seed() -> None:
    first, same, other = (trained_state(add_adapters(blind_policy(), LoraSection(), seed=s)) for s in (1, 1, 2))
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert not all(np.array_equal(first[name], other[name]) for name in first)


def test_trained_state_carries_everything_that_trains(seen: Observation) -> None:
    source = stirred(add_adapters(tiny_policy(), BOTH, seed=0))
    target = add_adapters(tiny_policy(), BOTH, seed=9)
    state = trained_state(source)
    load_trained_state(target, state)
    assert_carries(target, source)
    assert_acts_as(target, outputs(source, seen), seen)
    whole = sum(p.numel() for p in source.parameters()) * 4
    assert sum(a.nbytes for a in state.values()) < 0.1 * whole
    name = next(iter(state))
    state[name][:] = 77
    assert not (trained_state(source)[name] == 77).any()  # copies
    with pytest.raises(ValueError, match="got"):
        load_trained_state(target, {k: v for k, v in state.items() if k != name})


def test_merged_adapters_give_the_same_outputs(seen: Observation) -> None:
    adapted = stirred(add_adapters(tiny_policy(), BOTH, seed=0))
    before = outputs(adapted, seen)
    merged = merge_adapters(adapted)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert_acts_as(merged, before, seen)


def test_saved_adapters_come_back_everywhere(folder: Path, tmp_path: Path, seen: Observation) -> None:
    begun = origin(folder)
    trained = stirred(add_adapters(QwenVLAPolicy.from_pretrained(folder), BOTH, seed=0))
    wanted = outputs(trained, seen)
    save_adapters(trained, tmp_path, begun)

    loaded = load_adapters(QwenVLAPolicy.from_pretrained(folder), tmp_path, begun.base)
    assert_acts_as(loaded, wanted, seen)

    resumed = add_adapters(QwenVLAPolicy.from_pretrained(folder), BOTH, seed=5)
    restore_adapters(resumed, tmp_path, begun.base)
    assert_carries(resumed, trained)
    assert_acts_as(resumed, wanted, seen)

    alone = QwenVLAPolicy.from_pretrained(folder)
    alone.decoder = PeftModel.from_pretrained(alone.decoder, tmp_path / "decoder")  # type: ignore[assignment]
    language = alone.eyes.model.model
    language.language_model = PeftModel.from_pretrained(language.language_model, tmp_path / "backbone")
    assert_rounded_alike(outputs(alone, seen)[0], wanted[0])


def test_a_policy_without_its_backbone_takes_the_decoders_adapter(folder: Path, tmp_path: Path) -> None:
    trained = stirred(add_adapters(QwenVLAPolicy.from_pretrained(folder), BOTH, seed=0))
    save_adapters(trained, tmp_path, origin(folder))
    blind = load_adapters(QwenVLAPolicy.from_pretrained(folder, with_backbone=False), tmp_path, origin(folder).base)
    context = random_contexts(4)
    with torch.no_grad():
        assert_rounded_alike(blind.velocity(context, X, TAU), trained.velocity(context, X, TAU))


def test_targets_that_no_layer_has_are_refused() -> None:
    with pytest.raises(UserError, match=r"lora.decoder_targets: got \['query'\]; expected some of \[.*'q_proj'"):
        add_adapters(blind_policy(), LoraSection(decoder_targets=["query"]), seed=0)


# ---- what a job trains


def job(**sections: Any) -> TrainConfig:
    return TrainConfig(lora=LoraSection(rank=2), **sections)


EVERYTHING = job(
    critic=CriticSection(kind="privileged"), exploration=ExplorationSection(law="flow_noise", std_min=0.05, std_max=0.3)
)


def trains(policy: QwenVLAPolicy) -> set[str]:
    return {name.split(".")[0] for name in trained_state(policy)}


def test_a_job_trains_what_its_settings_name() -> None:
    assert trains(equip(blind_policy(), job(), 9)) == {"decoder", "value_head"}
    assert trains(equip(blind_policy(), job(critic=CriticSection(kind="none")), 0)) == {"decoder"}
    assert trains(equip(blind_policy(), job(objective=GRPOSection()), 9)) == {"decoder"}
    policy = equip(blind_policy(), EVERYTHING, 9)
    assert trains(policy) == {"decoder", "privileged_critic", "noise_net"}
    assert policy.critic == "privileged" and policy.value(None, torch.ones(3, 9)).shape == (3,)
    spread = policy.spread(random_contexts(4))
    assert spread is not None
    torch.testing.assert_close(spread(X, TAU), torch.full_like(X, math.sqrt(0.05 * 0.3)))


def test_equipment_follows_from_the_seed() -> None:
    """Actors and learners build it on their own."""
    first, same = (trained_state(equip(blind_policy(), EVERYTHING, 9)) for _ in range(2))
    assert all(np.array_equal(first[name], same[name]) for name in first)


def test_a_privileged_critic_needs_a_world_that_shows_its_state() -> None:
    with pytest.raises(
        UserError, match=r"no privileged state .*: got critic.kind=privileged with widowx_reach; .*kind=linear"
    ):
        equip(blind_policy(), EVERYTHING, 0)


def test_critic_and_noise_net_travel_and_come_back(tmp_path: Path) -> None:
    trained = stirred(equip(blind_policy(), EVERYTHING, 9))
    save_adapters(trained, tmp_path, NOWHERE)
    resumed, synced = (stirred(equip(blind_policy(), EVERYTHING, 9), seed=4) for _ in range(2))
    assert not np.array_equal(
        trained_state(resumed)["noise_net.out.bias"], trained_state(trained)["noise_net.out.bias"]
    )
    restore_adapters(resumed, tmp_path, NOWHERE.base)
    load_trained_state(synced, trained_state(trained))
    for other in (resumed, synced):
        assert_carries(other, trained)
    judged = load_adapters(blind_policy(), tmp_path, NOWHERE.base)
    assert judged.noise_net is None and judged.privileged_critic is None and judged.guidance is None
    keys, zero = episode_keys(4), np.zeros(4, np.int64)
    chunks = [p.act(random_contexts(4), keys, zero, WIDOWX, 0.6).actions for p in (trained, judged)]
    assert_rounded_alike(*chunks)


def test_the_policy_without_its_adapters_is_the_one_it_began_as() -> None:
    trained, context = stirred(equip(blind_policy(), job(), 9)), random_contexts(4)
    with torch.no_grad():
        before = trained.velocity(context, X, TAU)
        with without_adapters(trained):
            start = trained.velocity(context, X, TAU)
        torch.testing.assert_close(start, blind_policy().velocity(context, X, TAU), rtol=0, atol=1e-6)
        assert (start - before).abs().max() > 1e-3 and torch.equal(trained.velocity(context, X, TAU), before)


# ---- advice


def test_advice_is_worded_behind_the_task_and_fits_the_prompt(seen: Observation) -> None:
    assert advise(seen, "positive").instruction[0] == seen.instruction[0] + ". Advantage: positive"
    policy = tiny_policy()
    guide(policy, 1.0)
    with torch.no_grad():
        found = policy.look(seen)
    assert isinstance(found, Advised)
    lengths = [c.mask.sum(1) for c in (found.plain, found.good, found.bad)]
    assert (lengths[0] < lengths[1]).all() and found.good.mask.shape == found.plain.mask.shape
    assert (found.good.hidden - found.bad.hidden).abs().amax((1, 2)).min() > 0.01
    shipped = AutoTokenizer.from_pretrained(ROOT / "checkpoints" / "qwen-vla-tiny" / "backbone")
    good, bad = (shipped(f". Advantage: {word}")["input_ids"] for word in ADVICE)
    assert good != bad and max(len(good), len(bad)) <= ADVICE_TOKENS


def test_guidance_moves_the_velocity_away_from_the_plain_one() -> None:
    policy = blind_policy()
    plain, good, bad = (random_contexts(4, seed=s) for s in range(3))
    advised = Advised(plain, good, bad)
    with torch.no_grad():
        v0, v1 = (policy.velocity(c, X, TAU) for c in (plain, good))
        for guidance, expected in ((None, v0), (0.0, v0), (1.0, v1), (1.5, v0 + 1.5 * (v1 - v0))):
            policy.guidance = guidance
            torch.testing.assert_close(policy.field(advised, 8)(X, TAU), expected, rtol=0, atol=1e-5)
            torch.testing.assert_close(policy.field(plain, 8)(X, TAU), v0, rtol=0, atol=1e-6)
    keys, zero = episode_keys(4), np.zeros(4, np.int64)
    acted = [policy.act(context, keys, zero, WIDOWX, 0.6).actions for context in (advised, plain)]
    assert np.abs(acted[0] - acted[1]).max() > 1e-3


def test_a_policy_asks_for_good_chunks_once_advice_has_been_learned(tmp_path: Path) -> None:
    advised = job(objective=RECAPSection(warmup=3, guidance=2.0))
    policy = equip(tiny_policy(), advised, 0)
    found = []
    for version in range(5):
        set_version(policy, advised, version)
        found.append(policy.guidance)
    assert found == [0, 0, 0, 2, 2]
    save_adapters(policy, tmp_path, NOWHERE)
    loaded = load_adapters(tiny_policy(), tmp_path, NOWHERE.base)
    assert loaded.guidance == 2.0 and loaded.eyes.spare == policy.eyes.spare == ADVICE_TOKENS
    assert equip(tiny_policy(), job(), 0).guidance is None


# ---- the handshake


def test_policy_and_environment_agree_on_everything() -> None:
    assert handshake(QwenVLAConfig.tiny().embodiments, envs.spec("widowx_reach")) == WIDOWX


@pytest.mark.parametrize(
    ("field", "value"),
    [("arms", "dual arms"), ("views", ("front",)), ("waist", True), ("channels", 14), ("horizon", 16),
     ("control", "joint"), ("rotation", "none"), ("gripper", "none"), ("rate", 50.0)],
)  # fmt: skip
def test_a_disagreement_names_both_sides(field: str, value: Any) -> None:
    spec = envs.spec("widowx_reach")
    body = spec.embodiment
    deep = field in {"channels", "horizon", "control", "rotation", "gripper", "rate"}
    other = replace(body, action=replace(body.action, **{field: value})) if deep else replace(body, **{field: value})
    have = getattr(WIDOWX.action if deep else WIDOWX, field)
    with pytest.raises(UserError) as caught:
        handshake((WIDOWX,), replace(spec, embodiment=other))
    text = str(caught.value)
    assert repr(field) in text and f"environment {value!r}" in text and f"policy {have!r}" in text
    assert "widowx_reach" in text


def test_a_body_that_the_policy_does_not_know_is_refused(policy: QwenVLAPolicy, seen: Observation) -> None:
    spec = envs.spec("widowx_reach")
    with pytest.raises(UserError, match=r"got 'aloha'; expected one of \['widowx'\]"):
        handshake((WIDOWX,), replace(spec, embodiment=replace(spec.embodiment, tag="aloha")))
    with pytest.raises(UserError, match=r"not trained for: got 'aloha'"):
        policy.encode(replace(seen, embodiment="aloha"))
