"""Everything that a robot is to be driven by, in one folder that nobody can change unnoticed.

bundle.json      what it is: embodiments, limits, provenance (contents.py)
policy/          as `QwenVLAPolicy.save_pretrained` writes it
adapter/         as `save_adapters` writes it, where it was not merged
evaluations/     files that speak for it
manifest.json    SHA-256 and size of every file above; its own SHA-256 is the bundle's digest
manifest.sig     Ed25519 signature of the manifest, 64 bytes, where there is one
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rl_finetune.config.schema import PolicySection
from rl_finetune.durable import sha256, sync_folder
from rl_finetune.errors import UserError
from rl_finetune.promotion.records import Limits, PolicyName
from rl_finetune.promotion.registry import signing
from rl_finetune.promotion.registry.contents import TASK, Acted, BundledBody, Contents, Provenance, chosen_limits
from rl_finetune.promotion.registry.filling import bodies_of, put_evaluations, put_weights, sync_tree
from rl_finetune.promotion.registry.manifest import (
    ADAPTER,
    MANIFEST,
    POLICY,
    RECORD,
    SIGNATURE,
    Manifest,
    damaged,
    read_small,
    unchanged,
)

if TYPE_CHECKING:
    from rl_finetune.policy import QwenVLAPolicy
    from rl_finetune.spec import EnvSpec

NO_LIMITS: Mapping[str, Limits] = {}
UNSAID = Acted()


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle of which every byte was verified when this record was made."""

    folder: Path
    """Where it lies."""
    digest: str
    """SHA-256 of its manifest: its identity."""
    contents: Contents
    """What it says of itself."""
    manifest: Manifest
    """Its files."""
    trusted: bool = False
    """Whether one of the keys that were given signed it."""

    @property
    def name(self) -> str:
        """For a person."""
        return self.contents.name

    @property
    def called(self) -> PolicyName:
        """As evidence names it."""
        return PolicyName(self.name, self.digest)

    @property
    def limits(self) -> Mapping[str, Limits]:
        """Robot tag -> what the body may be told."""
        return self.contents.limits

    @property
    def embodiments(self) -> tuple[BundledBody, ...]:
        """Bodies that it can act in."""
        return self.contents.embodiments

    @property
    def section(self) -> PolicySection:
        """Its policy as settings would name it: a bundle's parts are loaded as they would be from anywhere else."""
        adapter = str(self.folder / ADAPTER) if self.contents.weights == "adapter" else None
        return PolicySection(path=str(self.folder / POLICY), adapter=adapter, guidance=self.contents.guidance)

    @property
    def provenance(self) -> Provenance:
        """Where the weights come from."""
        return self.contents.provenance

    @property
    def acted(self) -> Acted:
        """How it acted where it was judged."""
        return self.contents.acted

    @property
    def signer(self) -> str:
        """Name of the public key that signed it; empty where nobody did. Only `trusted` says that it is one of ours."""
        return self.contents.signer

    def load(self, specs: Sequence[EnvSpec] = ()) -> QwenVLAPolicy:
        """The policy, ready to act. Every byte is verified again before it is parsed, and must rest meanwhile.

        Args:
            specs: environments that it will act in, see `load_policy`.

        Raises:
            UserError: a file is not what was made, or this code would word the prompt otherwise.
        """
        from rl_finetune.policy.loading import load_policy

        if sha256(_manifest(self.folder)) != self.digest:
            raise damaged(self.folder / MANIFEST, "another manifest", f"hash {self.digest[:12]}")
        stamps = self.manifest.verify(self.folder)
        policy = load_policy(self.section, specs)
        for tag, tokens in self.acted.context_tokens.items():
            policy.make_room_in(tag, tokens)
        unchanged(self.folder, stamps)
        _same_words(self)
        return policy


def open_bundle(
    folder: Path, *, trusted: Sequence[Path] = (), require_signature: bool = False, digest: str | None = None
) -> Bundle:
    """Verify a bundle and read what it says of itself; nothing in it is parsed before all bytes are verified.

    Args:
        folder: where it lies.
        trusted: public keys in PEM; a bundle that is signed must be signed by one of them, where there are any.
        require_signature: refuse a bundle that is not signed by a trusted key.
        digest: refuse any other bundle.

    Raises:
        UserError: a file is missing, changed, too many, a link or of a kind that has no place in it; the signature is
            not what it should be. Names the file.
    """
    data = _manifest(folder)
    signature = read_small(folder / SIGNATURE, signing.BYTES)
    signer = None if signature is None or not trusted else _signer(folder, data, signature, trusted)
    if require_signature and signer is None:
        raise UserError(
            "bundle is not signed by anybody who is trusted", got=f"{folder}, " + _signed(signature, trusted),
            expected="a signature by one of the trusted keys", do="make it with sign_with, and name the public key",
        )  # fmt: skip
    if digest is not None and sha256(data) != digest:
        raise damaged(folder / MANIFEST, f"hash {sha256(data)[:12]}", f"hash {digest[:12]}")
    manifest = Manifest.parse(folder, data)
    stamps = manifest.verify(folder)
    contents = Contents.read(folder)
    unchanged(folder, stamps)
    _check_signer(folder, contents.signer, data, signature)
    if signer not in (None, contents.signer):
        raise damaged(folder / RECORD, f"signer {contents.signer[:12]}", f"{signer}, who signed it")
    return Bundle(folder, manifest.digest, contents, manifest, trusted=signer is not None)


