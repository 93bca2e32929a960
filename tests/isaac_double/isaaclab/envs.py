"""A point that must be moved to a goal, in an environment that behaves like Isaac's.

Importing this before the application runs is an error, as it is with Isaac Lab 2.3. All buffers are made once and
written into for ever. A finished environment begins again in the same step; nothing remains of its end.
"""

import os
import time
from types import SimpleNamespace

import gymnasium
import numpy as np
import torch

from isaaclab import HABITS, STATE

THREE, DIRECT = "three" in HABITS, "direct" in HABITS
if not STATE["launched"] and not THREE:
    raise RuntimeError("isaaclab.envs was imported before the application was launched")
REACH, FALL = 0.05, 1.0


class ProxyArray:
    """Like the original: of no use until `.torch` is asked for."""

    def __init__(self, inner):
        self.torch = inner

    def __getattr__(self, name):
        raise AttributeError(f"ProxyArray has no {name}: use .torch")


def handed(value):
    return ProxyArray(value) if THREE else value


class Camera:
    """Shows what was there when the simulator last rendered, and only if its period is over."""

    def __init__(self, env, cfg):
        self.env, self.cfg = env, cfg
        self.buffer = torch.zeros(env.num_envs, cfg.height, cfg.width, 3, dtype=torch.uint8)
        self.since = 0.0

    def draw(self):
        if self.cfg.update_period > 0:
            return
        ramp = torch.arange(self.cfg.width).to(torch.uint8)
        self.buffer[:] = ramp[None, None, :, None]
        self.buffer[:, 0, 0, 0] = self.env.moves.to(torch.uint8)
        self.buffer[:, 0, 0, 1] = self.env.number.to(torch.uint8)
        self.buffer[:, 0, 0, 2] = (self.env.position[:, 0] * 100 + 128).to(torch.uint8)

    @property
    def data(self):
        return SimpleNamespace(output={"rgb": handed(self.buffer)})


class Scene(dict):
    def write_data_to_sim(self):
        pass


class Simulation:
    def __init__(self, env):
        self.env = env

    def forward(self):
        self.env.forwarded += 1

    def render(self):
        STATE["renders"] += 1
        self.env.scene["table_cam"].draw()


class Terminations:
    active_terms = ["time_out", "fallen"] if "no_success" in HABITS else ["time_out", "success", "fallen"]

    def __init__(self, env):
        self.env = env

    def get_term(self, name):
        assert name in self.active_terms, name
        return self.env.terms[name]


class DoubleEnv(gymnasium.Env):
    """Observation groups: `policy` is a tensor, `parts` a dict of tensors."""

    single_action_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,))

    def __init__(self, cfg, **kwargs):
        self.cfg, n = cfg, cfg.scene.num_envs
        STATE["made"] += 1
        self.generator = torch.Generator().manual_seed(cfg.seed)
        self.num_envs, self.step_dt = n, cfg.sim.dt * cfg.decimation
        self.limit = int(np.ceil(cfg.episode_length_s / self.step_dt))
        self.episode_length_buf = torch.zeros(n, dtype=torch.long)
        self.position, self.goal = torch.zeros(n, 3), torch.zeros(n, 3)
        self.number, self.moves = torch.full((n,), -1), torch.zeros(n, dtype=torch.long)
        self.reward, self.state = torch.zeros(n), torch.zeros(n, 10)
        self.terminated, self.truncated = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
        self.terms = {name: torch.zeros(n, dtype=torch.bool) for name in ("time_out", "success", "fallen")}
        self.extras, self.counter, self.forwarded, self.steps = {}, 0, 0, 0
        self.scene, self.sim = Scene(), Simulation(self)
        self.scene["table_cam"] = Camera(self, cfg.scene.table_cam)
        if not DIRECT:
            self.termination_manager = Terminations(self)
        if THREE:
            self.render_enabled = True

    def seed(self, seed):
        STATE["seeds"].append(seed)
        self.generator.manual_seed(seed)
        return seed

    def _reset_idx(self, env_ids):
        n = len(env_ids)
        self.position[env_ids] = torch.rand(n, 3, generator=self.generator) * 0.1
        self.goal[env_ids] = 0.3 + torch.rand(n, 3, generator=self.generator) * 0.1
        self.episode_length_buf[env_ids] = self.moves[env_ids] = 0
        self.number[env_ids] += 1

    def observe(self):
        identity = [0.0, 0, 0, 1] if THREE else [1.0, 0, 0, 0]
        rows = [self.position, self.goal, torch.tensor(identity).expand(self.num_envs, 4)]
        self.state[:] = torch.cat(rows, dim=1)
        return {"policy": self.state, "parts": {"position": self.position, "goal": self.goal}}

    _get_observations = observe

    def begin(self):
        STATE["full_resets"] += 1
        self._reset_idx(torch.arange(self.num_envs))
        for _ in range(self.cfg.num_rerenders_on_reset):
            self.sim.render()
        return self.observe(), self.extras

    def step(self, action):
        assert action.shape == (self.num_envs, 3) and action.dtype == torch.float32
        self.misbehave()
        self.moves += 1
        for _ in range(self.cfg.decimation):
            self.counter += 1
            self.position += action / self.cfg.decimation
            if self.counter % self.cfg.sim.render_interval == 0 and (not THREE or self.render_enabled):
                self.sim.render()
        self.episode_length_buf += 1
        self.judge()
        done = self.terminated | self.truncated
        if done.any():
            if THREE and self.cfg.compute_final_obs:
                kept = self.observe()
                self.extras["final_obs"] = {
                    "policy": kept["policy"].clone(),
                    "parts": {k: v.clone() for k, v in kept["parts"].items()},
                }
            self._reset_idx(done.nonzero().squeeze(-1))
            if not THREE or self.render_enabled:
                for _ in range(self.cfg.num_rerenders_on_reset):
                    self.sim.render()
        return self.observe(), self.reward, self.terminated, self.truncated, self.extras

    def judge(self):
        gap = (self.position - self.goal).norm(dim=1)
        self.reward[:] = -gap
        self.terms["success"][:] = gap < REACH
        self.terms["fallen"][:] = self.position[:, 2] < -FALL
        self.terms["time_out"][:] = self.episode_length_buf >= self.limit
        if "early_cut" in HABITS:
            self.terms["time_out"] |= (self.position[:, 0] > 10) | (self.position[:, 0] < -FALL)
        if "nan" in HABITS:
            self.reward[self.position[:, 1] < -FALL] = float("nan")
        self.extras["success"] = self.terms["success"].clone()
        won = self.terms["success"] if "no_success" not in HABITS else torch.zeros_like(self.terminated)
        self.terminated[:] = won | self.terms["fallen"]
        self.truncated[:] = self.terms["time_out"]

    def misbehave(self):
        self.steps += 1
        if self.steps < 3:
            return
        if "die" in HABITS:
            print("[double] the driver is gone", flush=True)
            os._exit(7)
        if "hang" in HABITS:
            time.sleep(60)
        if "raise" in HABITS:
            torch.linalg.inv(torch.zeros(2, 2))

    def close(self):
        STATE["closed"].append("env")


class ManagedEnv(DoubleEnv):
    def reset(self, seed=None, env_ids=None, options=None):
        if env_ids is None:
            return self.begin()
        self._reset_idx(env_ids)
        for _ in range(self.cfg.num_rerenders_on_reset):
            self.sim.render()
        return self.observe(), self.extras


class DirectEnv(DoubleEnv):
    def reset(self, seed=None, options=None):
        return self.begin()
