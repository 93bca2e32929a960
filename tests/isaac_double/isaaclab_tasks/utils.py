"""Settings of the double's task, as each version hands them out."""

from isaaclab import HABITS


class Settings:
    def __init__(self, **values):
        vars(self).update(values)


def settings(device, num_envs):
    camera = Settings(width=200, height=100, data_types=["rgb"], update_period=0.3)
    cfg = Settings(
        seed=None,
        decimation=4,
        episode_length_s=5.0,
        num_rerenders_on_reset=0,
        sim=Settings(dt=0.025, render_interval=2, device=device),
        scene=Settings(num_envs=num_envs, table_cam=camera, env_spacing=2.0),
    )
    if "three" in HABITS:
        cfg.compute_final_obs = False
    return cfg


if "three" in HABITS:

    def parse_env_cfg(task_name, device=None, num_envs=None, use_fabric=None, overrides=()):
        assert not isinstance(overrides, str)
        return settings(device, num_envs)

else:

    def parse_env_cfg(task_name, device="cuda:0", num_envs=None, use_fabric=None):
        return settings(device, num_envs)
