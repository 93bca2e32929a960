"""A model of its own for each varied world: the compiled one, with what the episode varies written over it."""

from __future__ import annotations

import copy

import mujoco
import numpy as np

from envs.mujoco import kinematics as kin
from envs.mujoco.task import Float64
from envs.mujoco.variation import Light, Shape, Sway, Variation

TYPES = {
    "box": mujoco.mjtGeom.mjGEOM_BOX, "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER, "sphere": mujoco.mjtGeom.mjGEOM_SPHERE
}  # fmt: skip
WRITTEN = (
    "geom_rgba", "geom_type", "geom_size", "geom_pos", "geom_quat", "geom_sameframe", "geom_rbound", "geom_aabb",
    "geom_friction", "body_mass", "body_inertia", "bvh_aabb", "light_dir", "light_diffuse", "cam_pos", "cam_quat",
)  # fmt: skip
"""Arrays of the model that an episode may change."""
SHAPED = ("geom_type", "geom_size", "geom_pos", "geom_quat", "geom_sameframe", "geom_rbound", "geom_aabb")
WEIGHED = ("body_mass", "body_inertia")
"""Of free bodies, whose shapes are as high as the one they replace: their middle stays the centre of mass."""


class Wardrobe:
    """Models of N worlds: the plain one for all that vary nothing, copies for the others."""

    def __init__(self, xml: str, model: mujoco.MjModel, num_envs: int) -> None:
        """Begin with the plain `model`, compiled from `xml`, everywhere."""
        self.models = [model] * num_envs
        self._xml, self._plain = xml, model
        self._copies: dict[int, mujoco.MjModel] = {}
        self._cut: dict[tuple[str, Shape], mujoco.MjModel] = {}
        self._data = mujoco.MjData(model)
        self._robot, self._free = robot_geoms(model), _free_bodies(model)

    def dress(self, row: int, variation: Variation | None) -> None:
        """Make the model of world `row` what its episode asks for."""
        if variation is None:
            self.models[row] = self._plain
            return
        if row not in self._copies:
            self._copies[row] = copy.copy(self._plain)
        model = self.models[row] = self._copies[row]
        for name in WRITTEN:
            getattr(model, name)[:] = getattr(self._plain, name)
        for geom, shape in variation.shapes.items():
            self._reshape(model, geom, shape)
        self._paint(model, variation)
        _light(model, self._plain, variation.light)
        if variation.sway is not None:
            _sway(model, variation.sway)
        self._weigh(model, variation)

    def _paint(self, model: mujoco.MjModel, variation: Variation) -> None:
        if variation.tint is not None:
            share, own = variation.tint[3], model.geom_rgba[self._robot, :3]
            model.geom_rgba[self._robot, :3] = (1 - share) * own + share * np.array(variation.tint[:3])
        for geom, colour in variation.colours.items():
            model.geom_rgba[_geoms(model, geom), :3] = colour

    def _reshape(self, model: mujoco.MjModel, name: str, shape: Shape) -> None:
        """Take over what MuJoCo's compiler makes of the shape: bounds and inertia too."""
        cut = self._cut.get((name, shape))
        if cut is None:
            cut = self._cut[name, shape] = _cut(self._xml, self._plain, name, shape)
        geom = model.geom(name).id
        body = int(model.geom_bodyid[geom])
        for each in SHAPED:
            getattr(model, each)[geom] = getattr(cut, each)[geom]
        for each in WEIGHED if body in self._free else ():
            getattr(model, each)[body] = getattr(cut, each)[body]
        boxes = slice(model.body_bvhadr[body], model.body_bvhadr[body] + model.body_bvhnum[body])
        model.bvh_aabb[boxes] = cut.bvh_aabb[boxes]

    def _weigh(self, model: mujoco.MjModel, variation: Variation) -> None:
        model.body_mass[self._free] *= variation.mass
        model.body_inertia[self._free] *= variation.mass
        touching = np.isin(model.geom_bodyid, self._free) | (self._robot & (model.geom_contype > 0))
        model.geom_friction[touching] *= variation.friction
        mujoco.mj_setConst(model, self._data)  # inverse weights follow from masses


def robot_geoms(model: mujoco.MjModel) -> np.ndarray:
    """[ngeom] whether a geom is the robot's: of a tree that is neither the world's own, nor a mocap body, nor free."""
    root = model.body_rootid[model.geom_bodyid]
    free = np.isin(root, _free_bodies(model))
    robot: np.ndarray = (root != 0) & (model.body_mocapid[root] < 0) & ~free
    return robot


def _geoms(model: mujoco.MjModel, name: str) -> np.ndarray:
    """Numbers of the geom of that name, or of all geoms of the body of that name."""
    geom = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, name)
    return np.array([geom]) if geom >= 0 else np.flatnonzero(model.geom_bodyid == model.body(name).id)


def _free_bodies(model: mujoco.MjModel) -> np.ndarray:
    bodies: np.ndarray = model.jnt_bodyid[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]
    return bodies


def _cut(xml: str, plain: mujoco.MjModel, name: str, shape: Shape) -> mujoco.MjModel:
    """The model with one geom in another shape, standing on what it stood on."""
    spec = mujoco.MjSpec.from_string(xml)
    geom = spec.geom(name)
    x, y, z = shape.half
    geom.type, geom.size = TYPES[shape.kind], {"box": [x, y, z], "cylinder": [x, z, 0], "sphere": [x, 0, 0]}[shape.kind]
    x, y, bottom = plain.geom(name).pos
    geom.pos = [x, y, bottom + z - _height(plain, name)]
    return spec.compile()


def _height(model: mujoco.MjModel, geom: str) -> float:
    """Half height in metres of an upright geom."""
    return float(model.geom_aabb[model.geom(geom).id, 5])


def _light(model: mujoco.MjModel, plain: mujoco.MjModel, light: Light | None) -> None:
    head, own = model.vis.headlight, plain.vis.headlight
    head.ambient, head.diffuse = own.ambient, own.diffuse
    if light is None:
        return
    direction = np.array(light.direction)
    model.light_dir[:] = direction / np.linalg.norm(direction)
    model.light_diffuse *= np.array(light.lamp)
    head.ambient, head.diffuse = own.ambient * np.array(light.ambient), own.diffuse * np.array(light.ambient)


def _sway(model: mujoco.MjModel, sway: Sway) -> None:
    """Move a camera in its own frame."""
    eye = model.camera(sway.camera).id
    quaternion: Float64 = model.cam_quat[eye].copy()
    model.cam_pos[eye] += kin.matrix_from_quaternion(quaternion) @ np.array(sway.shift)
    model.cam_quat[eye] = kin.multiply(quaternion, kin.quaternion_from_vector(np.array(sway.turn)))
