"""Episodes that openpi's real client drives through the server, and the same episodes evaluated without either."""

from __future__ import annotations

import json
import subprocess
import tempfile
import venv
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import envs
from actors.evaluator import run_episodes
from benchmarks.serving import listening
from rl_finetune.config.schema import EvaluationSection
from rl_finetune.config.serving import ActingSection, BatchingSection, NetworkSection, ServeConfig, ServeSection
from rl_finetune.metrics.intervals import paired_gain, wilson
from rl_finetune.policy import QwenVLAConfig
from rl_finetune.policy.compatibility import prompt_room
from rl_finetune.policy.policy import BACKBONE_FOLDER
from rl_finetune.promotion.records import Limits
from rl_finetune.promotion.registry.bundle import make_bundle, open_bundle
from rl_finetune.promotion.registry.contents import Acted, Provenance
from rl_finetune.promotion.registry.filling import bodies_of
from rl_finetune.promotion.registry.limits import default_limits
from rl_finetune.promotion.serving.start import assembled
from rl_finetune.types import ActionChunk, FloatArray, Observation, SeedKeys

CLIENT = ("openpi-client==0.1.2", "numpy<2", "typing_extensions")
SCRIPT = Path(__file__).with_name("openpi_robot.py")
EVALUATION = EvaluationSection()


@dataclass(frozen=True, slots=True)
class Played:
    """What came of it."""

    world: str
    episodes: int
    clients: int
    client: str
    """What spoke, and with which numpy."""
    served: tuple[int, tuple[float, float]]
    """Successes through the server, and Wilson's 95 % interval of their share."""
    local: tuple[int, tuple[float, float]]
    """The same in a local evaluation of the same episodes."""
    same: int
    """Episodes that ended alike."""
    difference: str
    """Served less local, in points, paired."""
    within: bool
    """Whether the share of served successes lies in the local evaluation's interval."""
    held: int
    """Chunks that were replaced by standing still."""
    interventions: dict[str, int]
    """Steps that the safety envelope changed, by kind."""
    chunks: int
    """Asked for."""
    milliseconds: tuple[float, float]
    """p50 and p99 of the policy as the server saw it."""


@dataclass
class _Tally:
    success: dict[int, bool] = field(default_factory=dict)
    held: int = 0
    interventions: Counter[str] = field(default_factory=Counter)
    infer: list[float] = field(default_factory=list)
    numpy: str = ""


def play(policy: str, world: str, episodes: int, clients: int, python: Path) -> dict[str, Any]:
    """Play held-out episodes both ways.

    Args:
        policy: folder of a policy.
        world: registered name.
        episodes: how many of the held-out ones, from the first.
        clients: robots at a time, each with a client process of its own.
        python: interpreter that has openpi's client.
    """
    spec = envs.spec(world)
    room = prompt_room(QwenVLAConfig.load(Path(policy)), Path(policy) / BACKBONE_FOLDER, [spec])
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(
            policy, Path(folder) / "bundle", name=world, provenance=Provenance("benchmark"), limits=_limits(policy),
            acted=Acted(spec.image_size, EVALUATION.temperature, room),
        )  # fmt: skip
        config = ServeConfig(
            bundle=str(bundle.folder),
            serve=ServeSection(network=NetworkSection(port=0), batching=BatchingSection(deadline=120)),
            acting=ActingSection(seed=EVALUATION.seed),
        )  # fmt: skip
        tally = _Tally()
        with assembled(config) as server, listening(server) as (port, _), ThreadPoolExecutor(clients) as pool:
            shares = [range(i, episodes, clients) for i in range(clients)]
            for done in [pool.submit(_drive, world, share, port, python, tally) for share in shares]:
                done.result()
        local = _local(bundle.folder, world, episodes)
    return asdict(_summary(world, clients, tally, local))


