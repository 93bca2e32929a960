"""Promotion as a person does it: candidates go from the gates to a robot and back, on the command line."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from builders import tiny_policy
from jobs import PATIENCE, ROOT, environment
from websockets.sync.client import connect

from benchmarks.serving import listening, until
from rl_finetune.cli import main, promote_texts
from rl_finetune.cli.parsing import parse
from rl_finetune.cli.promote import completed
from rl_finetune.cli.serve import SERVE
from rl_finetune.config import load
from rl_finetune.config.promotion import PromoteConfig
from rl_finetune.config.serving import ServeConfig
from rl_finetune.promotion.commands.filming import chosen, worst_first
from rl_finetune.promotion.commands.shelf import words
from rl_finetune.promotion.commands.trials_view import points, stops
from rl_finetune.promotion.records import PolicyName, WorldRecord
from rl_finetune.promotion.registry.bundle import make_bundle
from rl_finetune.promotion.registry.contents import Acted, Provenance
from rl_finetune.promotion.registry.grounds import Grounds
from rl_finetune.promotion.registry.ledger import Entry
from rl_finetune.promotion.serving.start import assembled
from rl_finetune.promotion.serving.wire import decode, encode
from rl_finetune.promotion.trials.sequential import Tally, design
from tests.serving import page

OPEN_GATES = {
    "plan": {"episodes": 4, "suite_episodes": 2}, "tasks": {"margin": 100}, "suites": {"required": []},
    "parity": {"chunks": 2}, **{name: {"on": False} for name in ("success", "worst", "motion", "latency")},
}  # fmt: skip
"""They let everybody pass who is what he was exported from."""
OPERATOR = "a key of operators, 1234"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three policies, and settings with few episodes."""
    folder = tmp_path_factory.mktemp("promotion")
    for seed, name in enumerate(("old", "new", "newer")):
        tiny_policy(seed).save_pretrained(folder / name)
    settings = {
        "candidate": {"path": str(folder / "new"), "adapter": None}, "incumbent": {"path": str(folder / "old")},
        "env": {"num_envs": 4}, "num_actors": 0, "latency": {"calls": 2, "warmup": 0}, "clips": 2, "gates": OPEN_GATES,
        "folder": str(folder / "first"), "registry": str(folder / "registry"),
        "trials": {"tasks": [{"name": "carrot", "instruction": "put the carrot away"}], "gain": 80, "pairs": 6},
    }  # fmt: skip
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    (folder / "next.yaml").write_text(
        yaml.safe_dump({
            "extends": "settings.yaml", "candidate": {"path": str(folder / "newer")}, "incumbent": None,
            "folder": str(folder / "second"), "clips": 0,
        })
    )  # fmt: skip
    return folder


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`rl-finetune promote WORDS` under the first candidate's settings, or others': exit code, output, errors."""

    def command(*words: str, config: str = "settings") -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["promote", *words, "--config", str(place / f"{config}.yaml")])
        return code, *capsys.readouterr()

    return command


def done(result: tuple[int, str, str], code: int = 0) -> str:
    """What a command printed."""
    assert result[0] == code, result
    return result[1]


def refused(result: tuple[int, str, str]) -> str:
    """The line that a command is refused with."""
    code, out, error = result
    assert (code, out) == (2, "") and error.startswith("error: ") and error.count("\n") == 1, result
    return error


def digest_in(folder: Path) -> str:
    return json.loads((folder / "evidence.json").read_text())["evidence"]["candidate"]["digest"]


def better(folder: Path, trial: int) -> str:
    """How a trial ends if the candidate always does the task and the incumbent never."""
    candidates = json.loads((folder / "trials" / "sealed.json").read_text())["candidates"]
    return "success" if candidates[(trial - 1) // 2] == "AB"[(trial - 1) % 2] else "failure"


@contextmanager
def served(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`rl-finetune serve WORDS` and where it listens; it must end by itself when it is asked to."""
    server = subprocess.Popen(
        [sys.executable, "-m", "rl_finetune", "serve", *words, "serve.network.port=0", "serve.follow=0.05"],
        env=environment() | {"RL_FINETUNE_ADMIN_KEY": OPERATOR}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert " on ws://127.0.0.1:" in line, line
        yield server, line.split(" on ")[1].strip()
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE) == 0
    finally:
        server.kill()
        server.wait()


