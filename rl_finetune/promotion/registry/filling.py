"""What goes into a bundle: weights, evaluations, and what the policy was trained for. torch is imported when needed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from rl_finetune.durable import sha256, sync_folder
from rl_finetune.errors import UserError
from rl_finetune.promotion.registry.contents import TASK, BundledBody, Weights
from rl_finetune.promotion.registry.manifest import ADAPTER, EVALUATIONS, POLICY, check_path

PROSE = ("README.md", ".gitattributes", ".gitignore", "LICENSE")
"""Files of a checkpoint that nothing is loaded from; they are left behind."""
NEEDED = ("config.json", "normalisation.json", "model.safetensors", "backbone/config.json")


def copy_folder(source: Path, target: Path) -> None:
    """Copy what a policy is loaded from, links resolved, prose left behind.

    Raises:
        UserError: some of it could hold code, such as pickled weights.
    """
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_dir() or path.name in PROSE:
            continue
        check_path(source, f"{POLICY}/{name}")
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)


def copy_bundle(source: Path, target: Path) -> None:
    """Copy a whole bundle, links as links so that they are refused; files cannot be written to by mistake."""
    shutil.copytree(source, target, symlinks=True)
    for path in target.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o444)
    sync_tree(target)
    sync_folder(target.parent)


def sync_tree(folder: Path) -> None:
    """Make all files of a folder survive a power cut."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def put_weights(
    beside: Path, policy: str | Path, backbone: str | None, adapter: Path | None, merge: bool
) -> tuple[Weights, float | None]:
    """Write the policy, and the adapter where it is kept beside; arguments as `make_bundle`'s.

    Returns:
        What became of the weights, and the guidance that merged ones act with.

    Raises:
        UserError: they cannot be loaded or copied.
    """
    from rl_finetune.config.schema import PolicySection
    from rl_finetune.policy.identity import folders_of
    from rl_finetune.policy.loading import load_policy
    from rl_finetune.policy.policy import BACKBONE_FOLDER

    merged = adapter is not None and merge
    section = PolicySection(path=str(policy), backbone=backbone, adapter=None if adapter is None else str(adapter))
    if merged:
        loaded = load_policy(section, merge=True)
        loaded.save_pretrained(beside / POLICY)
        return "merged", loaded.guidance
    source, eyes = folders_of(section)
    (beside / POLICY).mkdir()
    for name in NEEDED:
        if (source / name).is_file() and "/" not in name:
            shutil.copyfile(source / name, beside / POLICY / name)
    copy_folder(eyes, beside / POLICY / BACKBONE_FOLDER)
    _check_whole(policy, beside / POLICY)
    if adapter is None:
        return "plain", None
    load_policy(section, with_backbone=(adapter / "backbone").is_dir())
    copy_folder(adapter, beside / ADAPTER)
    return "adapter", None


def put_evaluations(beside: Path, files: Sequence[Path]) -> dict[str, str]:
    """Copy evaluation files; path in the bundle -> SHA-256.

    Raises:
        UserError: one cannot be read, two have the same name, or one is neither .json nor .jsonl.
    """
    found: dict[str, str] = {}
    for path in files:
        name = f"{EVALUATIONS}/{path.name}"
        check_path(path.parent, name)
        if name in found:
            raise UserError("two evaluation files of one name", got=path.name, expected="different names", do="rename")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(
                "evaluation file cannot be read", got=f"{path}: {error.strerror}", expected="a file",
                do="name the files that `rl-finetune evaluate` wrote",
            ) from error  # fmt: skip
        (beside / EVALUATIONS).mkdir(exist_ok=True)
        (beside / name).write_bytes(data)
        found[name] = sha256(data)
    return found


def bodies_of(policy: Path) -> tuple[BundledBody, ...]:
    """What the policy in a folder was trained for.

    Raises:
        UserError: config or normalisation cannot be read, or an embodiment is not in the latter.
    """
    from rl_finetune.policy import QwenVLAConfig, normalisation
    from rl_finetune.policy.prompt import body_sentence

    quantiles = normalisation.load(policy)
    bodies = QwenVLAConfig.load(policy).embodiments
    missing = sorted({body.tag for body in bodies} - quantiles.keys())
    if missing:
        raise UserError(
            "embodiment without an action normalisation", got=repr(missing[0]), expected=f"one of {sorted(quantiles)}",
            do="copy normalisation.json again from the checkpoint's source",
        )  # fmt: skip
    return tuple(
        BundledBody(body, body_sentence(body, TASK), quantiles[body.tag].q01, quantiles[body.tag].q99)
        for body in bodies
    )


def _check_whole(policy: str | Path, copied: Path) -> None:
    missing = [name for name in NEEDED if not (copied / name).is_file()]
    if missing:
        raise UserError(
            "policy is not whole", got=f"{policy} without {missing[0]}", expected=f"a folder with {', '.join(NEEDED)}",
            do="name a policy folder; if its backbone lies elsewhere, name that too",
        )  # fmt: skip
