"""What any vectorised environment must keep to, as checks that a user's own environment can run.

    from envs import contract
    contract.check(env)          # raises ContractError in plain words, or returns what it had to leave out

The checks play a few episodes with random actions and one with none; they leave the environment open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass, replace

import numpy as np

from envs.base import VectorEnv
from envs.form import ContractError, check_observation, check_outcome, require
from rl_finetune.errors import UserError
from rl_finetune.types import ActionChunk, ChunkOutcome, Observation, SeedKeys

__all__ = ["ContractError", "check"]

SEED = 20_240
PADDING = 3
"""Channels beyond the body's own in the chunks that are tried: an environment must take padded actions."""


KEY_RULES = (
    "the same keys and actions give the same run",
    "an episode does not depend on its place in the batch, on being alone, or on what the others do",
    "environments of one group begin alike",
    "an environment restarts with the next episode number",
)
"""What is not asked of an environment that is not `keyed`."""


def check(
    env: VectorEnv, *, make: Callable[[int], VectorEnv] | None = None, scale: float = 0.03, chunks: int = 3
) -> tuple[str, ...]:
    """Run every check on `env`.

    Args:
        env: the environment, freshly made or used.
        make: number of environments -> a second one with the same options; adds the check that an environment alone
            does what it does in a batch.
        scale: standard deviation of the random actions, in the environment's units.
        chunks: random chunks in each run.

    Returns:
        The rules that were left out, in words: those about keys where the environment is not `keyed`.

    Raises:
        ContractError: a rule is broken.
    """
    keys = SeedKeys(SEED, np.arange(env.num_envs, dtype=np.int64), np.zeros(env.num_envs, np.int64))
    actions = [_random_chunk(env, scale, number) for number in range(chunks)]
    given: list[np.ndarray] = [keys.env, keys.episode, *(chunk.actions for chunk in actions)]
    for array in given:
        array.flags.writeable = False
    try:
        _check_all(env, keys, actions, make, scale)
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise ContractError("the caller's keys or actions were written to") from error
    return () if env.keyed else KEY_RULES


def _check_all(
    env: VectorEnv, keys: SeedKeys, actions: list[ActionChunk], make: Callable[[int], VectorEnv] | None, scale: float
) -> None:
    run = _play(env, keys, actions)
    for outcome in run.outcomes:
        check_outcome(env, outcome)
    if env.keyed:
        _check_same(run, _play(env, keys, actions), "the same keys and actions gave a different run the second time")
        _check_slots(env, keys, actions, run)
        if make is not None:
            _check_alone(make, keys, actions, run)
        _check_company(env, keys, scale)
        _check_groups(env, keys)
    _check_expert(env, keys)
    _check_not_reused(env, keys, actions)
    _check_time_limit(env, keys)
    _check_refusals(env, keys)


@dataclass(frozen=True, slots=True)
class _Run:
    first: Observation
    outcomes: list[ChunkOutcome]


def _random_chunk(env: VectorEnv, scale: float, number: int) -> ActionChunk:
    """Noise that depends on the environment's number alone, as a batch-independent policy's would."""
    convention = env.spec.embodiment.action
    rows = [np.random.default_rng((number, row)) for row in range(env.num_envs)]
    shape = (convention.horizon, convention.channels + PADDING)
    return _chunk(env, np.stack([scale * rng.standard_normal(shape) for rng in rows]))


def _chunk(env: VectorEnv, actions: np.ndarray) -> ActionChunk:
    mask = np.zeros(actions.shape, bool)
    mask[..., : env.spec.embodiment.action.channels] = True
    return ActionChunk((actions * mask).astype(np.float32), mask)


def _play(env: VectorEnv, keys: SeedKeys, actions: list[ActionChunk]) -> _Run:
    first = env.reset(keys)
    check_observation(env, first, env.num_envs)
    return _Run(deepcopy(first), [deepcopy(env.step_chunk(chunk)) for chunk in actions])


def _differences(left: object, right: object, path: str) -> Iterator[str]:
    """Names of the fields in which two records differ, bit for bit."""
    if is_dataclass(left) and type(left) is type(right):
        for field in fields(left):
            yield from _differences(getattr(left, field.name), getattr(right, field.name), f"{path}.{field.name}")
    elif isinstance(left, np.ndarray):
        if not (isinstance(right, np.ndarray) and np.array_equal(left, right, equal_nan=left.dtype.kind == "f")):
            yield path
    elif isinstance(left, dict) and isinstance(right, dict) and set(left) == set(right):
        for key in left:
            yield from _differences(left[key], right[key], f"{path}[{key!r}]")
    elif left != right:
        yield path


