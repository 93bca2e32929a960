"""Put the block of one colour where it belongs and let go: on a coloured plate, or on another block."""

from __future__ import annotations

import numpy as np

from envs.mujoco.task import Float64
from envs.mujoco.tasks.blocks import EDGE, Blocks, Drawn, Known, Roles
from envs.mujoco.tasks.grasping import AIMED, UP, either
from envs.mujoco.tasks.objects import RELEASE, Scene, box
from envs.mujoco.tasks.plans import Corner
from envs.mujoco.tasks.tabletop import COLOURS, PARKED, RGBA
from envs.mujoco.variation import Shape
from rl_finetune.types import BoolArray, IntArray

PLATE = np.array([0.04, 0.04, 0.004])
"""Half sizes in metres: of every plate."""
CENTRED = 0.02
"""Metres beside the middle of what it stands on at which a block still counts."""
LEVEL = 0.005
"""Metres above or below."""
AWAY = 0.05
"""Metres between the middle of the block and a hand that has left it."""
CLEAR = 0.07
"""Metres above its goal at which a block is carried; an open hand that has risen by as much has left it."""
DROP = 0.002
"""Metres above its goal at which the block is let go."""
PAUSE = 0.4
"""Seconds in which a gripper opens."""
NEARLY = 0.012
"""Metres above its goal at which a held block is let go."""


class Place(Blocks):
    """What putting and stacking share."""

    def good(self, roles: Roles, scene: Scene) -> BoolArray:
        """See `Blocks.good`: the block stands where it belongs, and the open gripper has left it."""
        rows, half = np.arange(len(roles.target)), EDGE / 2
        middle, low = scene.places[rows, :, roles.target], scene.lowest(self.half)[rows, :, roles.target]
        goal = self.goal_at(roles, scene)
        beside = np.hypot(*np.moveaxis((middle - goal)[..., :2], -1, 0))
        # a tilted block reaches lower than half its edge below its middle
        stands = (np.abs(low - goal[..., 2]) <= LEVEL) & (middle[..., 2] - low <= half + LEVEL)
        apart = np.linalg.norm(scene.tools - middle[..., None, :], axis=-1) >= AWAY
        free = (apart & (scene.width >= EDGE + RELEASE)).all(-1)
        return (beside <= CENTRED) & stands & free

    def goal_at(self, roles: Roles, scene: Scene) -> Float64:
        """[N, H, 3] where the middle of the target's lower face belongs."""
        raise NotImplementedError

    def goals(self, roles: Roles, tops: Float64) -> Float64:
        """See `Blocks.goals`."""
        return tops[np.arange(len(tops)), roles.goal]

    def plan(self, known: Known, offset: Float64) -> list[Corner]:
        """See `Blocks.plan`: grasp, lift, carry, lower, let go, leave; from the first that is still to be done."""
        none = np.zeros(len(known.tool))
        at = known.block + offset
        at[:, 2] = np.maximum(known.block[:, 2], self.body.boxes[0, 2, 0])
        fetch = [*self.grasp(known, offset), *self._deliver(known, at, known.turn, at, offset)]
        start = Corner(known.tool, known.yaw, none - 1, none)
        carry = [start, *self._deliver(known, known.tool, known.yaw, known.block, offset)]
        rise = known.tool * [1.0, 1.0, 0.0] + UP * np.maximum(known.tool[:, 2], self._height(known))[:, None]
        opened = Corner(known.tool, known.yaw, none + 1, none + PAUSE * (known.width < EDGE + RELEASE))
        leave = [opened, Corner(rise, known.yaw, none + 1, none)]
        return either(self._arrived(known), leave, either(known.holding, carry, fetch))

    def _arrived(self, known: Known) -> BoolArray:
        """[N] whether the block is where it may be let go."""
        gap = known.block - UP * EDGE / 2 - known.goal
        low = np.where(known.holding, NEARLY, LEVEL)
        return (np.hypot(*gap[:, :2].T) <= AIMED) & (np.abs(gap[:, 2]) <= low)

    def _height(self, known: Known) -> Float64:
        """[N] height in metres at which a block is carried, by its middle."""
        return np.maximum(known.goal[:, 2], EDGE) + CLEAR + EDGE / 2

    def _deliver(self, known: Known, tool: Float64, yaw: Float64, block: Float64, offset: Float64) -> list[Corner]:
        """From a closed gripper at `tool` [N, 3] with the block at `block` [N, 3] to an open one above the goal."""
        none = np.zeros(len(tool))
        over = known.goal + UP * (EDGE / 2 + DROP) + tool - block + offset * [1.0, 1.0, 0.0]
        height = (self._height(known) + (tool - block)[:, 2])[:, None]
        near = np.hypot(*(tool - over)[:, :2].T)[:, None] <= AIMED
        lifted = np.where(near, tool, tool * [1.0, 1.0, 0.0] + UP * np.maximum(tool[:, 2:], height))
        across = np.where(near, tool, over * [1.0, 1.0, 0.0] + UP * height)
        return [
            Corner(lifted, yaw, none - 1, none),
            Corner(across, yaw, none - 1, none),
            Corner(over, yaw, none + 1, none + PAUSE),
            Corner(over * [1.0, 1.0, 0.0] + UP * height, yaw, none + 1, none),
        ]


