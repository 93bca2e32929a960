"""Whether a policy can act in a world, told by its files and the world's spec: nothing is loaded, nothing is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from rl_finetune.errors import UserError
from rl_finetune.policy.config import QwenVLAConfig
from rl_finetune.policy.prompt import prompt, view_tokens
from rl_finetune.spec import EmbodimentSpec, EnvSpec, handshake

TOKENIZER_FILE = "tokenizer.json"
LEAST = "-"
"""Whatever the task, it takes a token."""


def check(config: QwenVLAConfig, backbone: Path | None, spec: EnvSpec) -> EmbodimentSpec:
    """Everything that policy and world must agree on; the policy's entry for the body.

    Args:
        config: the policy's.
        backbone: folder of its own backbone; None where it gets another one, of which its config says nothing.
        spec: the world's.

    Raises:
        UserError: names what differs.
    """
    body = handshake(config.embodiments, spec)
    if backbone is not None:
        check_pictures(config, spec)
        check_prompts(backbone, config, spec)
    return body


def check_pictures(config: QwenVLAConfig, spec: EnvSpec) -> None:
    """Refuse pictures that do not divide into visual tokens.

    Raises:
        UserError: names side and unit.
    """
    if spec.image_size % config.picture_unit:
        raise UserError(
            f"pictures of {spec.name!r} do not divide into visual tokens",
            got=f"image_size={spec.image_size}", expected=f"a multiple of {config.picture_unit} pixels",
            do="set the world's image_size accordingly",
        )  # fmt: skip


def check_prompts(backbone: Path, config: QwenVLAConfig, spec: EnvSpec, tasks: Sequence[str] = (LEAST,)) -> None:
    """Refuse prompts that are longer than the policy's context. Room is made for the tasks that a spec names; where it
    names none, the policy has what it was taught with.

    Args:
        backbone: folder with the tokenizer.
        config: the policy's.
        spec: of a world whose body the policy knows.
        tasks: in words, as far as they are known.

    Raises:
        UserError: says how long the prompt is and how long it may be.
    """
    file, tag = backbone / TOKENIZER_FILE, spec.embodiment.tag
    if spec.tasks or not file.is_file():
        return
    length, needed = config.context_tokens.get(tag, config.max_context_tokens), _longest(file, config, spec, tasks)
    if needed > length:
        raise UserError(
            f"prompts of {spec.name!r} are longer than the policy's context", got=f"{needed} tokens",
            expected=f"at most {length}",
            do="name the world's longest tasks in EnvSpec.tasks, use smaller pictures, or teach the policy this world "
            "with `rl-finetune sft`",
        )  # fmt: skip


def prompt_room(config: QwenVLAConfig, backbone: Path, specs: Sequence[EnvSpec]) -> dict[str, int]:
    """Robot tag -> tokens that prompts are padded to where a policy has been made ready for these worlds; nothing of
    bodies that it does not know.

    Args:
        config: the policy's.
        backbone: folder with the tokenizer.
        specs: of the worlds.
    """
    known, file = {body.tag for body in config.embodiments}, backbone / TOKENIZER_FILE
    found: dict[str, int] = {}
    for spec in specs if file.is_file() else ():
        tag = spec.embodiment.tag
        if tag in known:
            length = found.get(tag, config.context_tokens.get(tag, config.max_context_tokens))
            found[tag] = max(length, _longest(file, config, spec, spec.tasks)) if spec.tasks else length
    return found


def _longest(file: Path, config: QwenVLAConfig, spec: EnvSpec, tasks: Sequence[str]) -> int:
    """Tokens of the longest prompt."""
    tokenizer, side = Tokenizer.from_file(str(file)), spec.image_size // config.picture_unit
    tokenizer.add_special_tokens([tag for view in config.views for tag in view_tokens(view)])
    body = next(known for known in config.embodiments if known.tag == spec.embodiment.tag)
    return max(len(tokenizer.encode(prompt(body, task, side**2), add_special_tokens=False).ids) for task in tasks)


@dataclass(frozen=True, slots=True)
class Bytes:
    """What one observation takes at least."""

    pictures: int
    """As the world gives them."""
    patches: int
    """The same on their way into the backbone: float32, each frame twice."""
    context: int
    """Encoded: float32 hidden states, three positions and a mask a token."""

    @classmethod
    def of(cls, config: QwenVLAConfig, spec: EnvSpec) -> Bytes:
        """For a policy of that config in a world of that spec."""
        views, side = len(spec.embodiment.views), spec.image_size // config.picture_unit
        known = config.context_tokens.get(spec.embodiment.tag, config.max_context_tokens)
        pictures = 3 * views * spec.image_size**2
        return cls(pictures, 8 * pictures, max(known, views * side**2) * (4 * config.decoder.context_width + 3 * 8 + 1))

    @property
    def acting(self) -> int:
        """What an environment takes whose policy acts."""
        return self.pictures + self.patches + self.context