def _check_same(one: _Run, two: _Run, rule: str) -> None:
    for number, (left, right) in enumerate(zip(one.outcomes, two.outcomes, strict=True)):
        different = list(_differences(left, right, f"chunk {number}"))
        require(not different, f"{rule}: {different}")
    different = list(_differences(one.first, two.first, "reset"))
    require(not different, f"{rule}: {different}")


def _check_slots(env: VectorEnv, keys: SeedKeys, actions: list[ActionChunk], run: _Run) -> None:
    """Reverse the environments: each must do what it did, wherever it sits and whoever sits beside it."""
    back = np.arange(env.num_envs)[::-1].copy()
    turned = [ActionChunk(chunk.actions[back], chunk.mask[back]) for chunk in actions]
    other = _play(env, keys.rows(back), turned)
    for mine, place in enumerate(back):
        _check_row(run, mine, other, int(place), "an episode depends on its place in the batch")


def _check_groups(env: VectorEnv, keys: SeedKeys) -> None:
    """Environments of one group begin alike: objectives compare what they did from the same state."""
    if env.num_envs < 2:
        return
    first = env.reset(replace(keys, group=env.num_envs))
    everyone = np.arange(env.num_envs)
    for row in everyone[1:]:
        pair = first.rows(everyone[:1]), first.rows(everyone[row : row + 1])
        different = list(_differences(*pair, f"reset, environments 0 and {row}"))
        require(not different, f"environments of one group (`keys.scene`) begin in different states: {different}")


def _check_alone(make: Callable[[int], VectorEnv], keys: SeedKeys, actions: list[ActionChunk], run: _Run) -> None:
    row = len(keys) - 1
    only = slice(row, row + 1)
    with make(1) as single:
        alone = _play(single, keys.rows(only), [ActionChunk(c.actions[only], c.mask[only]) for c in actions])
    _check_row(run, row, alone, 0, "an environment alone does something else than in a batch")


