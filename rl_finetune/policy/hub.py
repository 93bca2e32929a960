"""Turn a local folder or a hub id into a local folder."""

from __future__ import annotations

import re
from pathlib import Path

from rl_finetune.errors import UserError

HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


def local_folder(name: str | Path, what: str = "policy") -> Path:
    """An existing folder as it is; anything shaped like `owner/name` is fetched from the hub.

    Args:
        name: folder or hub id.
        what: a word for it, in messages.

    Raises:
        UserError: neither exists.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    advice = "check the path, or name a hub id such as owner/name"
    if not HUB_ID.match(str(name)):
        raise UserError(f"{what} not found", got=repr(str(name)), expected="an existing folder or a hub id", do=advice)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(str(name)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{what} not found",
            got=f"{str(name)!r}: {reason}",
            expected="an existing folder or a reachable hub id",
            do=advice,
        ) from error
