"""Why a bundle may go on: a verdict of the gates, or a decision of the trials, in one JSON file about one bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from rl_finetune.durable import Json, canonical, parsed, replace_file, sha256
from rl_finetune.errors import UserError
from rl_finetune.promotion.records import Outcome, PolicyName, Verdict
from rl_finetune.promotion.registry.manifest import read_small

Kind = Literal["verdict", "decision"]
SCHEMA = 1
NOTHING: Mapping[str, Json] = {}


@dataclass(frozen=True, slots=True)
class Grounds:
    """What was found about a candidate."""

    kind: Kind
    """`verdict`: of the gates, in simulation. `decision`: of trials on the robot."""
    candidate: PolicyName
    """Whom it speaks of; its digest is a bundle's."""
    incumbent: PolicyName
    """Whom it was compared with."""
    outcome: Outcome
    """What follows."""
    reason: str
    """In one sentence, with numbers."""
    detail: Mapping[str, Json] = field(default_factory=dict)
    """Everything it rests on: every check of the gates, or the trials' counts and the head of their book."""

    @classmethod
    def of_verdict(
        cls, verdict: Verdict, candidate: PolicyName, incumbent: PolicyName, rests_on: Mapping[str, Json] = NOTHING
    ) -> Grounds:
        """Of the gates, with every check, and what these were asked of: digest of the evidence, the gates' settings."""
        objections = "; ".join(check.reason for check in verdict.objections)
        reason = objections or f"no objection in {len(verdict.checks)} checks"
        reason += f"; not asked: {', '.join(verdict.off)}" if verdict.off else ""
        checks = cast(Json, [asdict(check) for check in verdict.checks])
        return cls("verdict", candidate, incumbent, verdict.outcome, reason, {**rests_on, "checks": checks})

    @property
    def data(self) -> bytes:
        """As it is written. A number that is not finite, such as the bound of a check that has none, becomes null."""
        return canonical(_finite({"schema": SCHEMA, **asdict(self)})) + b"\n"

    @property
    def digest(self) -> str:
        """SHA-256 of `data`."""
        return sha256(self.data)

    def save(self, path: Path) -> str:
        """Write it, beside and renamed; its digest."""
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, self.data)
        return self.digest

    @classmethod
    def load(cls, path: Path) -> Grounds:
        """Read what `save` wrote.

        Raises:
            UserError: missing, or something else.
        """
        try:
            value = cast(dict[str, Any], parsed(read_small(path) or b""))
            if value.pop("schema", None) != SCHEMA or value["kind"] not in ("verdict", "decision"):
                raise ValueError(f"schema is not {SCHEMA}, or neither verdict nor decision")
            if value["outcome"] not in ("promote", "hold", "reject"):
                raise ValueError(f"outcome {value['outcome']!r}")
            names = {who: PolicyName(**value[who]) for who in ("candidate", "incumbent")}
            return cls(**{**value, **names})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                "verdict or decision cannot be read", got=f"{path}: {error}", expected="a file written by Grounds.save",
                do="name the file that `rl-finetune promote` wrote",
            ) from error  # fmt: skip


def _finite(value: Any) -> Json:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return cast(Json, value)