def bundle_digest(folder: Path) -> str:
    """Digest of the bundle that a folder says it holds; nothing is verified.

    Raises:
        UserError: there is no manifest.
    """
    return sha256(_manifest(folder))


def make_bundle(
    policy: str | Path,
    folder: Path,
    *,
    name: str,
    provenance: Provenance,
    adapter: Path | None = None,
    merge: bool = True,
    backbone: str | None = None,
    limits: Mapping[str, Limits] = NO_LIMITS,
    evaluations: Sequence[Path] = (),
    acted: Acted = UNSAID,
    sign_with: Path | None = None,
) -> Bundle:
    """Put a policy and all that belongs to it into a new folder, written beside and renamed.

    Args:
        policy: folder or hub id of a policy.
        folder: the bundle's; must not exist.
        name: for a person.
        provenance: where the weights come from.
        adapter: folder of an adapter that was trained on it.
        merge: fold the adapter into the weights; otherwise it is kept beside them.
        backbone: another folder or hub id for the backbone, as the policy was trained with.
        limits: robot tag -> what the body may be told; others get defaults from their normalisation.
        evaluations: files (.json, .jsonl) that speak for the policy; copied under their names.
        acted: how it acts where it is judged, and shall be served.
        sign_with: private key in PEM.

    Raises:
        UserError: the folder exists, the policy cannot be loaded, limits or files do not fit; nothing is left.
    """
    if folder.exists():
        raise UserError("bundle exists", got=str(folder), expected="a new folder", do="choose another one")
    signer = signing.public_name(sign_with) if sign_with else ""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir()
        weights, guidance = put_weights(beside, policy, backbone, adapter, merge)
        bodies = bodies_of(beside / POLICY)
        told = replace(provenance, evaluations=put_evaluations(beside, evaluations))
        contents = Contents(name, weights, bodies, chosen_limits(bodies, limits), told, guidance, signer, acted)
        (beside / RECORD).write_bytes(contents.data)
        manifest = Manifest.of(beside)
        (beside / MANIFEST).write_bytes(manifest.data)
        if sign_with:
            (beside / SIGNATURE).write_bytes(signing.sign(manifest.data, sign_with))
        open_bundle(beside, digest=manifest.digest)
        sync_tree(beside)
        beside.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return open_bundle(folder, digest=manifest.digest)


def _same_words(bundle: Bundle) -> None:
    from rl_finetune.policy.prompt import body_sentence

    for body in bundle.embodiments:
        if body_sentence(body.spec, TASK) != body.prompt:
            raise UserError(
                "this code words the prompt otherwise than the bundle was made for", expected=repr(body.prompt),
                got=repr(body_sentence(body.spec, TASK)), do=f"use the code that made it: {bundle.provenance.code}",
            )  # fmt: skip


def _manifest(folder: Path) -> bytes:
    data = read_small(folder / MANIFEST)
    if data is None:
        raise UserError(
            "no bundle there", got=str(folder), expected=f"a folder with {MANIFEST}",
            do="name a bundle that `rl-finetune promote bundle` made",
        )  # fmt: skip
    return data


def _signer(folder: Path, data: bytes, signature: bytes, trusted: Sequence[Path]) -> str:
    signer = signing.verify(data, signature, trusted)
    if signer is None:
        raise damaged(folder / SIGNATURE, "a signature by nobody who is trusted", f"one by {_names(trusted)}")
    return signer


def _signed(signature: bytes | None, trusted: Sequence[Path]) -> str:
    return "no signature" if signature is None else "no trusted keys" if not trusted else "another key's signature"


def _check_signer(folder: Path, signer: str, data: bytes, signature: bytes | None) -> None:
    """A signature can neither be taken away, nor added, nor changed."""
    if bool(signer) != (signature is not None):
        raise damaged(
            folder / SIGNATURE, "a signature" if signature else "nothing", f"signer {signer[:12] or 'nobody'}"
        )
    if signature is not None and not signing.verify_by(data, signature, signer):
        raise damaged(folder / SIGNATURE, "a signature that does not hold", f"one by {signer[:12]}")


def _names(trusted: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in trusted)
