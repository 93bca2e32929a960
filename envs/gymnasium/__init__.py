"""Any gymnasium environment behind the contract.

sync   -> single.GymnasiumEpisode, one by one in `envs.simple.SimpleWorld`: exact, keyed, failures stay in their row
others -> together.TogetherWorld: all environments step at once, and restart in the way that they declare
"""

from __future__ import annotations

from envs.base import VectorEnv
from envs.gymnasium.options import NAME, GymnasiumOptions, spec

__all__ = ["NAME", "GymnasiumOptions", "build", "spec"]


def build(num_envs: int, options: GymnasiumOptions) -> VectorEnv:
    """The environments that `options` name.

    Raises:
        UserError: gymnasium knows no such environment, or it cannot be driven so.
    """
    from envs.gymnasium.making import make_together, probe
    from envs.gymnasium.single import GymnasiumEpisode
    from envs.gymnasium.together import TogetherWorld
    from envs.simple import SimpleWorld

    promised = spec(options)
    if probe(options).one_by_one:
        return SimpleWorld(num_envs, promised, lambda: GymnasiumEpisode(options))
    return TogetherWorld(make_together(options, num_envs), options, promised)
