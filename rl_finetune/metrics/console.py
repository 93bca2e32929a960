"""What a person sees while a run goes: a live table in a terminal, one plain line an iteration elsewhere."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rl_finetune.metrics.rows import IterationRow

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

_BARS = "▁▂▃▄▅▆▇█"
_TREND = 32
_EVENTS = 6

_CURVES = (
    ("return", "mean_return"),
    ("ratio error", "first_ratio_error"),
    ("clip fraction", "clip_fraction"),
    ("KL", "kl"),
    ("effective samples", "effective_samples"),
    ("explained variance", "explained_variance"),
    ("executed std", "executed_std"),
    ("gradient norm", "grad_norm"),
    ("env steps / s", "steps_per_second"),
    ("seconds / iteration", "seconds"),
)
"""Label and attribute of the rows below success."""


class Dashboard:
    """Context manager around a run; `update` it after every iteration."""

    def __init__(
        self,
        title: str,
        total_iterations: int,
        max_minutes: float | None = None,
        console: Console | None = None,
    ) -> None:
        """`max_minutes` bounds the time left; `console` replaces standard output."""
        from rich.console import Console as RichConsole

        self.title = title
        self.total = total_iterations
        self.max_minutes = max_minutes
        self.console = console or RichConsole()
        self.rows: deque[IterationRow] = deque(maxlen=max(_TREND, 30))
        self.events: deque[str] = deque(maxlen=_EVENTS)
        self._live: Live | None = None

    def __enter__(self) -> Dashboard:
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            from rich.live import Live

            self._live = Live(self._table(), console=self.console, refresh_per_second=2)
            self._live.start()
        else:
            self._print(self.title)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, row: IterationRow) -> None:
        """Show a finished iteration and its events."""
        self.rows.append(row)
        if self._live is None:
            self._print(plain_line(row, self.total, self.seconds_left()))
        for event in row.events:
            self._event(f"{row.iteration}: {event}")
        self._refresh()

    def note(self, event: str) -> None:
        """Show something that happens between iterations, for example an evaluation."""
        self._event(event)
        self._refresh()

    def seconds_left(self) -> float:
        """Time to the last iteration at the pace of the latest ones, or to the time limit; NaN before the first."""
        if not self.rows:
            return math.nan
        first, last = self.rows[0], self.rows[-1]
        done = last.iteration - first.iteration
        pace = 60 * (last.minutes - first.minutes) / done if done > 0 else last.seconds
        left = pace * max(self.total - last.iteration, 0)
        return left if self.max_minutes is None else min(left, max(60 * (self.max_minutes - last.minutes), 0.0))

    def _event(self, text: str) -> None:
        self.events.append(text)
        if self._live is None:
            self._print(f"  * {text}")

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._table())

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.console.file.flush()

    def _table(self) -> RenderableType:
        from rich.console import Group
        from rich.panel import Panel

        parts: list[RenderableType] = [self._progress()]
        if self.rows:
            parts += [self._metrics(), self._foot()]
        parts += [_text(f"• {event}", "yellow") for event in self.events]
        title = _text(self.title, "bold")
        return Panel(Group(*parts), title=title, title_align="left", border_style="dim", padding=(1, 2))

    def _progress(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table as RichTable

        done = self.rows[-1].iteration if self.rows else 0
        grid = RichTable.grid(padding=(0, 2), expand=True)
        grid.add_column()
        grid.add_column(ratio=1)
        grid.add_column(justify="right")
        left = clock(self.seconds_left()) if self.rows else "..."
        bar = ProgressBar(total=self.total, completed=done)
        grid.add_row(f"iteration {done}/{self.total}", bar, f"time left {left}")
        return grid

    def _metrics(self) -> Table:
        from rich.table import Table as RichTable

        row = self.rows[-1]
        table = RichTable(box=None, padding=(0, 2), show_header=False)
        table.add_column(style="dim")
        table.add_column(justify="right")
        table.add_column(style="cyan", no_wrap=True)
        table.add_row(
            "success (rolling)",
            _text(share(row.success, row.success_interval), "bold"),
            sparkline([r.success for r in self.rows], 0, 1),
        )
        for label, world in row.worlds.items():
            past = [r.worlds[label].success for r in self.rows if label in r.worlds]
            table.add_row(label, share(world.success, world.success_interval), sparkline(past, 0, 1))
        for label, name in _CURVES:
            table.add_row(label, number(getattr(row, name)), sparkline([getattr(r, name) for r in self.rows]))
        return table

    def _foot(self) -> Text:
        row = self.rows[-1]
        lost = f", {_times(row.actors_lost)} lost and restarted" if row.actors_lost else ""
        style = "yellow" if row.actors_lost else "dim"
        return _text(
            f"{row.actors_healthy} actors alive{lost} · policy version {row.policy_version} · "
            f"{row.env_steps:,} env steps · {row.minutes:.1f} min",
            style,
        )


def plain_line(row: IterationRow, total: int, seconds_left: float) -> str:
    """One iteration as one line of a log; of several worlds each one's success at the end."""
    worlds = "".join(f" | {label} {_percent(world.success)}" for label, world in row.worlds.items())
    broken = f" broken {row.failures}" if row.failures else ""
    return (
        f"[{row.iteration:>{len(str(total))}}/{total}] "
        f"success {share(row.success, row.success_interval)} return {number(row.mean_return)} | "
        f"ratio error {number(row.first_ratio_error)} clip {number(row.clip_fraction)} kl {number(row.kl)} "
        f"ev {number(row.explained_variance)} std {number(row.executed_std)} | "
        f"{row.steps_per_second:.0f} steps/s {row.seconds:.1f} s left {clock(seconds_left)} | "
        f"actors {row.actors_healthy} lost {row.actors_lost}{broken} v{row.policy_version}{worlds}"
    )


def number(value: float) -> str:
    """Three significant digits, short."""
    if not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e5:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def share(value: float, interval: tuple[float, float]) -> str:
    """In percent with its interval; a dash before the first episode has ended."""
    return f"{value:.1%} [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]" if math.isfinite(value) else "-"


def _percent(value: float) -> str:
    return f"{value:.0%}" if math.isfinite(value) else "-"


def clock(seconds: float) -> str:
    """m:ss, or h:mm:ss."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def sparkline(values: Sequence[float], low: float | None = None, high: float | None = None) -> str:
    """The latest values as bars between `low` and `high`, or their own range; a blank where there is no number."""
    shown = list(values)[-_TREND:]
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return ""
    bottom = min(finite) if low is None else low
    span = (max(finite) if high is None else high) - bottom
    top = len(_BARS) - 1

    def bar(value: float) -> str:
        if not math.isfinite(value):
            return " "
        share = (value - bottom) / span if span > 0 else 0.0
        return _BARS[min(max(round(share * top), 0), top)]

    return "".join(bar(value) for value in shown)


def _times(count: int) -> str:
    return "1 was" if count == 1 else f"{count} were"


def _text(content: str, style: str) -> Text:
    from rich.text import Text as RichText

    return RichText(content, style=style)
