"""The vision-language backbone: transformers' own Qwen3.5 classes, fed in fixed-size batches.

This is the one file that imports transformers. The image processor and the prompt expansion are done here because
`Qwen3VLProcessor` needs torchvision; a test compares the patches with `Qwen2VLImageProcessorPil`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen3_5Config, Qwen3_5ForConditionalGeneration, Qwen3_5Tokenizer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging as transformers_logging

from rl_finetune.errors import UserError
from rl_finetune.policy.prompt import IMAGE_PAD, VISION_END, VISION_START, prompt, view_tokens
from rl_finetune.spec import EmbodimentSpec
from rl_finetune.types import ImageArray, Observation

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

NO_LENGTHS: Mapping[str, int] = MappingProxyType({})
ROWS = 4096
"""Tokenised prompts that are kept."""
END_OF_TEXT, IM_START, IM_END, VIDEO_PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|video_pad|>"


@dataclass(frozen=True, slots=True)
class BackboneInputs:
    """One batch of tokenised prompts and patches, padded to L tokens."""

    input_ids: Tensor
    """[N, L] int64."""
    mask: Tensor
    """[N, L] bool, real tokens."""
    positions: Tensor
    """[3, N, L] int64 multi-section rotary positions."""
    pixels: Tensor
    """[N * views * patches, 3 * temporal * patch * patch] normalised patches."""
    grid: Tensor
    """[N * views, 3] patches in time, height and width of each picture."""


@dataclass(frozen=True, slots=True)
class _PromptRow:
    """A tokenised prompt, computed once for each distinct text."""

    input_ids: Tensor
    mask: Tensor
    positions: Tensor


class Backbone(nn.Module):
    """Qwen3.5 with its tokenizer; turns observations into hidden states of fixed length L."""

    def __init__(
        self, model: Qwen3_5ForConditionalGeneration, tokenizer: Any, max_tokens: int, lengths: Mapping[str, int]
    ) -> None:
        """Wrap a model.

        Args:
            model: Qwen3.5.
            tokenizer: its tokenizer, which knows the view tags.
            max_tokens: L.
            lengths: robot tag -> another L, for bodies that have one.

        `spare` tokens may be added to every L, for words that are put behind an instruction.
        """
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.lengths = dict(lengths)
        self.spare = 0
        self._rows: dict[tuple[str, int, int, int], _PromptRow] = {}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def tokenise(self, observation: Observation, body: EmbodimentSpec) -> BackboneInputs:
        """Prompts and patches of one batch.

        Raises:
            UserError: pictures are not uint8 RGB, their sides are no multiple of patch size times merge size, or a
                prompt is longer than L.
        """
        vision = self.model.config.vision_config
        pictures = np.stack([observation.images[view] for view in body.views], axis=1)
        if pictures.dtype != np.uint8 or pictures.ndim != 5 or pictures.shape[-1] != 3:
            shape = pictures.shape[:1] + pictures.shape[2:]
            raise UserError(
                "camera pictures are no bytes", got=f"{pictures.dtype} of shape {shape}",
                expected="uint8 [N, h, w, 3]", do="read them with `rl_finetune.pictures.picture`",
            )  # fmt: skip
        height, width = pictures.shape[2:4]
        unit = vision.patch_size * vision.spatial_merge_size
        if height % unit or width % unit:
            raise UserError(
                "camera picture does not divide into visual tokens",
                got=f"{height} x {width} pixels",
                expected=f"multiples of {unit}",
                do="set the environment's image_size accordingly",
            )
        grid = torch.tensor([[1, height // vision.patch_size, width // vision.patch_size]])
        length = self.lengths.get(observation.embodiment, self.max_tokens) + self.spare
        rows = [self._row(body, text, grid, length) for text in observation.instruction]
        device = self.device
        return BackboneInputs(
            input_ids=torch.stack([row.input_ids for row in rows]).to(device),
            mask=torch.stack([row.mask for row in rows]).to(device),
            positions=torch.stack([row.positions for row in rows], dim=1).to(device),
            pixels=patchify(pictures.reshape(-1, height, width, 3), vision).to(device),
            grid=grid.expand(len(rows) * len(body.views), 3).to(device),
        )

    def fit(self, body: EmbodimentSpec, tasks: Sequence[str], image_size: int) -> None:
        """Raise L of that body where one of its tasks needs more."""
        side = self.visual_tokens(image_size)
        needed = [self.count(prompt(body, task, side)) for task in tasks]
        self.lengths[body.tag] = max([self.lengths.get(body.tag, self.max_tokens), *needed])

    def count(self, text: str) -> int:
        """Tokens of a prompt."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def visual_tokens(self, image_size: int) -> int:
        """Tokens that a square picture of that many pixels becomes."""
        vision = self.model.config.vision_config
        return int((image_size // (vision.patch_size * vision.spatial_merge_size)) ** 2)

    def see(self, inputs: BackboneInputs) -> Tensor:
        """Vision tower alone: [N, S, D] visual tokens as they enter the language model."""
        vision = self.model.model.visual(inputs.pixels.to(self.model.dtype), grid_thw=inputs.grid)
        return vision.pooler_output.unflatten(0, (len(inputs.input_ids), -1))

    def read(self, inputs: BackboneInputs, visual: Tensor) -> Tensor:
        """Language model over prompt and visual tokens: final normed hidden states [N, L, D], zero on padding."""
        seen = BaseModelOutputWithPooling(pooler_output=tuple(visual))
        hidden = self.model.model(
            input_ids=inputs.input_ids,
            attention_mask=inputs.mask.long(),
            position_ids=inputs.positions,
            mm_encoder_outputs={"image": seen},
            use_cache=False,
        ).last_hidden_state
        return hidden * inputs.mask[..., None]

    def forward(self, inputs: BackboneInputs) -> Tensor:
        """Final normed hidden states [N, L, D], zero on padding."""
        return self.read(inputs, self.see(inputs))

    def _row(self, body: EmbodimentSpec, instruction: str, grid: Tensor, length: int) -> _PromptRow:
        side = self.model.config.vision_config.spatial_merge_size
        tokens = int(grid.prod()) // side**2
        text = prompt(body, instruction, tokens)
        key = (text, int(grid[0, 1]), int(grid[0, 2]), length)
        if key not in self._rows:
            if len(self._rows) >= ROWS:  # whoever asks in ever new words must not fill the memory
                self._rows.pop(next(iter(self._rows)))
            self._rows[key] = self._tokenise_text(text, grid.expand(len(body.views), 3), length)
        return self._rows[key]

    def _tokenise_text(self, text: str, grid: Tensor, length: int) -> _PromptRow:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) > length:
            raise UserError(
                "prompt is longer than the policy's context",
                got=f"{len(ids)} tokens",
                expected=f"at most {length}",
                do="raise max_context_tokens or context_tokens in the policy's config.json, or use smaller pictures",
            )
        input_ids = torch.full((1, length), self.tokenizer.pad_token_id)
        input_ids[0, : len(ids)] = torch.tensor(ids)
        mask = torch.arange(length)[None] < len(ids)
        types = (input_ids == self.model.config.image_token_id).int()
        positions, _ = self.model.model.get_rope_index(input_ids, types, image_grid_thw=grid, attention_mask=mask.int())
        return _PromptRow(input_ids[0], mask[0], positions[:, 0])


def patchify(images: ImageArray, vision: Any) -> Tensor:
    """Patches in the order of Qwen's image processor: merge groups stay together, the frame is repeated in time.

    Args:
        images: [M, h, w, 3] uint8.
        vision: the backbone's vision config.

    Returns:
        [M * patches, 3 * temporal * patch * patch] float32 in [-1, 1].
    """
    m, h, w, _ = images.shape
    p, s = vision.patch_size, vision.spatial_merge_size
    x = torch.from_numpy(np.ascontiguousarray(images)).float().div_(127.5).sub_(1.0)
    x = x.reshape(m, h // (p * s), s, p, w // (p * s), s, p, 3)
    x = x.permute(0, 1, 4, 2, 5, 7, 3, 6)[:, :, :, :, :, :, None]
    x = x.expand(*x.shape[:6], vision.temporal_patch_size, p, p)
    return x.reshape(m * (h // p) * (w // p), -1)


def build_backbone(
    arguments: dict[str, Any],
    tokenizer: Any,
    max_tokens: int,
    dtype: torch.dtype,
    lengths: Mapping[str, int] = NO_LENGTHS,
) -> Backbone:
    """A freshly initialised backbone from `Qwen3_5Config` arguments."""
    ids = {
        "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE_PAD),
        "video_token_id": tokenizer.convert_tokens_to_ids(VIDEO_PAD),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids(VISION_START),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids(VISION_END),
    }
    model = Qwen3_5ForConditionalGeneration(Qwen3_5Config(**arguments, **ids)).to(dtype)
    return Backbone(model, tokenizer, max_tokens, lengths)


def load_backbone(
    name_or_path: str,
    max_tokens: int,
    dtype: torch.dtype,
    views: tuple[str, ...],
    lengths: Mapping[str, int] = NO_LENGTHS,
) -> Backbone:
    """Pretrained weights and tokenizer from a local folder or a hub id, such as `Qwen/Qwen3.5-4B`.

    View tags that the tokenizer does not know are added to it, and the embedding grows if it has to.

    Raises:
        UserError: nothing loadable there, or some weights are missing (transformers would fill in random ones).
    """
    refused = partial(
        UserError,
        "backbone cannot be loaded",
        expected="a Qwen3.5 folder or hub id",
        do="check the name, and for a hub id the network and HF_HUB_OFFLINE",
    )
    if Path(name_or_path).is_dir() and not (Path(name_or_path) / "config.json").is_file():
        # transformers would build its default configuration instead: nine billion parameters.
        raise refused(got=f"no config.json in {name_or_path}")
    try:
        model, found = Qwen3_5ForConditionalGeneration.from_pretrained(
            name_or_path, dtype=dtype, output_loading_info=True, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise refused(got=f"{name_or_path}: {_first_line(error)}") from error
    if found["missing_keys"]:
        first, *more = sorted(found["missing_keys"])
        raise refused(got=f"{name_or_path} without the weights {first} and {len(more)} others")
    tags = [tag for view in views for tag in view_tokens(view)]
    tokenizer.add_special_tokens({"additional_special_tokens": tags})
    if len(tokenizer) > model.config.text_config.vocab_size:
        with torch.random.fork_rng():  # new rows are drawn: every process must draw the same
            torch.manual_seed(0)
            model.resize_token_embeddings(len(tokenizer))
    return Backbone(model, tokenizer, max_tokens, lengths)


def save_backbone(backbone: Backbone, folder: Path) -> None:
    """Write a folder that transformers alone can load."""
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)


def tiny_tokenizer(corpus: list[str], views: tuple[str, ...], vocab_size: int) -> Any:
    """Qwen3.5's tokenizer class over a byte-level BPE learned from `corpus`; needs no hub."""
    reference = Qwen3_5Tokenizer()
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = reference.backend_tokenizer.pre_tokenizer
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 8 - 2 * len(views),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(corpus, trainer)
    vocab = learner.get_vocab()
    vocab[END_OF_TEXT] = len(vocab)
    merges = [tuple(pair) for pair in _merges(learner)]
    tokenizer = Qwen3_5Tokenizer(vocab=vocab, merges=merges)
    tags = [tag for view in views for tag in view_tokens(view)]
    specials = [IM_START, IM_END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD, *tags]
    tokenizer.add_special_tokens({"additional_special_tokens": specials})
    return tokenizer


def with_words(backbone: Backbone, tags: Iterable[str], texts: Iterable[str]) -> Backbone:
    """The same model behind a tokenizer that knows view `tags`, and as whole tokens the words of `texts`.

    Words get a token where the present tokenizer would spell them out, the most frequent first, as far as the embedding
    has rows: for small vocabularies, in which the words of a new body's prompt would be long.
    """
    tokenizer = deepcopy(backbone.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": list(dict.fromkeys(tags))})
    room = backbone.model.config.text_config.vocab_size - len(tokenizer)
    counted = Counter(
        text[first:last]
        for text in texts
        for _, (first, last) in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        if len(tokenizer(text[first:last], add_special_tokens=False)["input_ids"]) > 1
    )
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word, _ in counted.most_common(max(room, 0))])
    return Backbone(backbone.model, tokenizer, backbone.max_tokens, backbone.lengths)


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    import json

    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