def interpreter(cache: Path) -> Path:
    """Python of a virtual environment with openpi's client, made on the first call with pip."""
    python = cache / "bin" / "python"
    probe = [str(python), "-c", "import openpi_client.websocket_client_policy"]
    if not python.exists() or subprocess.run(probe, capture_output=True, check=False).returncode:
        venv.create(cache, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *CLIENT], check=True)
    return python


class Robot:
    """The other end of a client process."""

    def __init__(self, python: Path, port: int) -> None:
        self._process = subprocess.Popen([python, SCRIPT, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.hello, _ = self._heard()

    def infer(self, observation: Observation, episode: int, reset: bool) -> tuple[dict[str, Any], FloatArray]:
        """One chunk [H, c] and what was said beside it."""
        pictures = {f"observation/{view}": image[0] for view, image in observation.images.items()}
        header = {
            "prompt": observation.instruction[0], "embodiment": observation.embodiment, "episode": episode,
            "reset": reset, "views": {view: image.shape[:2] for view, image in pictures.items()},
        }  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(
            json.dumps(header).encode() + b"\n" + b"".join(p.tobytes() for p in pictures.values())
        )
        self._process.stdin.flush()
        said, data = self._heard()
        return said, np.frombuffer(data, np.float32).reshape(said["shape"])

    def close(self) -> None:
        """Hang up."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _heard(self) -> tuple[dict[str, Any], bytes]:
        assert self._process.stdout is not None
        said = json.loads(self._process.stdout.readline())
        if "error" in said:
            raise RuntimeError(said["error"])
        return said, self._process.stdout.read(4 * int(np.prod(said["shape"]))) if "shape" in said else b""


def _limits(policy: str) -> dict[str, Limits]:
    """A bundle's own, but for staleness: a simulated world stands still while the policy thinks."""
    return {
        body.spec.tag: replace(default_limits(body.spec, body.low, body.high), stale_after=60.0)
        for body in bodies_of(Path(policy))
    }


def _drive(world: str, episodes: range, port: int, python: Path, tally: _Tally) -> None:
    """One robot's share of the episodes."""
    robot = Robot(python, port)
    tally.numpy = robot.hello["numpy"]
    with envs.make(world, 1) as env:
        for episode in episodes:
            observation, reset, ended = env.reset(_keys([episode])), True, False
            while not ended:
                said, actions = robot.infer(observation, episode, reset)
                outcome = env.step_chunk(ActionChunk(actions[None], np.ones((1, *actions.shape), bool)))
                observation, reset = outcome.observation, False
                ended = bool(outcome.terminated[0] or outcome.truncated[0])
                tally.held += said["held"]
                tally.interventions.update(said["interventions"])
                tally.infer.append(said["timing"]["infer_ms"])
            tally.success[episode] = bool(outcome.success[0])
    robot.close()


def _local(bundle: Path, world: str, episodes: int) -> list[bool]:
    policy = open_bundle(bundle).load()
    with envs.make(world, episodes) as env:
        results = run_episodes(policy, env, _keys(range(episodes)), temperature=EVALUATION.temperature)
    return [bool(success) for success in results.success]


def _keys(episodes: Any) -> SeedKeys:
    ids = np.array(list(episodes), np.int64)
    return SeedKeys(EVALUATION.seed, ids, np.zeros_like(ids))


def _summary(world: str, clients: int, tally: _Tally, local: list[bool]) -> Played:
    served = [tally.success[episode] for episode in range(len(local))]
    n, interval = len(local), wilson(sum(local), len(local))
    p50, p99 = np.percentile(tally.infer, [50, 99])
    return Played(
        world, n, clients, f"{CLIENT[0]}, numpy {tally.numpy}",
        served=(sum(served), wilson(sum(served), n)), local=(sum(local), interval),
        same=sum(a == b for a, b in zip(served, local, strict=True)), difference=str(paired_gain(local, served)),
        within=interval[0] <= sum(served) / n <= interval[1], held=tally.held,
        interventions=dict(tally.interventions), chunks=len(tally.infer), milliseconds=(float(p50), float(p99)),
    )  # fmt: skip
