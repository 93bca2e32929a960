"""What the page of one candidate is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rl_finetune.metrics.report_data import Clip
from rl_finetune.promotion.records import NONE, Evidence, PolicyName, Verdict
from rl_finetune.types import FloatArray


@dataclass(frozen=True, slots=True)
class EpisodeClips:
    """One episode as both policies played it; a side that was not filmed is None."""

    candidate: Clip | None
    """The candidate's film."""
    incumbent: Clip | None
    """The incumbent's film of the same episode."""
    suite: str = NONE
    """Perturbation suite of the episode."""

    @property
    def shown(self) -> Clip:
        """The film that names world, episode and instruction.

        Raises:
            ValueError: neither side was filmed.
        """
        found = self.candidate or self.incumbent
        if found is None:
            raise ValueError("clips of an episode: got none of either policy; expected at least one")
        return found


@dataclass(frozen=True, slots=True)
class ActionTrace:
    """Commanded actions of one episode."""

    world: str
    """Label of the world."""
    embodiment: str
    """Robot tag; its limits are drawn."""
    episode: int
    """Number of the episode."""
    control_period: float
    """Seconds of one control step, > 0."""
    candidate: FloatArray
    """[T, c] action units, one row a control step."""
    incumbent: FloatArray | None = None
    """[T', c] of the incumbent in the same episode, where it was kept."""
    suite: str = NONE
    """Perturbation suite of the episode."""
    success: bool | None = None
    """Whether the candidate did the task, where that is known."""


@dataclass(frozen=True, slots=True)
class TrialArm:
    """One side of a blinded comparison on the robot."""

    letter: str
    """What the operators call it, for example `A`."""
    trials: int
    """Trials that count."""
    successes: int
    """Of these."""
    aborted: int = 0
    """Trials that were broken off."""
    interventions: int = 0
    """Times that an operator stepped in."""
    policy: PolicyName | None = None
    """Who it is; None while blinded."""


@dataclass(frozen=True, slots=True)
class EvidencePoint:
    """The sequential test after a pair of trials."""

    pair: int
    """Its number, from 1."""
    value: float
    """The test's statistic; what is positive speaks for the first arm."""
    low: float
    """Boundary at which the test stops against the first arm; -inf where there is none."""
    high: float
    """Boundary at which it stops for the first arm; inf where there is none."""


@dataclass(frozen=True, slots=True)
class TrialNote:
    """What an operator wrote down."""

    trial: int
    """Number of the trial."""
    letter: str
    """Arm that was playing."""
    words: str
    """The note, or why the trial was aborted."""


@dataclass(frozen=True, slots=True)
class TrialsView:
    """Where the trials on the robot stand."""

    arms: tuple[TrialArm, ...]
    """In the order of their letters; the first one is what positive evidence speaks for."""
    evidence: tuple[EvidencePoint, ...]
    """In the order of the pairs; empty while blinded."""
    planned: int
    """Pairs after which the test ends at the latest."""
    test: str = ""
    """Which test with which error rates, in words."""
    decision: str = ""
    """What it decided; empty while it goes on."""
    notes: tuple[TrialNote, ...] = ()
    """Of the operators, oldest first."""
    taken: int = 0
    """Pairs that are complete."""

    @property
    def blinded(self) -> bool:
        """Whether any arm is still a letter only."""
        return not self.arms or any(arm.policy is None for arm in self.arms)


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One line of the registry's ledger about this bundle."""

    index: int
    """Its place in the ledger."""
    time: str
    """When, as the ledger has it."""
    kind: str
    """What happened, for example `submit` or `advance`."""
    words: str
    """In words: from where to where, and the note."""
    by: str = ""
    """Who did it."""
    digest: str = ""
    """The entry's hash."""


@dataclass(frozen=True, slots=True)
class CandidateReport:
    """Everything on the page of one candidate. What is empty or None is left out, and the page says so."""

    evidence: Evidence
    """What was measured."""
    verdict: Verdict
    """What the gates said to it."""
    clips: tuple[EpisodeClips, ...] = ()
    """Filmed episodes; the page puts those first that the candidate lost."""
    traces: tuple[ActionTrace, ...] = ()
    """Commanded actions of a few episodes."""
    trials: TrialsView | None = None
    """Trials on the robot, where there are any."""
    history: tuple[HistoryEntry, ...] = ()
    """The ledger's entries about this bundle, oldest first."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Name -> value, for example code version, seeds, commands."""
    channels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Robot tag -> [c] names of its action channels; they are numbered where none are given."""
    frames_per_second: float = 8.0
    """Pace of the clips on the page."""

    def channel(self, embodiment: str, index: int) -> str:
        """Name of an action channel, counted from 0."""
        names = self.channels.get(embodiment, ())
        return names[index] if index < len(names) else f"channel {index + 1}"
