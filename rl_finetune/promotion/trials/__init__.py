"""Blinded trials on real robots, stopped as soon as the evidence suffices."""

from rl_finetune.promotion.trials.book import Book, TrialsStatus, begin
from rl_finetune.promotion.trials.decision import Decision
from rl_finetune.promotion.trials.history import Correction, Result
from rl_finetune.promotion.trials.plan import Trial

__all__ = ["Book", "Correction", "Decision", "Result", "Trial", "TrialsStatus", "begin"]
