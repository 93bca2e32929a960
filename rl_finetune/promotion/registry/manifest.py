"""Which files a bundle consists of, byte for byte; nothing in it is parsed before this has been verified."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast

from rl_finetune.durable import Json, parsed, sha256
from rl_finetune.errors import UserError

MANIFEST, SIGNATURE, RECORD = "manifest.json", "manifest.sig", "bundle.json"
POLICY, ADAPTER, EVALUATIONS = "policy", "adapter", "evaluations"
WEIGHTS = frozenset({".json", ".safetensors", ".txt", ".jinja"})
"""Suffixes of what a policy is loaded from: none of them can hold code, and .txt and .jinja are a tokenizer's words."""
SUFFIXES: Mapping[str, frozenset[str]] = {
    POLICY: WEIGHTS,
    ADAPTER: WEIGHTS,
    EVALUATIONS: frozenset({".json", ".jsonl"}),
}
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
MOST_BYTES = 1 << 24
"""Of a manifest or a record: more is no bundle of ours."""
COPY_AGAIN = "copy the bundle again from where it was made; do not load this one"


@dataclass(frozen=True, slots=True)
class Sealed:
    """One file as it was when the bundle was made."""

    sha256: str
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes when somebody writes to a file, without reading it again."""

    inode: int
    size: int
    modified: int
    changed: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """All files of a bundle but the manifest itself and its signature."""

    files: Mapping[str, Sealed]
    """Path with `/` -> what it holds."""

    @classmethod
    def of(cls, folder: Path) -> Manifest:
        """Of what lies in a folder.

        Raises:
            UserError: something there has no place in a bundle.
        """
        found = {}
        for name in _walk(folder):
            check_path(folder, name)
            found[name] = _read(folder / name)[0]
        return cls(dict(sorted(found.items())))

    @classmethod
    def parse(cls, folder: Path, data: bytes) -> Manifest:
        """From the bytes of the manifest in a folder.

        Raises:
            UserError: they are not as `data` would write them, or name a path outside of a bundle.
        """
        try:
            value = cast(dict[str, dict[str, Json]], parsed(data))
            files = {name: Sealed(str(f["sha256"]), int(cast(int, f["size"]))) for name, f in value.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise damaged(folder / MANIFEST, f"{type(error).__name__}: {error}", "sha256 and size by path") from error
        for name in files:
            check_path(folder, name)
        manifest = cls(files)
        if manifest.data != data:
            raise damaged(folder / MANIFEST, "bytes that were never written so", "the manifest of a bundle")
        return manifest

    @property
    def data(self) -> bytes:
        """As it is written: one spelling only, so that every byte counts."""
        plain = {name: {"sha256": f.sha256, "size": f.size} for name, f in self.files.items()}
        return json.dumps(plain, indent=1, sort_keys=True).encode() + b"\n"

    @property
    def digest(self) -> str:
        """SHA-256 of `data`: the bundle's identity."""
        return sha256(self.data)

    def verify(self, folder: Path) -> dict[str, Stamp]:
        """Read every byte of every file there.

        Returns:
            Stamps of all of them and of their folders, for `unchanged`.

        Raises:
            UserError: a file is missing, changed, too many, or no plain file; names it.
        """
        # Before the names are read: whoever adds or takes away a file later changes its folder's stamp.
        places = {str(inside) for name in self.files for inside in PurePosixPath(name).parents}
        stamps = {place: _stamp((folder / place).lstat()) for place in places if (folder / place).is_dir()}
        found = set(_walk(folder))
        for name in sorted(found - self.files.keys()):
            raise damaged(folder / name, "a file that the manifest does not name", "no such file")
        for name in sorted(self.files.keys() - found):
            raise damaged(folder / name, "nothing", f"{self.files[name].size} bytes")
        for name, wanted in self.files.items():
            size = (folder / name).lstat().st_size
            if size != wanted.size:
                raise damaged(folder / name, f"{size} bytes", f"{wanted.size} bytes")
            sealed, stamps[name] = _read(folder / name)
            if sealed != wanted:
                raise damaged(folder / name, f"hash {sealed.sha256[:12]}", f"hash {wanted.sha256[:12]}")
        return stamps


def unchanged(folder: Path, stamps: Mapping[str, Stamp]) -> None:
    """Verify that nobody has written to the files, added one or taken one away since they were read.

    Raises:
        UserError: somebody has.
    """
    for name, before in stamps.items():
        try:
            now = _stamp((folder / name).lstat())
        except OSError:
            now = None
        if now != before:
            raise damaged(folder / name, "something that was written to while it was loaded", "one that rests")


def check_path(folder: Path, name: str) -> None:
    """Refuse a path that leaves the bundle, and a kind of file that has no place in it.

    Raises:
        UserError: so it is.
    """
    path = PurePosixPath(name)
    if str(path) != name or path.is_absolute() or not all(PART.fullmatch(part) for part in path.parts):
        raise damaged(folder / MANIFEST, f"path {name!r}", "a plain path inside the bundle")
    if name == RECORD:
        return
    suffixes = SUFFIXES.get(path.parts[0]) if len(path.parts) > 1 else None
    if suffixes is None or path.suffix not in suffixes:
        raise damaged(
            folder / name, f"suffix {path.suffix!r}", f"{RECORD}, or in {' '.join(SUFFIXES)} one of {sorted(WEIGHTS)}",
            do="a bundle holds JSON and safetensors, never pickles or code: convert the weights to safetensors",
        )  # fmt: skip


def read_small(path: Path, most: int = MOST_BYTES) -> bytes | None:
    """A small file, or None where there is none.

    Raises:
        UserError: no plain file, or larger than `most` bytes.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise damaged(path, str(error.strerror), "a plain file") from error
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            raise damaged(path, f"{status.st_size} bytes", f"a plain file of at most {most} bytes")
        return file.read()


def damaged(path: Path, got: object, expected: object, do: str = COPY_AGAIN) -> UserError:
    """The error of a bundle that is not what was made."""
    return UserError(f"bundle file {path} is not what was made", got=got, expected=expected, do=do)


def _walk(folder: Path, inside: str = "") -> Iterator[str]:
    """Paths of all files but manifest and signature, with `/`."""
    with os.scandir(folder / inside) as listing:
        entries = sorted(listing, key=lambda entry: entry.name)
    if inside and not entries:
        raise damaged(folder / inside, "an empty folder", "no such folder")
    for entry in entries:
        name = f"{inside}{entry.name}"
        if entry.is_symlink():
            raise damaged(folder / name, f"a link to {os.readlink(entry.path)!r}", "a plain file")
        if entry.is_dir():
            yield from _walk(folder, f"{name}/")
        elif not entry.is_file():
            raise damaged(folder / name, "neither file nor folder", "a plain file")
        elif name not in (MANIFEST, SIGNATURE):
            yield name


def _read(path: Path) -> tuple[Sealed, Stamp]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            status = os.fstat(handle)
    except OSError as error:
        raise damaged(path, str(error.strerror), "a file that can be read") from error
    return Sealed(digest, status.st_size), _stamp(status)


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
