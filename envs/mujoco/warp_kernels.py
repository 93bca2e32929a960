"""Device code of the mujoco_warp engine: states in and out of the simulation, and pixels out of the renderer.

A state is one row [S] of float32: time, joint positions, velocities, activations, as in MuJoCo's full physics state.
"""

from __future__ import annotations

import warp as wp


@wp.kernel(enable_backward=False)
def load_states(
    states: wp.array2d[float],
    time: wp.array[float],
    qpos: wp.array2d[float],
    qvel: wp.array2d[float],
    act: wp.array2d[float],
    warmstart: wp.array2d[float],
    overflow: wp.array[int],
) -> None:
    """Set every world to its state [N, S]; nothing else is carried from one chunk to the next."""
    world = wp.tid()
    nq, nv = qpos.shape[1], qvel.shape[1]
    time[world] = states[world, 0]
    overflow[world] = 0
    for i in range(nq):
        qpos[world, i] = states[world, 1 + i]
    for i in range(nv):
        qvel[world, i] = states[world, 1 + nq + i]
        warmstart[world, i] = 0.0
    for i in range(act.shape[1]):
        act[world, i] = states[world, 1 + nq + nv + i]


@wp.kernel(enable_backward=False)
def command(
    count: wp.array[int],
    controls: wp.array3d[float],
    ctrl: wp.array2d[float],
    mocap_pos: wp.array2d[wp.vec3],
    mocap_quat: wp.array2d[wp.quat],
) -> None:
    """Give actuators and mocap bodies what `controls` [N, T, nu + 7 B] says for physics step `count`."""
    world = wp.tid()
    step, nu, bodies = count[0], ctrl.shape[1], mocap_pos.shape[1]
    for i in range(nu):
        ctrl[world, i] = controls[world, step, i]
    for i in range(bodies):
        at = nu + 3 * i
        mocap_pos[world, i] = wp.vec3(
            controls[world, step, at], controls[world, step, at + 1], controls[world, step, at + 2]
        )
        at = nu + 3 * bodies + 4 * i
        mocap_quat[world, i] = wp.quat(
            controls[world, step, at],
            controls[world, step, at + 1],
            controls[world, step, at + 2],
            controls[world, step, at + 3],
        )


@wp.kernel(enable_backward=False)
def pose(
    mocap: wp.array3d[float],
    rows: wp.array[int],
    mocap_pos: wp.array2d[wp.vec3],
    mocap_quat: wp.array2d[wp.quat],
) -> None:
    """Put the mocap bodies of the worlds `rows` [n] at `mocap` [n, B, 7]."""
    place, body = wp.tid()
    world = rows[place]
    mocap_pos[world, body] = wp.vec3(mocap[place, body, 0], mocap[place, body, 1], mocap[place, body, 2])
    mocap_quat[world, body] = wp.quat(
        mocap[place, body, 3], mocap[place, body, 4], mocap[place, body, 5], mocap[place, body, 6]
    )


@wp.func
def wild(value: float, most: float) -> bool:
    """Whether a number is not finite or absurdly large."""
    return not (wp.abs(value) < most)  # NaN compares false


@wp.kernel(enable_backward=False)
def record(
    count: wp.array[int],
    every: int,
    most: float,
    time: wp.array[float],
    qpos: wp.array2d[float],
    qvel: wp.array2d[float],
    act: wp.array2d[float],
    sensordata: wp.array2d[float],
    states: wp.array3d[float],
    readings: wp.array3d[float],
    broken: wp.array[wp.bool],
) -> None:
    """After physics step `count`: keep state and sensors if it ends, or shows the end of, a control step.

    A sensor shows the state in which its step began, so control step j is read in physics step (j + 1) * every.
    """
    world = wp.tid()
    step, nq, nv = count[0], qpos.shape[1], qvel.shape[1]
    if step % every == 0 and step > 0:
        row = step / every - 1
        for i in range(sensordata.shape[1]):
            readings[world, row, i] = sensordata[world, i]
            if wild(sensordata[world, i], most):
                broken[world] = True
    if (step + 1) % every == 0:
        row = (step + 1) / every - 1
        states[world, row, 0] = time[world]
        for i in range(nq):
            states[world, row, 1 + i] = qpos[world, i]
        for i in range(nv):
            states[world, row, 1 + nq + i] = qvel[world, i]
        for i in range(act.shape[1]):
            states[world, row, 1 + nq + nv + i] = act[world, i]
        for i in range(states.shape[2]):
            if wild(states[world, row, i], most):
                broken[world] = True


@wp.kernel(enable_backward=False)
def tick(count: wp.array[int]) -> None:
    """Count one physics step."""
    count[0] = count[0] + 1


@wp.kernel(enable_backward=False)
def keep_states(states: wp.array3d[float], last: wp.array[int], present: wp.array2d[float]) -> None:
    """Copy the state after control step `last` [N] (0..H-1) of each world [N, H, S] into `present` [N, S]."""
    world, i = wp.tid()
    present[world, i] = states[world, last[world], i]


@wp.kernel(enable_backward=False)
def scatter_states(starts: wp.array2d[float], rows: wp.array[int], present: wp.array2d[float]) -> None:
    """Copy states [n, S] into the worlds `rows` [n] of `present` [N, S]."""
    place, i = wp.tid()
    present[rows[place], i] = starts[place, i]


@wp.kernel(enable_backward=False)
def pose_batch(
    states: wp.array2d[float],
    rows: wp.array[int],
    mocap: wp.array3d[float],
    first: int,
    qpos: wp.array2d[float],
    mocap_pos: wp.array2d[wp.vec3],
    mocap_quat: wp.array2d[wp.quat],
) -> None:
    """Pose the drawing worlds like `rows[first:]` of `states` [N, S]; what is too many repeats the last of them."""
    world = wp.tid()
    place = wp.min(first + world, rows.shape[0] - 1)
    for i in range(qpos.shape[1]):
        qpos[world, i] = states[rows[place], 1 + i]
    for i in range(mocap_pos.shape[1]):
        mocap_pos[world, i] = wp.vec3(mocap[place, i, 0], mocap[place, i, 1], mocap[place, i, 2])
        mocap_quat[world, i] = wp.quat(mocap[place, i, 3], mocap[place, i, 4], mocap[place, i, 5], mocap[place, i, 6])


@wp.kernel(enable_backward=False)
def unpack_pixels(
    packed: wp.array2d[wp.uint32], starts: wp.array[int], view: int, first: int, pictures: wp.array4d[wp.uint8]
) -> None:
    """Write the drawing worlds' pixels of one view, packed 0xAARRGGBB, into `pictures[first:]` [n, h, w, 3]."""
    world, v, u = wp.tid()
    place = first + world
    if place >= pictures.shape[0]:
        return
    pixel = packed[world, starts[view] + v * pictures.shape[2] + u]
    pictures[place, v, u, 0] = wp.uint8((pixel >> wp.uint32(16)) & wp.uint32(0xFF))
    pictures[place, v, u, 1] = wp.uint8((pixel >> wp.uint32(8)) & wp.uint32(0xFF))
    pictures[place, v, u, 2] = wp.uint8(pixel & wp.uint32(0xFF))
