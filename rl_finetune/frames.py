"""Which part of a traceback is other people's code. Standard library only."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from traceback import walk_tb
from types import CodeType

OURS = ("rl_finetune", "envs", "actors", "learners")
PASSES_ON = ("gymnasium",)
"""Libraries that only call what somebody wrote."""

INSTALLED = ("site-packages", "dist-packages")
"""Folders of packages that are not Python's own."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A line of code that an exception passed through."""

    who: str
    """What was called: `Reach.step`, or the file of a module that was imported."""
    place: str
    """`my_world.py:41 in step`."""
    library: str
    """Name of the installed package that it is of; empty in a user's own files."""


def their_frames(error: BaseException) -> list[Frame]:
    """Other people's part of an exception's way, outermost first; empty where they have none.

    Their own files, or where it passed through none the first installed package that was called. Of exceptions that
    were raised from others the first that passed through their files counts.
    """
    chain = [[*_frames(each)] for each in _chained(error)]
    for frames in chain:
        if own := [frame for frame in frames if not frame.library]:
            return own
    packages = [frame.library for frame in chain[0] if frame.library not in PASSES_ON]
    return [frame for frame in chain[0] if frame.library == packages[0]] if packages else []


def _chained(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _frames(error: BaseException) -> Iterator[Frame]:
    """What is neither ours nor of Python itself, from our first frame on: what called us is not to blame."""
    codes = [(frame.f_code, line) for frame, line in walk_tb(error.__traceback__)]
    ours = [_is_ours(code.co_filename) for code, _ in codes]
    for code, line in codes[ours.index(True) if True in ours else 0 :]:
        library = _library(code.co_filename)
        if library is not None and not _is_ours(code.co_filename):
            yield _frame(code, line, library)


def _frame(code: CodeType, line: int, library: str) -> Frame:
    name = Path(code.co_filename).name
    who = name if code.co_name == "<module>" else code.co_qualname.rpartition("<locals>.")[2]
    return Frame(who, f"{name}:{line}" + ("" if who == name else f" in {code.co_name}"), library)


def _is_ours(file: str) -> bool:
    return file.startswith(_our_folders())


@cache
def _library(file: str) -> str | None:
    """Name of the installed package that a file is of, empty for a user's own, None for Python itself."""
    parts = Path(file).parts
    for place in INSTALLED:
        if place in parts:
            return parts[parts.index(place) + 1].removesuffix(".py")
    python = not os.path.isabs(file) or file.startswith(sysconfig.get_path("stdlib") + os.sep)  # `<string>`, Cython
    return None if python else ""


@cache
def _our_folders() -> tuple[str, ...]:
    root = Path(__file__).resolve().parent.parent
    return tuple(f"{root / name}{os.sep}" for name in OURS)
