"""metrics.jsonl: one line an iteration, kept in step with the checkpoint that a run resumes from."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rl_finetune.errors import UserError

Record = dict[str, Any]


class Journal:
    """Append-only lines of JSON in a run folder. A line half-written when the run was killed is dropped."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"
        self._file: TextIO | None = None

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line and hand it to the system. Numbers that are not finite become null."""
        line = json.dumps(_finite(record), allow_nan=False)
        if self._file is None:
            self._drop_half_line()
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(line + "\n")
        self._file.flush()

    def read(self) -> list[Record]:
        """All whole lines, oldest first; none where there is no file.

        Raises:
            UserError: a line other than the last is damaged.
        """
        if not self.path.exists():
            return []
        *lines, rest = self.path.read_bytes().split(b"\n")
        records = [self._record(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
        try:
            return [*records, _mapping(rest)] if rest.strip() else records
        except ValueError:
            return records

    def truncate_after(self, iteration: int) -> None:
        """Drop the lines of later iterations: the run goes on from a checkpoint that does not know them."""
        kept = [record for record in self.read() if record["iteration"] <= iteration]
        self.close()
        beside = self.path.with_name(self.path.name + ".tmp")
        with beside.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in kept)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _record(self, number: int, line: bytes) -> Record:
        try:
            return _mapping(line)
        except ValueError as error:
            raise UserError(
                f"line {number} of {self.path} is damaged",
                got=repr(line[:40].decode(errors="replace")),
                expected="one JSON object",
                do="repair or delete the line",
            ) from error

    def _drop_half_line(self) -> None:
        """End the file with a whole line: what is appended must not continue half of another."""
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            last = content[content.rfind(b"\n") + 1 :]
            with self.path.open("r+b") as file:
                if _is_mapping(last):
                    file.seek(0, os.SEEK_END)
                    file.write(b"\n")
                else:
                    file.truncate(len(content) - len(last))


def _mapping(line: bytes) -> Record:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("not an object")
    return record


def _is_mapping(line: bytes) -> bool:
    try:
        _mapping(line)
    except ValueError:
        return False
    return True


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
