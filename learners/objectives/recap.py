"""Advantage-conditioned learning (RECAP, Physical Intelligence 2025): supervised, offline, on everything that was done.

Chunks above a quantile of the advantages are learned with "Advantage: positive" in the prompt, the others with
"Advantage: negative", a tenth without either; acting, v = v_0 + beta (v_positive - v_0). The words are put in by
`learners.views`, so that what is left here is the flow-matching loss.
"""

from __future__ import annotations

from learners.objectives.base import LossOutputs, PairInputs, masked_mean
from rl_finetune.config.objectives import RECAPSection


def recap_loss(inputs: PairInputs, config: RECAPSection) -> LossOutputs:
    """Mean squared velocity error over pairs; advantages act through the prompt alone."""
    error = (inputs.velocity - inputs.target) ** 2
    loss = masked_mean(error, inputs.mask[:, None]).mean()
    return LossOutputs(loss, {"flow_loss": loss.detach()})