class PutOn(Place):
    """Two blocks and two plates, all of different colours."""

    coloured = dict(Blocks.coloured) | {
        f"{colour}_plate": (Shape("cylinder", (PLATE[0], PLATE[1], PLATE[2])),) for colour in COLOURS
    }
    wordings = ("{c} belongs on the dish that is {d}: bring it there", "drop off the {c} cube at the {d} dish")
    plate_top = 2 * PLATE[2]
    phrases = ("put the {c} block on the {d} plate", "place the {c} block onto the {d} plate",
               "move the {c} block to the {d} plate")  # fmt: skip

    def tasks(self) -> tuple[str, ...]:
        """See `Objects.tasks`."""
        return _spoken(self.phrases)

    def fixtures(self) -> str:
        """See `Objects.fixtures`."""
        contact = 'contype="2" conaffinity="3" priority="2"'
        return "".join(
            f'<body name="{colour}_plate" mocap="true">{box(f"{colour}_plate", PLATE, RGBA[colour], contact)}</body>'
            for colour in COLOURS
        )

    def laid_plates(self, spots: Float64, plates: BoolArray) -> Float64:
        """See `Blocks.laid_plates`."""
        turn = np.tile([1.0, 0.0, 0.0, 0.0], (4, 1))
        return np.where(plates[:, None], np.concatenate([spots - UP * PLATE[2], turn], -1), PARKED)

    def lay(self, rng: np.random.Generator) -> Drawn:
        """See `Blocks.lay`."""
        order = rng.permutation(4)
        blocks, plates = order[:2], order[2:]
        return Drawn(blocks, plates, int(plates[0]), _say(rng, self.phrases, blocks[0], plates[0]))

    def goal_at(self, roles: Roles, scene: Scene) -> Float64:
        """See `Place.goal_at`."""
        spots = roles.spots[np.arange(len(roles.goal)), roles.goal]
        return np.broadcast_to(spots[:, None], (*scene.places.shape[:2], 3))


class Stack(Place):
    """Three blocks of different colours."""

    wordings = ("make a tower, {c} above {d}", "let the {c} cube rest upon the one that is {d}")
    phrases = ("stack the {c} block on the {d} block", "put the {c} block on top of the {d} block",
               "set the {c} block down on the {d} block")  # fmt: skip

    def tasks(self) -> tuple[str, ...]:
        """See `Objects.tasks`."""
        return _spoken(self.phrases)

    def lay(self, rng: np.random.Generator) -> Drawn:
        """See `Blocks.lay`."""
        blocks = rng.permutation(4)[:3]
        return Drawn(blocks, np.empty(0, np.int64), int(blocks[1]), _say(rng, self.phrases, blocks[0], blocks[1]))

    def goal_at(self, roles: Roles, scene: Scene) -> Float64:
        """See `Place.goal_at`; the lower block must lie on the table."""
        rows = np.arange(len(roles.goal))
        lower = scene.places[rows, :, roles.goal]
        lies = scene.lowest(self.half)[rows, :, roles.goal] <= LEVEL
        return np.where(lies[..., None], lower + UP * EDGE / 2, np.inf)


def _say(rng: np.random.Generator, phrases: tuple[str, ...], first: IntArray, second: IntArray) -> str:
    phrase = phrases[rng.integers(len(phrases))]
    return phrase.format(c=COLOURS[first], d=COLOURS[second])


def _spoken(phrases: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(p.format(c=c, d=d) for c in COLOURS for d in COLOURS if c != d for p in phrases)
