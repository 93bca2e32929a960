"""Teach a policy new bodies: words, views and room for them; what it has learned is kept where it still fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from rl_finetune.policy.config import DecoderConfig, QwenVLAConfig
from rl_finetune.policy.normalisation import Quantiles
from rl_finetune.policy.policy import QwenVLAPolicy
from rl_finetune.policy.prompt import body_sentence, prompt, view_tokens
from rl_finetune.spec import EmbodimentSpec

SLACK = 6
"""Tokens beyond the longest known prompt, for other words of the same task."""
WIDTH_STEP = 16
"""Padded action channels come in multiples of this."""

Taught = tuple[EmbodimentSpec, int, Sequence[str]]
"""A body, the visual tokens of one of its pictures, and its tasks in words."""


def fresh(
    bodies: Sequence[Taught], quantiles: Mapping[str, Quantiles], *, decoder_depth: int | None = None
) -> QwenVLAPolicy:
    """A tiny policy with words for `bodies` that has learned nothing yet; the caller seeds torch. See `extend`."""
    from rl_finetune.policy.backbone import tiny_tokenizer

    tiny = QwenVLAConfig.tiny()
    views = tuple(dict.fromkeys(view for body, _, _ in bodies for view in body.views))
    tokenizer = tiny_tokenizer(_sentences(bodies), views, tiny.backbone["text_config"]["vocab_size"])
    config = replace(
        tiny, embodiments=tuple(body for body, _, _ in bodies), decoder=_decoder(tiny.decoder, bodies, decoder_depth),
        context_tokens=_lengths(lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]), bodies),
    )  # fmt: skip
    return QwenVLAPolicy.build(config, tokenizer, dict(quantiles))


def extend(
    policy: QwenVLAPolicy,
    bodies: Sequence[Taught],
    quantiles: Mapping[str, Quantiles],
    *,
    decoder_depth: int | None = None,
) -> QwenVLAPolicy:
    """The policy that knows `bodies` too, or knows them better.

    The backbone is kept, with tokens for new views and words. The decoder is kept unless actions need more channels
    than it has or `decoder_depth` differs; then it starts afresh.

    Args:
        policy: stays as it is, but shares the backbone's weights with the result.
        bodies: those to be taught.
        quantiles: robot tag -> normalisation of each of them.
        decoder_depth: blocks of the decoder; None keeps the number.
    """
    from rl_finetune.policy.backbone import with_words

    tags = [tag for body, _, _ in bodies for view in body.views for tag in view_tokens(view)]
    backbone = with_words(policy.eyes, tags, _sentences(bodies))
    known = {body.tag: body for body in policy.config.embodiments} | {body.tag: body for body, _, _ in bodies}
    decoder = policy.config.decoder
    wider = _decoder(decoder, bodies, decoder_depth)
    lengths = policy.config.context_tokens | _lengths(backbone.count, bodies)
    config = replace(policy.config, embodiments=tuple(known.values()), decoder=wider, context_tokens=lengths)
    backbone.lengths = dict(lengths)
    extended = QwenVLAPolicy(config, backbone, policy.quantiles | dict(quantiles))
    with torch.no_grad():
        extended.value_head.load_state_dict(policy.value_head.state_dict())
        if wider == decoder:
            extended.decoder.load_state_dict(policy.decoder.state_dict())
    return extended


def _sentences(bodies: Sequence[Taught]) -> list[str]:
    return [body_sentence(body, task) for body, _, tasks in bodies for task in tasks]


def _lengths(count: Callable[[str], int], bodies: Sequence[Taught]) -> dict[str, int]:
    """Robot tag -> tokens of its contexts."""
    return {
        body.tag: max(count(prompt(body, task, side)) for task in tasks) + SLACK for body, side, tasks in bodies
    }  # fmt: skip


def _decoder(decoder: DecoderConfig, bodies: Sequence[Taught], depth: int | None) -> DecoderConfig:
    """Wide enough for the actions of all bodies."""
    channels = max(body.action.channels for body, _, _ in bodies)
    width = max(decoder.action_width, -(-channels // WIDTH_STEP) * WIDTH_STEP)
    return replace(decoder, depth=depth or decoder.depth, action_width=width)
