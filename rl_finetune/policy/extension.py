"""Teach a policy new bodies: words, views and room for them; what it has learned is kept where it still fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from rl_finetune.policy.normalisation import Quantiles
from rl_finetune.policy.policy import QwenVLAPolicy
from rl_finetune.policy.prompt import body_sentence, prompt, view_tokens
from rl_finetune.spec import EmbodimentSpec

SLACK = 6
"""Tokens beyond the longest known prompt, for other words of the same task."""
WIDTH_STEP = 16
"""Padded action channels come in multiples of this."""


def extend(
    policy: QwenVLAPolicy,
    bodies: Sequence[tuple[EmbodimentSpec, int, Sequence[str]]],
    quantiles: Mapping[str, Quantiles],
    *,
    decoder_depth: int | None = None,
) -> QwenVLAPolicy:
    """The policy that knows `bodies` too, or knows them better.

    The backbone is kept, with tokens for new views and words. The decoder is kept unless actions need more channels
    than it has or `decoder_depth` differs; then it starts afresh.

    Args:
        policy: stays as it is, but shares the backbone's weights with the result.
        bodies: each with the visual tokens of one of its pictures and its tasks in words.
        quantiles: robot tag -> normalisation of each of them.
        decoder_depth: blocks of the decoder; None keeps the number.
    """
    from rl_finetune.policy.backbone import with_words

    tags = [tag for body, _, _ in bodies for view in body.views for tag in view_tokens(view)]
    backbone = with_words(policy.eyes, tags, [body_sentence(body, task) for body, _, tasks in bodies for task in tasks])
    prompts = {body.tag: [prompt(body, task, side) for task in tasks] for body, side, tasks in bodies}
    longest = {tag: max(backbone.count(text) for text in texts) + SLACK for tag, texts in prompts.items()}
    known = {body.tag: body for body in policy.config.embodiments} | {body.tag: body for body, _, _ in bodies}
    decoder = policy.config.decoder
    channels = max(body.action.channels for body in known.values())
    wider = replace(
        decoder, depth=decoder_depth or decoder.depth,
        action_width=max(decoder.action_width, -(-channels // WIDTH_STEP) * WIDTH_STEP),
    )  # fmt: skip
    lengths = policy.config.context_tokens | longest
    config = replace(policy.config, embodiments=tuple(known.values()), decoder=wider, context_tokens=lengths)
    backbone.lengths = dict(lengths)
    extended = QwenVLAPolicy(config, backbone, policy.quantiles | dict(quantiles))
    with torch.no_grad():
        extended.value_head.load_state_dict(policy.value_head.state_dict())
        if wider == decoder:
            extended.decoder.load_state_dict(policy.decoder.state_dict())
    return extended
