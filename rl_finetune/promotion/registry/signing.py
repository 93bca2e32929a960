"""Who made a bundle: Ed25519 signatures over its manifest. The one file that knows `cryptography`.

Keys are PEM files: the private one in PKCS 8 without a password and for its owner's eyes only (mode 0600), the public
one as SubjectPublicKeyInfo. A public key is named by the 64 hexadecimal digits of its 32 bytes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_finetune.errors import UserError
from rl_finetune.optional import require

CONTEXT = b"rl-finetune bundle manifest\0"
"""Before what is signed, so that a signature is good for nothing else."""
BYTES = 64
"""Of a signature."""


def make_keys(private: Path) -> Path:
    """Draw a key pair: the private key into `private`, the public one beside it as `<name>.pub`, which is returned. A
    folder that is missing is made, for its owner's eyes only.

    Raises:
        UserError: one of the files exists, or cannot be written; then there is neither.
    """
    serialization, key = _serialization(), _ed25519().Ed25519PrivateKey.generate()
    public = private.with_name(private.name + ".pub")
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    shown = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for path in (private, public):
        if os.path.lexists(path):
            raise _not_written(path, "exists")
    for path, data, mode in ((private, secret, 0o600), (public, shown, 0o644)):
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        except OSError as error:
            raise _not_written(path, str(error.strerror)) from error
        with os.fdopen(handle, "wb") as file:
            file.write(data)
    return public


def sign(message: bytes, private: Path) -> bytes:
    """Signature [64 bytes] of a message.

    Raises:
        UserError: the file is no private Ed25519 key, or others than its owner can read it.
    """
    return bytes(_private(private).sign(CONTEXT + message))


def public_name(private: Path) -> str:
    """Name of the public key that belongs to a private one."""
    return _name(_private(private).public_key())


def verify_by(message: bytes, signature: bytes, name: str) -> bool:
    """Whether the key of that name signed the message."""
    try:
        key = _ed25519().Ed25519PublicKey.from_public_bytes(bytes.fromhex(name))
    except ValueError:
        return False
    return _holds(key, message, signature)


def verify(message: bytes, signature: bytes, trusted: Sequence[Path]) -> str | None:
    """Name of the one of the trusted public keys that signed the message; None where none did.

    Raises:
        UserError: a file is no public Ed25519 key.
    """
    found = None
    for path in trusted:
        key = _public(path)
        if _holds(key, message, signature):
            found = _name(key)
    return found


def _holds(key: Any, message: bytes, signature: bytes) -> bool:
    invalid = _cryptography("cryptography.exceptions").InvalidSignature
    try:
        key.verify(signature, CONTEXT + message)
    except invalid:
        return False
    return True


def _private(path: Path) -> Any:
    expected = "a private Ed25519 key in PEM"
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise UserError(
                "private key can be read by others", got=f"{path} with mode {mode:04o}", expected="mode 0600",
                do=f"chmod 600 {path}, and draw a new key if others may have read it",
            )  # fmt: skip
        key = _serialization().load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, _unsupported()) as error:
        raise _no_key(path, str(error), expected) from error
    if not isinstance(key, _ed25519().Ed25519PrivateKey):
        raise _no_key(path, type(key).__name__, expected)
    return key


def _public(path: Path) -> Any:
    expected = "a public Ed25519 key in PEM"
    try:
        key = _serialization().load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, _unsupported()) as error:
        raise _no_key(path, str(error), expected) from error
    if not isinstance(key, _ed25519().Ed25519PublicKey):
        raise _no_key(path, type(key).__name__, expected)
    return key


def _no_key(path: Path, got: str, expected: str) -> UserError:
    reason = " ".join(got.split())[:200]
    return UserError("key cannot be used", got=f"{path}: {reason}", expected=expected, do="name another file")


def _not_written(path: Path, got: str) -> UserError:
    return UserError(
        "key cannot be written", got=f"{path}: {got}", expected="a new file in a folder that can be written to",
        do="choose another name: a key that was used is never overwritten",
    )  # fmt: skip


def _name(key: Any) -> str:
    serialization = _serialization()
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return bytes(raw).hex()


def _serialization() -> Any:
    return _cryptography("cryptography.hazmat.primitives.serialization")


def _ed25519() -> Any:
    return _cryptography("cryptography.hazmat.primitives.asymmetric.ed25519")


def _unsupported() -> Any:
    return _cryptography("cryptography.exceptions").UnsupportedAlgorithm


def _cryptography(module: str) -> Any:
    return require(module, purpose="a signed bundle", install="pip install 'rl-finetune[sign]'")
