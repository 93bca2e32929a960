"""What a bundle says of itself: `bundle.json` as typed records, and that it agrees with the weights beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import rl_finetune
from rl_finetune.durable import Json, parsed
from rl_finetune.errors import UserError
from rl_finetune.promotion.records import Limits
from rl_finetune.promotion.registry.limits import check_limits, limits_from
from rl_finetune.promotion.registry.manifest import ADAPTER, POLICY, RECORD, damaged, read_small
from rl_finetune.spec import ActionConvention, EmbodimentSpec

SCHEMA = 1
TASK = "{task}"
"""Stands for the instruction in a bundle's prompt."""
Weights = Literal["plain", "merged", "adapter"]
CALLS_CODE = frozenset(
    {"auto_map", "quantization_config", "attn_implementation", "_attn_implementation", "experts_implementation",
     "custom_pipelines", "megatron_config"}
)  # fmt: skip
"""Settings by which transformers and peft import or fetch code; none of our policies has any."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where weights come from."""

    code: str
    """Version of this package, and the first 12 digits of the SHA-256 of its sources."""
    config: Mapping[str, Json] = field(default_factory=dict)
    """Resolved config of the run that trained them."""
    seeds: tuple[int, ...] = ()
    """Of that run."""
    evaluations: Mapping[str, str] = field(default_factory=dict)
    """Evaluation file in the bundle -> its SHA-256; filled when the bundle is made."""

    @classmethod
    def here(cls, config: Mapping[str, Json] | None = None, seeds: Sequence[int] = ()) -> Provenance:
        """With the version of the code that runs now."""
        return cls(f"{rl_finetune.__version__}+{_sources()}", config or {}, tuple(seeds))


@dataclass(frozen=True, slots=True)
class BundledBody:
    """One body that the bundle can act in."""

    spec: EmbodimentSpec
    """With its action convention."""
    prompt: str
    """Sentence of its prompt, `{task}` in place of the instruction."""
    low: tuple[float, ...]
    """[c] 1 % quantiles of its actions, action units: normalised -1."""
    high: tuple[float, ...]
    """[c] 99 % quantiles: normalised 1."""


SIDES = 8, 2048
"""Least and greatest side of a policy's pictures, pixels."""


MOST_TOKENS = 1 << 15
"""Of a prompt, for which a server makes room."""


@dataclass(frozen=True, slots=True)
class Acted:
    """How the policy acted where it was judged; it is served alike."""

    image_size: int | None = None
    """Side of the square pictures, pixels; None where nobody said, or worlds differed."""
    temperature: float | None = None
    """Scale of the initial noise; None where nobody said."""
    context_tokens: Mapping[str, int] = field(default_factory=dict)
    """Robot tag -> tokens that its prompts had room for; bodies of which nobody said have what the policy's config
    gives them."""


