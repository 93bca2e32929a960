"""Every name of Isaac Lab that the worker uses is in the real wheels; and a name that is not there is found missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import check_isaac_names as names

from envs.isaac.worker import api


@pytest.fixture(scope="module", params=sorted(names.VERSIONS))
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[names.Wheel, bool]:
    try:
        path = names.download(request.param, tmp_path_factory.mktemp("wheel"))
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"the wheel of isaaclab {request.param} cannot be downloaded: {error}")
    return names.Wheel.read(path), request.param.startswith("3")


def test_the_wheel_has_each_name(wheel: tuple[names.Wheel, bool]) -> None:
    missing, looked = names.check(*wheel)
    assert missing == [] and looked > 60


def test_a_name_that_is_not_there_is_found_missing(
    wheel: tuple[names.Wheel, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = {**api.ORIGIN, api.Terminations: (api.MANAGED,), api.Camera: (("isaaclab.sensors.camera.gone", "Camera"),)}
    monkeypatch.setattr(api, "ORIGIN", moved)
    missing, _ = names.check(*wheel)
    assert "ManagerBasedRLEnv.get_term" in missing and "class isaaclab.sensors.camera.gone.Camera" in missing