def _check_company(env: VectorEnv, keys: SeedKeys, scale: float) -> None:
    """Let all but the first do something else, until one of them has begun anew: the first must not notice.

    What an engine keeps besides the state of each world shows only here: in all other runs nobody begins anew beside
    somebody who goes on.
    """
    if env.num_envs < 2:
        return
    first = deepcopy(env.reset(keys))
    seen, actions, outcomes, anew = first, list[ActionChunk](), list[ChunkOutcome](), False
    for number in range(max(2, env.spec.time_limit // env.spec.embodiment.action.horizon)):
        actions.append(_random_chunk(env, scale, number))
        others = _other_chunk(env, seen, scale, number)
        others.actions[0] = actions[-1].actions[0]
        outcomes.append(deepcopy(env.step_chunk(others)))
        seen = outcomes[-1].observation
        if anew:
            break
        anew = bool((outcomes[-1].terminated | outcomes[-1].truncated)[1:].any())
    rule = "an episode depends on what the others do"
    _check_row(_play(env, keys, actions), 0, _Run(first, outcomes), 0, rule)


def _other_chunk(env: VectorEnv, seen: Observation, scale: float, number: int) -> ActionChunk:
    """The expert's, which is done early, or else wild noise."""
    chunk, channels = _random_chunk(env, 10 * scale, number), env.spec.embodiment.action.channels
    with suppress(UserError, NotImplementedError):
        chunk.actions[..., :channels] = env.expert(seen)
    return chunk


def _check_row(one: _Run, row: int, two: _Run, place: int, rule: str) -> None:
    """Compare environment `row` of one run with environment `place` of another."""
    _same_rows(one.first, row, two.first, place, f"{rule}: reset, environment {row}")
    for number, (left, right) in enumerate(zip(one.outcomes, two.outcomes, strict=True)):
        where = f"chunk {number}, environment {row}"
        for name in ("reward", "steps_executed", "terminated", "truncated", "success"):
            same = np.array_equal(getattr(left, name)[row], getattr(right, name)[place])
            require(same, f"{rule}: {name}, {where}")
        for name, values in left.measures.items():
            same = np.array_equal(values[row], right.measures[name][place], equal_nan=True)
            require(same, f"{rule}: measure {name!r}, {where}")
        _same_rows(left.observation, row, right.observation, place, f"{rule}: {where}")
        if left.final_observation is not None and right.final_observation is not None and row in left.final_index:
            rows = (int(np.searchsorted(out.final_index, at)) for out, at in ((left, row), (right, place)))
            _same_rows(left.final_observation, next(rows), right.final_observation, next(rows), f"{rule}: end, {where}")


def _same_rows(left: Observation, row: int, right: Observation, place: int, rule: str) -> None:
    a, b = left.rows(np.array([row])), right.rows(np.array([place]))
    different = list(_differences(a, b, "observation"))
    require(not different, f"{rule}: {different}")


def _check_expert(env: VectorEnv, keys: SeedKeys) -> None:
    """An expert gives finite chunks and stands in the spec: whoever wants demonstrations asks there first."""
    seen, convention = env.reset(keys), env.spec.embodiment.action
    try:
        chunk = env.expert(seen)
    except UserError:
        return
    require(env.spec.expert, "the environment has an expert, but spec.expert is False")
    shape = (env.num_envs, convention.horizon, convention.channels)
    require(chunk.shape == shape, f"expert's chunks must have shape {shape}, got {chunk.shape}")
    require(bool(np.isfinite(chunk).all()), "expert's chunks must be finite")


def _check_not_reused(env: VectorEnv, keys: SeedKeys, actions: list[ActionChunk]) -> None:
    first = env.reset(keys)
    outcome = env.step_chunk(actions[0])
    before = deepcopy((first, outcome))
    env.step_chunk(actions[1])
    for kept, copy in zip((first, outcome), before, strict=True):
        different = list(_differences(copy, kept, type(kept).__name__))
        require(
            not different, f"an earlier record changed when the next chunk was stepped (reused buffer): {different}"
        )


def _check_time_limit(env: VectorEnv, keys: SeedKeys) -> None:
    """Do nothing until every first episode is over; then compare the restarted episodes with a plain reset to them."""
    convention, limit = env.spec.embodiment.action, env.spec.time_limit
    nothing = _chunk(env, np.zeros((env.num_envs, convention.horizon, convention.channels + PADDING)))
    env.reset(keys)
    steps, open_ = np.zeros(env.num_envs, np.int64), np.ones(env.num_envs, bool)
    restarted: dict[int, tuple[Observation, Observation]] = {}
    cut = False
    while open_.any():
        out = env.step_chunk(nothing)
        check_outcome(env, out)
        steps += np.where(open_, out.steps_executed, 0)
        require(bool((steps <= limit).all()), f"an episode outlived the time limit of {limit} steps")
        require(not (open_ & (steps == limit) & ~(out.terminated | out.truncated)).any(), "no end at the time limit")
        require(bool((steps[open_ & out.truncated] == limit).all()), f"truncated before the time limit of {limit}")
        # An episode of one chunk is decided at its limit: nothing is cut off there.
        cut |= bool((open_ & (out.truncated | (limit <= convention.horizon))).any())
        for row, env_row in enumerate(out.final_index):
            if open_[env_row]:
                final = out.final_observation
                assert final is not None
                fresh = out.observation.rows(np.array([env_row]))
                restarted[int(env_row)] = (deepcopy(final.rows(np.array([row]))), deepcopy(fresh))
        open_ &= ~(out.terminated | out.truncated)
    require(cut, "doing nothing never ran into the time limit")
    _check_restarts(env, keys, restarted)


def _check_restarts(env: VectorEnv, keys: SeedKeys, restarted: dict[int, tuple[Observation, Observation]]) -> None:
    following = env.reset(SeedKeys(keys.seed, keys.env, keys.episode + 1))
    for row, (final, fresh) in restarted.items():
        if env.keyed:
            _same_rows(following, row, fresh, 0, f"environment {row} did not restart with the next episode number")
        changed = any(True for _ in _differences(final, fresh, ""))
        require(changed, f"final_observation of environment {row} is that of the next episode, not the last one")


def _check_refusals(env: VectorEnv, keys: SeedKeys) -> None:
    """Actions that are not finite, or of the wrong horizon, must be refused rather than executed."""
    env.reset(keys)
    convention = env.spec.embodiment.action
    bad = np.zeros((env.num_envs, convention.horizon, convention.channels), np.float32)
    bad[-1, 0, 0] = np.nan
    short = np.zeros((env.num_envs, convention.horizon - 1, convention.channels), np.float32)
    for actions, what in ((bad, "a NaN action"), (short, "a chunk of the wrong horizon")):
        try:
            env.step_chunk(ActionChunk(actions, np.ones(actions.shape, bool)))
        except (UserError, ValueError):
            continue
        raise ContractError(f"{what} was executed instead of refused")
