"""A critic that may see the simulator's state; the paper's linear head lives in the policy itself.

Only training needs values, so a critic may know what the robot cannot (asymmetric actor-critic, Pinto et al. 2018).
"""

from __future__ import annotations

from torch import Tensor, nn

from rl_finetune.config.schema import TrainConfig
from rl_finetune.errors import UserError

SCALE = 10.0
"""States come in metres: a table is a few tenths of one across."""


class PrivilegedCritic(nn.Module):
    """Two hidden layers on the privileged state; starts at zero everywhere."""

    def __init__(self, state_width: int, hidden: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(state_width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1)
        )
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, state: Tensor) -> Tensor:
        """Value [N] of states [N, S]."""
        return self.layers(SCALE * state)[:, 0]


def check_state(job: TrainConfig, privileged: int) -> None:
    """Refuse a privileged critic without one kind of state to judge.

    Args:
        job: what is trained.
        privileged: S, channels of the privileged state that all its worlds share; 0 for none.

    Raises:
        UserError: the job asks for such a critic and S is 0.
    """
    if job.critic_kind == "privileged" and not privileged:
        raise UserError(
            "no privileged state that one critic could judge", got=f"critic.kind=privileged with {job.env.title}",
            expected="worlds whose specs name the same privileged channels", do="set critic.kind=linear",
        )  # fmt: skip
