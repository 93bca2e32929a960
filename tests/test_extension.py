"""A policy that is taught a new body keeps what it knows; prompts of each body have their own fixed length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import observations, tiny_policy
from tolerance import assert_rounded_alike

from rl_finetune.errors import UserError
from rl_finetune.policy import QwenVLAPolicy
from rl_finetune.policy.config import WIDOWX
from rl_finetune.policy.extension import SLACK, extend
from rl_finetune.policy.normalisation import Quantiles
from rl_finetune.policy.prompt import body_sentence
from rl_finetune.spec import ActionConvention, EmbodimentSpec
from rl_finetune.types import Observation

TASKS = ("shovel the gravel", "shovel the sand")
DIGGER = EmbodimentSpec(
    "digger", "dual arms", ("ego", "cam_left_wrist"), ActionConvention(19, 4, "joint", "none", "none", 50.0), waist=True
)
QUANTILES = {"digger": Quantiles((-1.0,) * 19, (1.0,) * 19)}


def taught(body: EmbodimentSpec = DIGGER, **options: int) -> QwenVLAPolicy:
    return extend(tiny_policy(), [(body, 16, TASKS)], QUANTILES, **options)


def digging(num: int, text: str = TASKS[0]) -> Observation:
    pictures = np.random.default_rng(0).integers(0, 255, (num, 64, 64, 3), np.uint8)
    return Observation({"ego": pictures, "cam_left_wrist": pictures[::-1].copy()}, (text,) * num, "digger")


def test_what_it_saw_before_it_sees_the_same() -> None:
    before, after = tiny_policy(), taught()
    with torch.no_grad():
        one, two = before.encode(observations(3)), after.encode(observations(3))
    assert_rounded_alike(two.hidden, one.hidden)
    assert torch.equal(one.mask, two.mask)


def test_words_of_the_new_body_are_one_token_each() -> None:
    before, after = tiny_policy(), taught()
    text = body_sentence(DIGGER, TASKS[0])
    pieces = [after.eyes.tokenizer.decode([i]) for i in after.eyes.tokenizer(text)["input_ids"]]
    assert {" digger", " gravel", " dual"} <= set(pieces) and "".join(pieces) == text
    words = after.eyes.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert after.eyes.count(text) == len(words) < before.eyes.count(text)


def test_each_body_has_its_own_length() -> None:
    policy = taught()
    with torch.no_grad():
        new, old = policy.encode(digging(2)), policy.encode(observations(2))
    longest = max(int(new.mask[row].sum()) for row in range(2))
    assert old.hidden.shape[1] == policy.config.max_context_tokens
    assert new.hidden.shape[1] == policy.config.context_tokens["digger"] == longest + SLACK
    with pytest.raises(UserError, match=r"expected at most \d+"):
        policy.encode(digging(1, "shovel " * 40))


@pytest.mark.parametrize(("channels", "width", "kept"), [(7, 16, True), (16, 16, True), (19, 32, False)])
def test_the_decoder_stays_where_it_is_wide_enough(channels: int, width: int, kept: bool) -> None:
    body = replace(DIGGER, action=replace(DIGGER.action, channels=channels))
    start, policy = tiny_policy(), taught(body)
    assert policy.config.decoder.action_width == width
    same = width == 16 and all(
        torch.equal(a, b) for a, b in zip(start.decoder.parameters(), policy.decoder.parameters(), strict=True)
    )
    assert same == kept
    assert torch.equal(start.value_head.weight, policy.value_head.weight)


def test_another_depth_is_a_fresh_decoder() -> None:
    assert len(taught(decoder_depth=3).decoder.blocks) == 3


def test_it_is_the_same_after_saving_and_loading(tmp_path: Path) -> None:
    policy = taught().eval()
    policy.save_pretrained(tmp_path)
    again = QwenVLAPolicy.from_pretrained(tmp_path)
    saved, read = policy.state_dict(), again.state_dict()
    assert saved.keys() == read.keys() and all(torch.equal(saved[name], tensor) for name, tensor in read.items())
    assert again.config == policy.config and [b.tag for b in again.config.embodiments] == [WIDOWX.tag, "digger"]
    with torch.no_grad():
        one, two = policy.encode(digging(2)), again.encode(digging(2))
    assert_rounded_alike(two.hidden, one.hidden)


def test_a_body_taught_again_replaces_the_old_one() -> None:
    faster = replace(WIDOWX, action=replace(WIDOWX.action, rate=10.0))
    policy = extend(tiny_policy(), [(faster, 16, TASKS)], {"widowx": Quantiles((-2.0,) * 7, (2.0,) * 7)})
    assert policy.config.embodiments == (faster,) and policy.quantiles["widowx"].q99[0] == 2.0
