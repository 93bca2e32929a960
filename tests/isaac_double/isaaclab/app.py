"""Two ways to launch, of which each version has one."""

from contextlib import contextmanager

from isaaclab import HABITS, STATE

print("[double] isaaclab.app says hello on stdout")

if "three" in HABITS:

    @contextmanager
    def launch_simulation(cfg, launcher_args=None):
        assert launcher_args["enable_cameras"] and cfg.scene.num_envs >= 1
        STATE["launched"] = True
        try:
            yield
        finally:
            STATE["closed"].append("app")

else:

    class AppLauncher:
        def __init__(self, launcher_args=None, **kwargs):
            assert kwargs == {"headless": True, "enable_cameras": True, "device": "cpu"}, kwargs
            STATE["launched"] = True
            self.app = self

        def close(self):
            STATE["closed"].append("app")
