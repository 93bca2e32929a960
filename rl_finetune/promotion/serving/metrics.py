"""Counts and times of the server in Prometheus' text format (version 0.0.4). Standard library only.

Names of labels and their values come from the code, never from a client: a stranger cannot make the page grow.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

PREFIX = "rl_finetune_"
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Upper bounds of the latency buckets."""
SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Upper bounds of the batch-size buckets."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """Counts by upper bound, with their sum."""

    def __init__(self, bounds: Iterable[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self._counts[bisect.bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def lines(self, name: str) -> Iterable[str]:
        """Cumulative buckets, sum and count."""
        below = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            below += count
            yield f'{name}_bucket{{le="{bound}"}} {below}'
        yield f"{name}_sum {self._sum:.9g}"
        yield f"{name}_count {below}"


@dataclass(slots=True)
class Metrics:
    """Everything that is counted; written by the event loop alone."""

    requests: int = 0
    """Messages that came."""
    answers: int = 0
    """Chunks that left."""
    held: int = 0
    """Chunks that told a robot to stand still."""
    acting: int = 1
    """1 while the bundle may act, 0 while every robot is held."""
    connections: int = 0
    """Clients connected now."""
    accepted: int = 0
    """Clients that ever were."""
    errors: Counter[str] = field(default_factory=Counter)
    """Refusals by kind."""
    interventions: Counter[str] = field(default_factory=Counter)
    """Steps that the safety envelope changed, by kind of limit."""
    swaps: Counter[str] = field(default_factory=Counter)
    """Changes of the acting bundle: `swap`, `rollback`, `failed`."""
    latency: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    """Seconds from a whole message to its reply."""
    inference: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    """Seconds of the policy."""
    batch: Histogram = field(default_factory=lambda: Histogram(SIZES))
    """Requests computed together, once for each request."""

    def page(self, bundle: str, queued: int) -> str:
        """All of it as text.

        Args:
            bundle: digest of what acts.
            queued: requests that wait.
        """
        lines: list[str] = []
        for name, kind, about, samples in self._families(bundle, queued):
            lines += [f"# HELP {PREFIX}{name} {about}", f"# TYPE {PREFIX}{name} {kind}", *samples]
        return "\n".join(lines) + "\n"

    def _families(self, bundle: str, queued: int) -> Iterable[tuple[str, str, str, Iterable[str]]]:
        plain = (
            ("requests_total", "counter", "Messages that came.", self.requests),
            ("answers_total", "counter", "Chunks that left.", self.answers),
            ("held_total", "counter", "Chunks that told a robot to stand still.", self.held),
            ("accepted_total", "counter", "Clients that ever connected.", self.accepted),
            ("acting", "gauge", "1 while the bundle may act, 0 while every robot is held.", self.acting),
            ("connections", "gauge", "Clients connected now.", self.connections),
            ("queued", "gauge", "Requests that wait.", queued),
        )
        for name, kind, about, value in plain:
            yield name, kind, about, (f"{PREFIX}{name} {value}",)
        labelled = (
            ("errors_total", "Refusals by kind.", "kind", self.errors),
            ("interventions_total", "Steps that the safety envelope changed.", "limit", self.interventions),
            ("swaps_total", "Changes of the acting bundle.", "outcome", self.swaps),
        )
        for name, about, label, counts in labelled:
            yield name, "counter", about, _labelled(f"{PREFIX}{name}", label, counts)
        yield "bundle_info", "gauge", "Which bundle acts.", _labelled(f"{PREFIX}bundle_info", "digest", {bundle: 1})
        timed = (
            ("latency_seconds", "From a whole message to its reply.", self.latency),
            ("inference_seconds", "The policy alone.", self.inference),
            ("batch_size", "Requests computed together.", self.batch),
        )
        for name, about, histogram in timed:
            yield name, "histogram", about, histogram.lines(f"{PREFIX}{name}")


def _labelled(name: str, label: str, counts: Mapping[str, int]) -> list[str]:
    return [f'{name}{{{label}="{_escaped(value)}"}} {count}' for value, count in sorted(counts.items())]


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