@dataclass(frozen=True, slots=True)
class Contents:
    """All of `bundle.json`."""

    name: str
    """For a person."""
    weights: Weights
    """`plain`: a policy as it was; `merged`: with its adapter folded in; `adapter`: with the adapter beside."""
    embodiments: tuple[BundledBody, ...]
    """Bodies, in the policy's order."""
    limits: Mapping[str, Limits]
    """Robot tag -> what the body may be told; one for each."""
    provenance: Provenance
    """Where the weights come from."""
    guidance: float | None = None
    """beta of a merged policy that acts on advice; an adapter keeps its own."""
    signer: str = ""
    """Name of the public key that signed the manifest; empty where nobody did."""
    acted: Acted = Acted()
    """How it acted where it was judged."""

    @property
    def data(self) -> bytes:
        """As it is written."""
        plain = {"schema": SCHEMA, **asdict(self)}
        return json.dumps(plain, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"

    @classmethod
    def read(cls, folder: Path) -> Contents:
        """From a bundle whose bytes have been verified.

        Raises:
            UserError: of another version of this code, incomplete, or not what the policy beside it is.
        """
        path = folder / RECORD
        try:
            value = cast(dict[str, Any], parsed(read_small(path) or b""))
            if value.pop("schema", None) != SCHEMA:
                raise ValueError(f"schema is not {SCHEMA}")
            contents = _contents(value)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise damaged(path, f"{type(error).__name__}: {error}", f"a bundle of schema {SCHEMA}") from error
        for body in contents.embodiments:
            check_limits(body.spec.tag, contents.limits[body.spec.tag], body.spec.action.channels)
        _agree(folder, contents)
        _call_no_code(folder)
        return contents


def _contents(value: dict[str, Any]) -> Contents:
    bodies = tuple(
        BundledBody(_spec(body["spec"]), str(body["prompt"]), tuple(body["low"]), tuple(body["high"]))
        for body in value["embodiments"]
    )
    limits = {str(tag): limits_from(given) for tag, given in value["limits"].items()}
    if {body.spec.tag for body in bodies} != limits.keys():
        raise ValueError(f"limits of {sorted(limits)}, not of the embodiments")
    given = value["provenance"]
    provenance = Provenance(**{**given, "seeds": tuple(given["seeds"])})
    if value["weights"] not in ("plain", "merged", "adapter"):
        raise ValueError(f"weights {value['weights']!r}")
    acted = _acted(value.get("acted", {}))
    return Contents(**{**value, "embodiments": bodies, "limits": limits, "provenance": provenance, "acted": acted})


def _acted(value: dict[str, Any]) -> Acted:
    acted = Acted(**value)
    size, temperature, room = acted.image_size, acted.temperature, acted.context_tokens
    if not (size is None or (type(size) is int and SIDES[0] <= size <= SIDES[1])):
        raise ValueError(f"image_size {size!r}")
    if not (temperature is None or (type(temperature) in (int, float) and 0 <= temperature < float("inf"))):
        raise ValueError(f"temperature {temperature!r}")
    if not all(type(tokens) is int and 0 < tokens <= MOST_TOKENS for tokens in room.values()):
        raise ValueError(f"context_tokens {room!r}")
    return acted


def _spec(value: dict[str, Any]) -> EmbodimentSpec:
    return EmbodimentSpec(
        **{**value, "views": tuple(value["views"]), "action": ActionConvention(**value["action"])}
    )  # fmt: skip


def _agree(folder: Path, contents: Contents) -> None:
    """What the bundle says and what its policy does must be one."""
    config = _object(folder / POLICY / "config.json")
    quantiles = _object(folder / POLICY / "normalisation.json")
    says = {body.spec.tag: json.loads(json.dumps(asdict(body.spec))) for body in contents.embodiments}
    ranges = {body.spec.tag: {"q01": list(body.low), "q99": list(body.high)} for body in contents.embodiments}
    does = config.get("embodiments")
    for what, said, done in (
        ("embodiments", list(says.values()), does),
        ("normalisation", ranges, {tag: quantiles.get(tag) for tag in ranges}),
        ("adapter", contents.weights == "adapter", (folder / ADAPTER).is_dir()),
    ):
        if said != done:
            raise damaged(folder / RECORD, f"{what} {str(said)[:200]}", f"the policy's, {str(done)[:200]}")


def _call_no_code(folder: Path) -> None:
    for part in (POLICY, ADAPTER):
        for path in sorted((folder / part).rglob("*config.json")):
            found = sorted(CALLS_CODE & set(_keys_set(_object(path))))
            if found:
                raise damaged(path, f"the setting {found[0]}", "settings that call no other code")
        for path in sorted((folder / part).rglob("*.index.json")):
            shards = set(cast(dict[str, str], _object(path).get("weight_map", {})).values())
            outside = sorted(str(name) for name in shards if not (path.parent / Path(str(name)).name).is_file()
                             or Path(str(name)).name != name)  # fmt: skip
            if outside:
                raise damaged(path, f"weights in {outside[0]!r}", "files beside it")


def _keys_set(value: object) -> Iterator[str]:
    """Keys at any depth that have a value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if inner is not None:
                yield key
            yield from _keys_set(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys_set(inner)


def _object(path: Path) -> dict[str, Any]:
    try:
        value = parsed(read_small(path) or b"")
        if not isinstance(value, dict):
            raise ValueError(f"{type(value).__name__} in place of an object")
    except ValueError as error:
        raise damaged(path, str(error), "a JSON object") from error
    return value


@cache
def _sources() -> str:
    """First digits of the SHA-256 over all sources of this project, names included."""
    root, digest = Path(rl_finetune.__file__).parent.parent, hashlib.sha256()
    for package in ("actors", "envs", "learners", "rl_finetune"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def chosen_limits(bodies: Sequence[BundledBody], given: Mapping[str, Limits]) -> dict[str, Limits]:
    """Those that somebody gave, and defaults for the other bodies.

    Raises:
        UserError: some are of a body that the policy was not trained for, impossible, or cannot be kept by a server.
    """
    from rl_finetune.promotion.registry.limits import default_limits
    from rl_finetune.promotion.serving.envelope import bounds_of

    unknown = sorted(given.keys() - {body.spec.tag for body in bodies})
    if unknown:
        raise UserError(
            "limits of an embodiment that the policy was not trained for", got=repr(unknown[0]),
            expected=f"one of {sorted(body.spec.tag for body in bodies)}", do="correct the tag",
        )  # fmt: skip
    chosen: dict[str, Limits] = {}
    for body in bodies:
        tag = body.spec.tag
        limits = given.get(tag) or default_limits(body.spec, body.low, body.high)
        chosen[tag] = check_limits(tag, limits, body.spec.action.channels)
        bounds_of(body.spec, limits)
    return chosen
