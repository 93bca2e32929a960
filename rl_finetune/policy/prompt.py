"""The prompt: one set of weights for every robot, the body named in words (arXiv 2605.30280, embodiment prompt)."""

from __future__ import annotations

from rl_finetune.spec import EmbodimentSpec

VISION_START, VISION_END, IMAGE_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"


OUTPUTS = {
    "delta_ee": "control actions",
    "joint": "control actions",
    "waypoint": "waypoints (dx, dy, dtheta)",
    "trace": "points (u, v)",
}
"""What the policy is asked for, by control convention; navigation names convention and horizon as the paper does."""


def body_sentence(body: EmbodimentSpec, instruction: str) -> str:
    """The embodiment and task as the paper words them."""
    parts = body.arms + (", waist" if body.waist else "")
    if body.mobile_base:
        parts += ", and mobile base" if parts else "mobile base"
    equipped = f" with {parts}" if parts else ""
    return (
        f"The robot is {body.tag}{equipped}. The control frequency is {body.action.rate:g} Hz. Please predict the next "
        f"{body.action.horizon} {OUTPUTS[body.action.control]} to execute the following task: {instruction}."
    )


def view_tokens(view: str) -> tuple[str, str]:
    """Opening and closing tag of one camera view."""
    return f"<|{view}_start|>", f"<|{view}_end|>"


def prompt(body: EmbodimentSpec, instruction: str, visual_tokens: int) -> str:
    """Tagged views, each with its image placeholders expanded, then the sentence.

    Args:
        body: the embodiment.
        instruction: the task in words.
        visual_tokens: tokens that one picture becomes.
    """
    pictures = "".join(
        start + VISION_START + IMAGE_PAD * visual_tokens + VISION_END + end
        for start, end in map(view_tokens, body.views)
    )
    return pictures + body_sentence(body, instruction)
