"""Objectives by name. Adding one is a file, a config class and a line here."""

from __future__ import annotations

from learners.objectives.ppo import ppo_loss

OBJECTIVES = {"ppo": ppo_loss}