def acting(url: str) -> str:
    """Digest of the bundle that a new client is told of."""
    with connect(url, compression=None) as socket:
        return decode(socket.recv())["bundle"]  # type: ignore[index]


def asked(url: str) -> dict[str, Any]:
    """The reply to one observation. Where the machine is busy otherwise pictures may be stale before it is there."""
    with connect(url, compression=None) as socket:
        socket.recv()
        frame: str | bytes = "stale"
        while isinstance(frame, str):
            assert "stale" in frame, frame
            socket.send(
                encode({"observation/image": np.zeros((48, 64, 3), np.uint8), "prompt": "reach", "reset": True})
            )
            frame = socket.recv()
        return decode(frame)  # type: ignore[return-value]


def test_candidates_go_from_the_gates_to_a_robot_and_back(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _judged(place, run)
    assert "served with another temperature: got 0.3; expected 0.6" in refused(run("temperature=0.3"))
    for stage in ("shadow", "canary"):
        assert "may not meet a robot" in refused(run("trials", "begin"))
        assert stage in done(run("advance", first[:8], stage, "--by", "ana"))
    _tried(place, run)
    assert "without a decision" in refused(run("advance", first[:8], "promoted"))
    done(run("advance", first[:8], "promoted", "--grounds", str(place / "first/trials/decision.json")))
    page = (place / "first/report.html").read_text()
    assert "5 of 5 pairs won" not in page
    done(run("report", "clips=0"))
    page = (place / "first/report.html").read_text()
    assert "5 of 5 pairs won" in page and "became canary" in page

    # The next candidate is held against whoever is promoted, and nobody else.
    assert "not the bundle that is promoted" in refused(run(f"folder={place}/x", f"candidate.path={place}/newer"))
    assert "served with another temperature" in refused(run("judge", "temperature=0.3", config="next"))  # who acts
    done(run("judge", config="next"))
    second = digest_in(place / "second")
    for stage in ("shadow", "canary"):
        done(run("advance", second, stage))
    done(run("trials", "begin", config="next"))
    monkeypatch.setenv("RL_FINETUNE_ADMIN_KEY", OPERATOR)
    with served(f"registry={place}/registry") as (_, url):
        _blinded(place, run, url, {"success": second, "failure": first})
        assert done(run("trials", "decide", "--early", config="next"), 3).startswith("hold: ended before")
        done(run("advance", second, "promoted", "--waiver", "no robot is left"))
        assert until(lambda: acting(url) == second)
        assert done(run("rollback", "--by", "ana", "--note", "drops things")).startswith(first[:12])
        assert until(lambda: acting(url) == first)
        assert asked(url)["bundle"] == first
    served_by = [line for line in done(run("history")).splitlines() if line.endswith("let act on a server")]
    assert len(served_by) == 2 and all("  joris  " in line for line in served_by)
    told = done(run("status"))
    assert f"acts    {first[:12]}" in told and "before  nobody" in told
    assert done(run("history", "--bundle", second)).splitlines()[-1].endswith("drops things)")
    assert re.match(r"whole: \d+ entries, 2 bundles of \d+ files, \d+ verdicts and decisions\n$", done(run("verify")))


def _judged(place: Path, run: Run) -> str:
    """The first candidate passes; a second run plays nothing and adds nothing."""
    out = done(run("--by", "ana"))
    first = digest_in(place / "first")
    assert out.startswith(f"promote: new {first[:12]} against") and "simulation-passed" in out
    parts = {"bundle", "config.yaml", "evidence.json", "verdict.json", "report.html", "played"}
    assert parts <= {path.name for path in (place / "first").iterdir()}
    history = done(run("history"))
    assert [line.split("  ")[-1].split(";")[0] for line in history.splitlines()] == [
        "submitted as new", "became simulation-passed"
    ]  # fmt: skip
    played = {path: path.stat().st_mtime_ns for path in (place / "first/played").iterdir()}
    done(run())
    assert {path: path.stat().st_mtime_ns for path in (place / "first/played").iterdir()} == played
    assert "film" in (place / "first/report.html").read_text()
    return first


def _tried(place: Path, run: Run) -> None:
    """Every pair is won: five suffice."""
    assert "commitment" in done(run("trials", "begin"))
    assert "letter A: carrot" in done(run("trials", "next"))
    assert "the letter is another trial's" in refused(run("record", "1", "B", "success"))
    assert "still to be played" in refused(run("trials", "decide"))
    done(run("record", "1", "A", "abort", "--note", "lamp failed", "--by", "joris"))
    for trial in range(1, 11):
        letter = "AB"[(trial - 1) % 2]
        done(run("trials", "record", str(trial), letter, better(place / "first", trial), "--seconds", "9"))
    assert "enough: decide" in done(run("trials", "status"))
    assert "abort by joris: lamp failed" in done(run("trials", "results"))
    assert done(run("trials", "sheet", "--form", "csv")).startswith("trial,pair,letter")
    assert done(run("trials", "decide")).startswith("promote: better than the incumbent: 5 of 5 pairs won")
    done(run("trials", "decide"))  # who was killed before the registry knew does it again
    assert sum("decision promote" in line for line in done(run("history")).splitlines()) == 1


def _blinded(place: Path, run: Run, url: str, who: dict[str, str]) -> None:
    """The server acts with whoever is behind the letter; nothing that is printed says who."""
    for trial in (1, 2):
        out = done(run("trials", "next", "--server", url, "--by", "joris", config="next"))
        assert acting(url) == who[better(place / "second", trial)]
        assert not any(name in out for name in ("newer", *(digest[:6] for digest in who.values())))
        done(run("record", str(trial), "AB"[trial - 1], "failure", config="next"))


def test_the_commands_of_the_readme_work_in_their_order(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Word for word but for the digest and the port. What training and judging leave behind is written by hand."""
    section = (ROOT / "README.md").read_text().split("\n## Promotion\n")[1].split("\n## ")[0]
    lines = [line for line in section.split("```")[1].splitlines() if line]
    said = [shlex.split(line, comments=True)[1:] for line in lines]
    assert [words[0] for words in said[:2]] == ["train", "promote"] and "=" in said[1][1]
    monkeypatch.chdir(tmp_path)
    digest = _passed_simulation(place / "new")
    with ExitStack() as server:
        for words_ in said[2:]:
            words_ = [digest[:8] if word == "DIGEST" else word for word in words_]
            if words_[0] == "serve":
                config = load(ServeConfig, "serve", [*words_[1:], "serve.network.port=0", "serve.follow=0.05"])
                port, _ = server.enter_context(listening(server.enter_context(assembled(config))))
                assert acting(f"ws://127.0.0.1:{port}") == digest
            else:
                capsys.readouterr()
                assert main(words_) == 0, (words_, capsys.readouterr())
        assert said[-1][:2] == ["promote", "retire"]
        assert until(lambda: not healthy(port))


def healthy(port: int) -> bool:
    try:
        return page(port, "/healthz") == "OK\n"
    except urllib.error.HTTPError as error:
        assert error.code == 503
        return False


def _passed_simulation(policy: Path) -> str:
    """A bundle of the policy in the working directory's registry, with a verdict that speaks for it; its digest."""
    bundle = make_bundle(
        policy, Path("runs/promote/bundle"), name="new", provenance=Provenance("x"), acted=Acted(64, 0.6)
    )
    verdict = Path("runs/promote/verdict.json")
    Grounds("verdict", bundle.called, PolicyName("old", "0" * 64), "promote", "by hand").save(verdict)
    assert main(["promote", "submit", "runs/promote/bundle"]) == 0
    assert main(["promote", "advance", bundle.digest, "simulation-passed", "--grounds", str(verdict)]) == 0
    return bundle.digest


def test_hold_and_reject_are_recorded_and_a_rejection_stays(place: Path, run: Run, tmp_path: Path) -> None:
    here = (f"registry={tmp_path}/registry", f"folder={tmp_path}/run", "clips=0")
    held = done(run(*here, "gates.success.on=true"), 3)
    assert held.startswith("hold: new") and "hold    success mean:" in held and "candidate in" in held
    moving = ("gates.motion.on=true", "gates.motion.steps=1", "guarded=false")
    assert "reject  motion widowx_reach/" in done(run(*here, *moving), 4)
    assert "rejected before, and stays so" in done(run(*here), 4)
    verdicts = [line for line in done(run("history", *here[:1])).splitlines() if "verdict" in line]
    assert [("verdict hold" in v, "verdict reject" in v) for v in verdicts] == [
        (True, False), (False, True), (False, False)
    ]  # fmt: skip
    assert "may not meet a robot" in refused(run("trials", "begin", *here))


def test_one_flipped_byte_is_found_by_whoever_looks(place: Path, run: Run, tmp_path: Path) -> None:
    done(run("bundle", f"folder={tmp_path}", "bundle.name=first"))
    assert "whole: first" in done(run("verify", "--bundle", f"{tmp_path}/bundle"))
    done(run("submit", f"{tmp_path}/bundle", f"registry={tmp_path}/registry"))
    weights = next((tmp_path / "registry/bundles").rglob("model.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(data)
    assert "model.safetensors" in refused(run("verify", f"registry={tmp_path}/registry"))
    assert main(["serve", str(weights.parents[1]), "serve.network.port=0"]) == 2


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("candidate.path={0}/nobody", "policy not found"),
        ("candidate.adapter={0}/nothing", "no adapter there"),
        ("candidate.path={0}/old", "the same policy"),
        ("candidate.guidance=1", "guidance"),
        ("gates.tasks.margn=3", "did you mean 'gates.tasks.margin'?"),
        ("env.name=rover_navigate", "rover"),
        ("suites=[colours]", "colours"),
        ("--by=", "nobody is named"),
        ("status", "no registry there"),
        ("rollback", "no registry there"),
        ("advance abc shadow", "no registry there"),
        ("report", "nobody was judged there"),
        ("trials begin", "verdict.json"),
        ("trials next", "no trials there"),
        ("record 1 A success", "no trials there"),
        ("verify --bundle {0}/new", "no bundle there"),
        ("submit {0}/new", "no bundle there"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line_and_nothing_is_written(
    line: str, part: str, place: Path, run: Run, tmp_path: Path
) -> None:
    words = [word.format(place) for word in line.split()]
    said = refused(run(*words, f"folder={tmp_path}/run", f"registry={tmp_path}/registry"))
    assert part in said
    assert list(tmp_path.iterdir()) == []


def test_judge_is_what_promote_does_and_a_misspelt_action_is_none() -> None:
    assert completed(["promote"]) == ["promote", "judge"]
    assert completed(["promote", "seed=1"]) == ["promote", "judge", "seed=1"]
    assert completed(["promote", "--config", "x"]) == ["promote", "judge", "--config", "x"]
    for words_ in (["promote", "--help"], ["promote", "statsu"], ["train", "run.seed=1"], []):
        assert completed(words_) == words_


SHOWN = [
    *(ROOT / "README.md").read_text().splitlines(), *(ROOT / "docs/promotion.md").read_text().splitlines(),
    *(line for name, text in vars(promote_texts).items() if name.isupper() for line in text.splitlines()),
    *SERVE.splitlines(),
]  # fmt: skip


def test_every_command_that_is_shown_is_understood() -> None:
    """In help, README and docs: words, options and settings; what is said behind two spaces or `#` is for people."""
    commands = {re.split(r"\s{2,}| > ", line.strip())[0] for line in SHOWN if " rl-finetune " in f" {line}"}
    found = [
        shlex.split(command) for command in sorted(commands) if re.match(r"rl-finetune (promote|serve)\b", command)
    ]
    for said in found:
        arguments = parse(said[1:])
        settings = [word for word in arguments.words if "=" in word]
        load(ServeConfig if said[1] == "serve" else PromoteConfig, None, settings)
    assert len(found) > 40


def test_failures_are_filmed_first_and_worlds_take_turns() -> None:
    def record(world: str, mine: str, theirs: str, suite: str = "none") -> WorldRecord:
        return WorldRecord(world, "arm", suite, 0, *(tuple(c == "1" for c in side) for side in (mine, theirs)))

    reach = record("reach", "11001", "10011")  # won: 0 and 4 by both, 1 alone; lost: 3 alone, 2 by both
    assert worst_first(reach) == [3, 2, 1, 0, 4]
    stack = record("stack", "10", "10", "colour")
    picks = [(pick.world, pick.suite, pick.episode) for pick in chosen((reach, stack), 5)]
    assert picks == [
        ("reach", "none", 3), ("stack", "colour", 1), ("reach", "none", 2), ("reach", "none", 1), ("stack", "colour", 0)
    ]  # fmt: skip
    assert chosen((reach,), 0) == ()


def test_evidence_of_trials_lies_between_what_would_have_stopped_them() -> None:
    test = design(0.05, 0.1, 0.8, 6)  # five wins of five suffice: 1/32; of six all must be won
    assert stops(test, Tally(5, 0)) == (3.0, 5.0)
    assert stops(test, Tally(1, 1)) == (0.0, float("inf"))  # a pair lost leaves five of six: not enough
    walk = points(test, [(True, False)] * 5)
    assert [point.value for point in walk] == [1, 2, 3, 4, 5] and walk[-1].value >= walk[-1].high
    assert all(point.low < point.value < point.high for point in walk[:-1])


def test_the_ledger_in_words() -> None:
    def said(what: str, **body: str) -> str:
        return words(Entry(0, "now", "0", what, {"bundle": "b" * 64, "by": "ana", **body}, "h"))

    assert said("submit", name="new", note="") == "submitted as new"
    assert said("advance", stage="shadow", note="go", grounds="") == "became shadow (go)"
    assert said("advance", stage="promoted", waiver="no robot", grounds="") == "became promoted; waived: no robot"
    judged = {"grounds": "g", "kind": "verdict", "outcome": "hold", "reason": "too few"}
    assert said("judged", **judged) == "verdict hold: too few"
    assert said("rollback", **{"from": "c" * 64}) == f"promoted again; {'c' * 12} retired"
    assert said("serve", note="trial 3") == "let act on a server (trial 3)"
    assert said("retire", note="old") == "retired (old)"


def test_a_key_pair_signs_what_is_taken_in(place: Path, run: Run, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    keys = tmp_path / "new" / "keys"
    done(run("keys", f"{keys}/ana"))
    assert [keys.stat().st_mode & 0o777, (keys / "ana").stat().st_mode & 0o777] == [0o700, 0o600]
    done(run("bundle", f"folder={tmp_path}/run", f"bundle.sign_with={keys}/ana"))
    strict = (f"trusted=[{keys}/ana.pub]", "require_signature=true", f"registry={tmp_path}/registry")
    assert "signed by" in done(run("verify", "--bundle", f"{tmp_path}/run/bundle", *strict))
    done(run("submit", f"{tmp_path}/run/bundle", *strict))
    done(run("bundle", f"folder={tmp_path}/plain"))
    assert "not signed" in refused(run("submit", f"{tmp_path}/plain/bundle", *strict))
    (tmp_path / "bo.pub").touch()
    for taken in (f"{tmp_path}/bo", f"{keys}/ana", f"{tmp_path}/bo.pub/bo"):
        assert "key cannot be written" in refused(run("keys", taken))
    assert not (tmp_path / "bo").exists()
