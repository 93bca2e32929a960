"""One page of one candidate, without any request to the outside: what stands against it, and every number."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from rl_finetune.promotion.report import words
from rl_finetune.promotion.report.data import CandidateReport
from rl_finetune.promotion.report.sections import sections


def write_report(path: Path, data: CandidateReport) -> None:
    """Write the page beside and rename it, so that a reader never sees half of it.

    Raises:
        ValueError: see `render`; nothing is written then.
    """
    page = render(data)
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(page, encoding="utf-8")
    beside.replace(path)


def render(data: CandidateReport) -> str:
    """The page as text.

    Raises:
        ValueError: the episodes of a world do not pair, or a clip has no frames.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("rl_finetune.promotion.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=words.percent, points=words.points, span=words.span, shares=words.shares,
        number=words.number, ms=words.milliseconds,
        value_of=words.value_of, bound_of=words.bound_of, breakable=words.breakable, svg=Markup,
    )  # fmt: skip
    return environment.get_template("candidate.html.j2").render(
        data=data,
        evidence=data.evidence,
        verdict=data.verdict,
        symbols=words.SYMBOLS,
        style=Markup(_house("report.css") + _own("candidate.css")),
        script=Markup(_house("report.js") + _own("candidate.js")),
        page=sections(data),
    )


def _house(name: str) -> str:
    """A file that all pages of this project share."""
    return resources.files("rl_finetune.metrics").joinpath("templates", name).read_text(encoding="utf-8")


def _own(name: str) -> str:
    return resources.files("rl_finetune.promotion.report").joinpath("templates", name).read_text(encoding="utf-8")
