"""What one record of an environment must look like: the part of `envs.contract` that needs no second run."""

from __future__ import annotations

import numpy as np

from envs.base import VectorEnv
from rl_finetune.errors import UserError, brief
from rl_finetune.instructions import instruction
from rl_finetune.types import ChunkOutcome, IntArray, Observation


class ContractError(AssertionError):
    """An environment breaks the contract; the message says which rule and where."""


def require(holds: bool | np.bool_, rule: str) -> None:
    """Raise a `ContractError` that names the rule, unless it holds."""
    if not holds:
        raise ContractError(rule)


def _check_array(name: str, array: object, shape: tuple[int, ...], dtype: type) -> None:
    require(isinstance(array, np.ndarray), f"{name} must be a numpy array, got {type(array).__name__}")
    assert isinstance(array, np.ndarray)
    require(array.shape == shape, f"{name} must have shape {shape}, got {array.shape}")
    require(array.dtype == dtype, f"{name} must be {np.dtype(dtype)}, got {array.dtype}")
    require(bool(np.isfinite(array).all()), f"{name} must be finite")


def check_observation(env: VectorEnv, seen: Observation, rows: int) -> None:
    """Shapes, types, views and labels of an observation of `rows` environments."""
    body, size = env.spec.embodiment, env.spec.image_size
    require(seen.embodiment == body.tag, f"observation.embodiment must be {body.tag!r}, got {seen.embodiment!r}")
    require(set(seen.images) == set(body.views), f"images must be {body.views}, got {tuple(seen.images)}")
    for tag, image in seen.images.items():
        _check_array(f"image {tag!r}", image, (rows, size, size, 3), np.uint8)
        require(rows == 0 or image.std() > 1, f"image {tag!r} is one flat colour: nothing was drawn")
    require(len(seen.instruction) == rows, f"instruction must have {rows} entries, got {len(seen.instruction)}")
    for text in seen.instruction:
        require(_is_instruction(text), f"instruction must be one line of text without '<|', got {brief(text)}")
    felt = seen.proprioception
    if felt is not None:
        _check_array("proprioception", felt, (rows, *felt.shape[1:2]), np.float32)
    names = env.spec.privileged
    require((seen.privileged is None) == (not names), "privileged state and spec.privileged must come together")
    if seen.privileged is not None:
        _check_array("privileged", seen.privileged, (rows, len(names)), np.float32)
    require((seen.grounding is None) == (not env.spec.things), "grounding labels and spec.things must come together")
    if seen.grounding is not None:
        labels = seen.grounding
        require(labels.names == env.spec.things, f"grounding.names must be {env.spec.things}, got {labels.names}")
        _check_array("grounding.points", labels.points, (rows, len(labels.names), 2), np.float32)
        _check_array("grounding.present", labels.present, (rows, len(labels.names)), np.bool_)
        _check_array("grounding.target", labels.target, (rows,), np.int64)
        named = labels.present[np.arange(rows), labels.target]
        require(bool(named.all()), "grounding.target must be a thing that is present")


def _is_instruction(text: object) -> bool:
    try:
        return instruction(text) == text
    except UserError:
        return False


def check_outcome(env: VectorEnv, out: ChunkOutcome) -> None:
    """Shapes, types and what must fit together in an outcome of all environments."""
    if out.failures:
        first, *more = out.failures
        raise ContractError(f"an environment broke down: {first}" + (f"; so did {len(more)} others" if more else ""))
    n, horizon = env.num_envs, env.spec.embodiment.action.horizon
    _check_array("reward", out.reward, (n, horizon), np.float32)
    _check_array("steps_executed", out.steps_executed, (n,), np.int64)
    for name in ("terminated", "truncated", "success"):
        _check_array(name, getattr(out, name), (n,), np.bool_)
    require(bool(((out.steps_executed >= 1) & (out.steps_executed <= horizon)).all()), "steps_executed must be 1..H")
    over = out.terminated | out.truncated
    stopped = out.steps_executed < horizon
    require(not (stopped & ~over).any(), "a chunk stopped early although no episode ended")
    after = np.arange(horizon) >= out.steps_executed[:, None]
    require(not out.reward[after].any(), "reward must be zero after the episode ended")
    require(not (out.terminated & out.truncated).any(), "an episode is terminated or truncated, never both")
    require(not (out.success & out.truncated).any(), "a truncated episode cannot be a success")
    require(bool(out.reward_terms), "reward_terms must name at least one term")
    for name, term in out.reward_terms.items():
        _check_array(f"reward term {name!r}", term, (n, horizon), np.float32)
    total = np.sum(list(out.reward_terms.values()), axis=0)
    require(np.allclose(total, out.reward, atol=1e-5), "reward_terms must sum to reward")
    for name, values in out.measures.items():
        _check_array(f"measure {name!r}", np.where(np.isnan(values), np.float32(0), values), (n,), np.float32)
        require(bool(np.isnan(values[~over]).all()), f"measure {name!r} must be NaN where no episode ended")
    check_observation(env, out.observation, n)
    _check_final(env, out, np.flatnonzero(over))


def _check_final(env: VectorEnv, out: ChunkOutcome, over: IntArray) -> None:
    require(
        np.array_equal(out.final_index, over),
        f"final_index must list the finished environments {over.tolist()} ascending, got {out.final_index.tolist()}",
    )
    require(
        (out.final_observation is None) == (len(over) == 0),
        "final_observation must be there when an episode ended, and None otherwise",
    )
    if out.final_observation is not None:
        check_observation(env, out.final_observation, len(over))
