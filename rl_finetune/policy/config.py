"""Architecture of a Qwen-VLA policy: everything needed to build it, nothing about training it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from rl_finetune.errors import UserError
from rl_finetune.spec import ActionConvention, EmbodimentSpec

CONFIG_FILE = "config.json"
FORMAT = "qwen-vla-policy"

WIDOWX = EmbodimentSpec(
    tag="widowx",
    arms="single arm",
    views=("ego",),
    action=ActionConvention(
        channels=7, horizon=8, control="delta_ee", rotation="axis_angle", gripper="open_positive", rate=5.0
    ),
)


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The DiT action decoder. Defaults are the 1.15 B decoder of the paper (30 width^2 parameters a block)."""

    width: int = 1536
    """d, channels of the residual stream."""
    depth: int = 16
    """Transformer blocks."""
    heads: int = 12
    """Attention heads."""
    head_dim: int = 256
    """Channels a head, equal to the backbone's so that rotary positions align."""
    mlp: int = 8192
    """Inner width of the SwiGLU."""
    time_features: int = 256
    """Sinusoidal features of the noise level."""
    context_width: int = 2560
    """Width of the backbone's hidden states."""
    action_width: int = 64
    """K, padded action channels."""
    context_attention: Literal["joint", "prefix"] = "joint"
    """`joint`: context attends to actions and is time-modulated (paper). `prefix`: it does neither, and is cached."""
    rope_theta: float = 1e7
    """Base of the rotary frequencies."""
    rope_fraction: float = 0.25
    """Share of a head that is rotated."""
    rope_sections: tuple[int, int, int] = (11, 11, 10)
    """Rotary frequencies given to time, height and width."""


@dataclass(frozen=True, slots=True)
class QwenVLAConfig:
    """A whole policy."""

    backbone: dict[str, Any]
    """Constructor arguments of transformers' `Qwen3_5Config` (`text_config`, `vision_config`, token ids)."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """The action decoder."""
    embodiments: tuple[EmbodimentSpec, ...] = (WIDOWX,)
    """Bodies that the policy was trained for."""
    max_context_tokens: int = 512
    """L: every prompt is right-padded to this many tokens, so that rollout and update share shapes and rounding."""
    context_tokens: dict[str, int] = field(default_factory=dict)
    """Robot tag -> L of bodies whose prompts are padded to another length (more views, fewer words). It must not depend
    on anything else of a batch, or rollout and update would round differently."""
    num_steps: int = 4
    """Euler steps of the sampler."""
    dtype: str = "bfloat16"
    """Storage type of the backbone's weights."""

    @property
    def picture_unit(self) -> int:
        """Pixels, a side of what becomes one visual token: sides of pictures are multiples of it."""
        vision = self.backbone["vision_config"]
        return int(vision["patch_size"] * vision.get("spatial_merge_size", 2))

    @classmethod
    def tiny(cls) -> QwenVLAConfig:
        """Two million parameters with every part of the large one: DeltaNet, attention, vision, joint decoder."""
        text = _text(
            width=128, mlp=256, layers=4, attention=(4, 2, 32), deltanet=(2, 2, 32), vocabulary=512, positions=512,
            sections=[2, 1, 1],
        ) | {"layer_types": ["linear_attention", "full_attention"] * 2}  # fmt: skip
        decoder = DecoderConfig(
            width=128, depth=2, heads=4, head_dim=32, mlp=256, time_features=64, context_width=128, action_width=16,
            rope_sections=(2, 1, 1),
        )  # fmt: skip
        vision = _vision(width=96, mlp=288, depth=2, heads=3, patch=8, out=128, positions=64)
        backbone = {"text_config": text, "vision_config": vision, "tie_word_embeddings": True}
        return cls(backbone=backbone, decoder=decoder, max_context_tokens=60, dtype="float32")

    @classmethod
    def qwen3_5_4b(cls) -> QwenVLAConfig:
        """Qwen3.5-4B backbone (4,539,265,536 parameters) and the 1.15 B decoder; the paper's chunk of 16 steps."""
        text = _text(
            width=2560, mlp=9216, layers=32, attention=(16, 4, 256), deltanet=(16, 32, 128), vocabulary=248320,
            positions=262144, sections=[11, 11, 10],
        )  # fmt: skip
        vision = _vision(width=1024, mlp=4096, depth=24, heads=16, patch=16, out=2560, positions=2304)
        backbone = {"text_config": text, "vision_config": vision, "tie_word_embeddings": True}
        body = replace(WIDOWX, action=replace(WIDOWX.action, horizon=16))
        return cls(backbone=backbone, embodiments=(body,))

    @property
    def views(self) -> tuple[str, ...]:
        """Camera tags of all bodies."""
        return tuple(dict.fromkeys(view for body in self.embodiments for view in body.views))

    def save(self, folder: Path) -> None:
        """Write `config.json` into an existing folder."""
        payload = {"format": FORMAT, **asdict(self)}
        (folder / CONFIG_FILE).write_text(json.dumps(payload, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> QwenVLAConfig:
        """Read `config.json`.

        Raises:
            UserError: the file is missing, is no JSON, or does not describe a policy of this kind.
        """
        path = folder / CONFIG_FILE
        advice = "name a folder written by `rl-finetune sft` or `QwenVLAPolicy.save_pretrained`"
        try:
            payload = json.loads(path.read_text())
        except OSError as error:
            raise UserError(
                "no policy there", got=str(folder), expected=f"a folder with {path.name}", do=advice
            ) from error
        except ValueError as error:
            raise UserError("policy config is damaged", got=f"{path}: {error}", expected="JSON", do=advice) from error
        if not isinstance(payload, dict) or payload.pop("format", None) != FORMAT:
            raise UserError("not a Qwen-VLA policy", got=str(path), expected=f'"format": "{FORMAT}"', do=advice)
        try:
            return _from_payload(payload)
        except (TypeError, KeyError) as error:
            raise UserError(
                "policy config does not fit", got=f"{path}: {error}", expected="known fields", do=advice
            ) from error


def _text(
    *,
    width: int,
    mlp: int,
    layers: int,
    attention: tuple[int, int, int],
    deltanet: tuple[int, int, int],
    vocabulary: int,
    positions: int,
    sections: list[int],
) -> dict[str, Any]:
    """Language model: `attention` and `deltanet` are (query, key-value) and (key, value) heads with their width."""
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": attention[0],
        "num_key_value_heads": attention[1],
        "head_dim": attention[2],
        "linear_num_key_heads": deltanet[0],
        "linear_num_value_heads": deltanet[1],
        "linear_key_head_dim": deltanet[2],
        "linear_value_head_dim": deltanet[2],
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e7,
            "partial_rotary_factor": 0.25,
            "mrope_interleaved": True,
            "mrope_section": sections,
        },
    }


def _vision(*, width: int, mlp: int, depth: int, heads: int, patch: int, out: int, positions: int) -> dict[str, Any]:
    return {
        "depth": depth,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_heads": heads,
        "patch_size": patch,
        "out_hidden_size": out,
        "num_position_embeddings": positions,
    }


def _from_payload(payload: dict[str, Any]) -> QwenVLAConfig:
    decoder = dict(payload["decoder"])
    sections = cast(tuple[int, int, int], tuple(decoder.pop("rope_sections")))
    bodies = tuple(
        EmbodimentSpec(**{**body, "views": tuple(body["views"]), "action": ActionConvention(**body["action"])})
        for body in payload["embodiments"]
    )
    rest = {**payload, "decoder": DecoderConfig(**decoder, rope_sections=sections), "embodiments": bodies}
    return QwenVLAConfig(**rest)
