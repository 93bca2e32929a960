"""A starting policy without pictures: state eyes and a small hand, taught by a few demonstrations.

`python -m benchmarks.objectives.state_policy FOLDER` makes it (seconds); a folder that holds it already is left alone.
Teaching stops early on purpose: a policy that succeeds in four of ten leaves room for reinforcement learning.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import envs
from actors.demonstrations import collect
from benchmarks.objectives.state_eyes import TOKENS, StateEyes
from learners.supervised import encode_all, flow_loss
from rl_finetune.policy import QwenVLAConfig, QwenVLAPolicy, normalisation
from rl_finetune.policy.policy import WEIGHTS_FILE
from rl_finetune.types import FloatArray

SHIPPED = Path("checkpoints/qwen-vla-tiny")
RECIPE: dict[str, Any] = {
    "width": 64, "depth": 2, "heads": 4, "head_dim": 16, "mlp": 128, "rope_fraction": 0.5, "demonstrations": 2000,
    "noise": 0.05, "warp": 0.04, "waves": 15.0, "scatter": 0.01, "steps": 600, "batch": 128, "lr": 2e-3,
    "seed": 0, "eyes": "state",
}  # fmt: skip
RECIPE_FILE = "recipe.json"


def build(folder: Path, recipe: dict[str, Any] = RECIPE) -> None:
    """Write the policy into `folder` unless it is there already."""
    if made(folder) == recipe:
        return
    print(f"making the starting policy in {folder}", flush=True)
    torch.set_num_threads(1)
    policy = teach(fresh(recipe), recipe)
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    policy.config.save(beside)
    normalisation.save(beside, policy.quantiles)
    save_file({k: v.contiguous() for k, v in policy.head_state()}, beside / WEIGHTS_FILE)
    (beside / RECIPE_FILE).write_text(json.dumps(recipe, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


def made(folder: Path) -> dict[str, Any] | None:
    """The recipe of the policy in the folder, if this module made one there."""
    file = folder / RECIPE_FILE
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found if found.get("eyes") == "state" else None


def load(folder: Path) -> QwenVLAPolicy:
    """The policy with its eyes."""
    policy = QwenVLAPolicy.from_pretrained(folder, with_backbone=False)
    policy.backbone = StateEyes(policy.config.decoder.context_width)  # type: ignore[assignment]
    return policy.eval()


def fresh(recipe: dict[str, Any]) -> QwenVLAPolicy:
    """Untaught: a small decoder of the project's own kind, with the shipped policy's action quantiles."""
    torch.manual_seed(recipe["seed"])
    tiny = QwenVLAConfig.load(SHIPPED)
    size = {name: recipe[name] for name in ("width", "depth", "heads", "head_dim", "mlp", "rope_fraction")}
    config = replace(tiny, decoder=replace(tiny.decoder, **size), max_context_tokens=TOKENS)
    policy = QwenVLAPolicy(config, None, normalisation.load(SHIPPED))
    policy.backbone = StateEyes(config.decoder.context_width)  # type: ignore[assignment]
    return policy


def displaced(actions: FloatArray, target: FloatArray, recipe: dict[str, Any]) -> FloatArray:
    """Demonstrations [M, H, c] of a teacher whose picture of the table is warped.

    An aim misses by `warp` metres times waves over where the block is [M, 3], and by a `scatter` of its own; the same
    at every step of a chunk, so that trying again does not help. What to correct depends on the place.
    """
    rng = np.random.default_rng((recipe["seed"], 1))
    waves, shift = recipe["waves"] * rng.standard_normal((3, 3)), rng.uniform(0, 2 * np.pi, 3)
    error = recipe["warp"] * np.sin(target @ waves + shift) + recipe["scatter"] * rng.standard_normal(target.shape)
    taught = actions.copy()
    taught[..., :3] += error[:, None].astype(np.float32)
    return taught


def teach(policy: QwenVLAPolicy, recipe: dict[str, Any]) -> QwenVLAPolicy:
    """Flow matching on expert chunks, linearly decreasing learning rate."""
    seed, steps = recipe["seed"], recipe["steps"]
    with envs.make("widowx_reach", 64) as world:
        shown = collect(world, recipe["demonstrations"], seed=seed + 1, noise=recipe["noise"])
    body = policy.config.embodiments[0]
    assert shown.observation.privileged is not None
    taught = displaced(shown.actions, shown.observation.privileged[:, 3:6], recipe)
    wanted = policy.quantiles[body.tag].normalise(taught, policy.config.decoder.action_width)
    actions, contexts = torch.from_numpy(wanted), encode_all(policy, shown.observation)
    rng = torch.Generator().manual_seed(seed)
    adam = torch.optim.AdamW(policy.decoder.parameters(), lr=recipe["lr"])
    for step in range(steps):
        adam.param_groups[0]["lr"] = recipe["lr"] * (1 - step / steps)
        rows = torch.from_numpy(np.random.default_rng((seed, step)).integers(len(actions), size=recipe["batch"]))
        loss = flow_loss(policy, contexts.rows(rows), actions[rows], body, "uniform", rng)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return policy.eval()


if __name__ == "__main__":
    build(Path(sys.argv[1]))
