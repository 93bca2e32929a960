"""The prompt: one set of weights for every robot, the body named in words (arXiv 2605.30280, embodiment prompt)."""

from __future__ import annotations

from rl_finetune.errors import UserError
from rl_finetune.instructions import SPECIAL, instruction
from rl_finetune.spec import EmbodimentSpec

VISION_START, VISION_END, IMAGE_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
RESERVED = ("vision", "im")
"""Views whose tags would be tokens that the model has for other things."""

OUTPUTS = {
    "delta_ee": "control actions",
    "joint": "control actions",
    "waypoint": "waypoints (dx, dy, dtheta)",
    "trace": "points (u, v)",
}
"""What the policy is asked for, by control convention; navigation names convention and horizon as the paper does."""


def body_sentence(body: EmbodimentSpec, task: str) -> str:
    """The embodiment and task as the paper words them.

    Raises:
        UserError: the task is no line of words (`instructions.instruction`), or the body's own words hold a token.
    """
    task = instruction(task)
    if SPECIAL in body.tag + body.arms:
        raise UserError(
            "embodiment cannot be named in a prompt", got=f"{body.tag!r}, {body.arms!r}",
            expected=f"words without {SPECIAL!r}", do="rename it",
        )  # fmt: skip
    parts = body.arms + (", waist" if body.waist else "")
    if body.mobile_base:
        parts += ", and mobile base" if parts else "mobile base"
    equipped = f" with {parts}" if parts else ""
    return (
        f"The robot is {body.tag}{equipped}. The control frequency is {body.action.rate:g} Hz. Please predict the next "
        f"{body.action.horizon} {OUTPUTS[body.action.control]} to execute the following task: {task}."
    )


def view_tokens(view: str) -> tuple[str, str]:
    """Opening and closing tag of one camera view.

    Raises:
        UserError: they would be tokens that the model has for other things.
    """
    if view in RESERVED or "|" in view:
        raise UserError(
            "view cannot be tagged in a prompt", got=repr(view), expected=f"a word other than {', '.join(RESERVED)}",
            do="rename the view",
        )  # fmt: skip
    return f"<|{view}_start|>", f"<|{view}_end|>"


def prompt(body: EmbodimentSpec, task: str, visual_tokens: int) -> str:
    """Tagged views, each with its image placeholders expanded, then the sentence.

    Args:
        body: the embodiment.
        task: in words.
        visual_tokens: tokens that one picture becomes.

    Raises:
        UserError: a view, the body or the task cannot be in a prompt.
    """
    pictures = "".join(
        start + VISION_START + IMAGE_PAD * visual_tokens + VISION_END + end
        for start, end in map(view_tokens, body.views)
    )
    return pictures + body_sentence(body, task)
