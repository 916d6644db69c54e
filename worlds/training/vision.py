"""Train the vision encoder: captions give the whole image its meaning, patch labels give the patch tokens theirs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from worlds.scenes.captions import captions
from worlds.scenes.generator import Scene, SceneConfig, generate_scene
from worlds.scenes.vocabulary import CATEGORIES, COLOR_NAMES

if TYPE_CHECKING:
    from worlds.models import CLIPModel, PreTrainedTokenizerFast, SiglipModel

IGNORED = -100

BACKGROUND = len(CATEGORIES)

# A patch counts as an object's from this share of its pixels on, as background up to the smaller one; between, unsaid.
OBJECT_COVERAGE, BACKGROUND_COVERAGE = 0.25, 0.05

MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1)

STD = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)

SIGLIP_MEAN = SIGLIP_STD = torch.full((3, 1, 1), 0.5)


def to_pixels(images: torch.Tensor, mean: torch.Tensor = MEAN, std: torch.Tensor = STD) -> torch.Tensor:
    """Normalise uint8 `(n, height, width, 3)` as a processor does (CLIP's), to float32 `(n, 3, height, width)`."""
    return (images.permute(0, 3, 1, 2).float() / 255 - mean.to(images.device)) / std.to(images.device)


def patch_owners(scene: Scene, n_side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tell which object covers most of each patch.

    Returns
    -------
    category, color : numpy.ndarray
        `(n_side ** 2,)` int64 numbers of that object's category and colour; 0 where no object is.
    covered : numpy.ndarray
        `(n_side ** 2,)` share of the patch's pixels that it covers, in [0, 1].
    """
    rows, columns = scene.height // n_side, scene.width // n_side
    covered = np.zeros((n_side, n_side), np.float32)
    category = np.zeros((n_side, n_side), np.int64)
    color = np.zeros((n_side, n_side), np.int64)
    for item in scene.objects:
        share = item.full_mask(scene.height, scene.width)
        share = share.reshape(n_side, rows, n_side, columns).mean((1, 3), dtype=np.float32)
        mine = share > covered
        category[mine] = CATEGORIES.index(item.category)
        color[mine] = COLOR_NAMES.index(item.color)
        covered = np.maximum(share, covered)
    return category.ravel(), color.ravel(), covered.ravel()


def patch_labels(scene: Scene, n_side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label each patch for supervision: as `patch_owners`, with `BACKGROUND` and `IGNORED` where they apply."""
    category, color, covered = patch_owners(scene, n_side)
    owned = covered >= OBJECT_COVERAGE
    bare = np.where(covered <= BACKGROUND_COVERAGE, BACKGROUND, IGNORED)
    return np.where(owned, category, bare), np.where(owned, color, IGNORED), covered


def visible_patches(draw: torch.Tensor, covered: torch.Tensor, n_tokens: int) -> torch.Tensor:
    """Choose the patches that the encoder is shown: covered ones first, then background at random.

    Parameters
    ----------
    draw : torch.Tensor
        ``(n_scenes, n_patches)`` random numbers in [0, 1) that order patches of a kind.
    covered : torch.Tensor
        ``(n_scenes, n_patches)`` share of each patch that an object covers.
    n_tokens : int
        Patches shown of each scene.

    Returns
    -------
    torch.Tensor
        ``(n_scenes, n_tokens)`` positions, ascending.
    """
    order = draw + 2.0 * (covered > BACKGROUND_COVERAGE)
    return order.topk(n_tokens, 1).indices.sort(1).values


class VisionBatches(Dataset):
    """Draw the batch of step *k*: pixels, one of five captions, patch labels, and what the image contains."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        seed: int,
        batch_size: int,
        n_side: int,
        scenes: SceneConfig,
    ):
        self.tokenizer, self.seed, self.batch_size = tokenizer, seed, batch_size
        self.n_side, self.scenes = n_side, scenes

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        scenes = [
            generate_scene(self.seed, step * self.batch_size + i, config=self.scenes)
            for i in range(self.batch_size)
        ]
        rng = np.random.default_rng([self.seed, step])
        texts = [captions(s.objects, s.background)[rng.integers(5)] for s in scenes]
        tokens = self.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        labels = [patch_labels(s, self.n_side) for s in scenes]
        present = torch.zeros(len(scenes), len(CATEGORIES), len(COLOR_NAMES))
        for row, scene in enumerate(scenes):
            for item in scene.objects:
                present[row, CATEGORIES.index(item.category), COLOR_NAMES.index(item.color)] = 1
        return {
            "images": torch.from_numpy(np.stack([s.pixels for s in scenes])),
            "caption": tokens["input_ids"],
            "caption_mask": tokens["attention_mask"],
            "category": torch.from_numpy(np.stack([c for c, _, _ in labels])),
            "color": torch.from_numpy(np.stack([c for _, c, _ in labels])),
            "covered": torch.from_numpy(np.stack([c for _, _, c in labels])),
            "present": present,
            "draw": torch.from_numpy(rng.random((len(scenes), self.n_side**2), np.float32)),
        }


@dataclass(frozen=True)
class VisionLoss:
    """Weigh the parts of the loss; `n_tokens` of `None` shows the encoder all patches of an image.

    With `n_tokens` set, an image contributes that many patches: covered ones first, then background at random. This is
    FLIP's masking (Li et al. 2023) with the masks at hand: over twice as many scenes in the same time.
    """

    n_tokens: int | None = None
    contrastive: float = 0.5
    patch: float = 1.0
    content: float = 1.0


class VisionTrainer(nn.Module):
    """Hold the heads that only training needs; a subclass adds a pair of image and caption encoders."""

    def __init__(self, width: int, weights: VisionLoss):
        super().__init__()
        self.weights = weights
        self.category_head = nn.Linear(width, len(CATEGORIES) + 1)
        self.color_head = nn.Linear(width, len(COLOR_NAMES))
        self.content_head = nn.Linear(width, len(CATEGORIES) + len(CATEGORIES) * len(COLOR_NAMES))

    def encode(self, pixels: torch.Tensor, chosen: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what stands for the image `(n, width)`, and the chosen patches' rows `(n, n_chosen, width)`.

        The rows are those of the hidden state that the MLLM reads.
        """
        raise NotImplementedError

    def contrast(
        self, whole: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of matching images and captions, and their similarities `(n, n)`."""
        raise NotImplementedError

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the weighted loss of a batch and accuracies on it."""
        weights = self.weights
        category, color, chosen = batch["category"], batch["color"], None
        if weights.n_tokens is not None and weights.n_tokens < category.shape[1]:
            chosen = visible_patches(batch["draw"], batch["covered"], weights.n_tokens)
            category, color = category.gather(1, chosen), color.gather(1, chosen)
        whole, patches = self.encode(batch["images"], chosen)

        category_logits, color_logits = self.category_head(patches), self.color_head(patches)
        patch_loss = F.cross_entropy(category_logits.flatten(0, 1), category.flatten(), ignore_index=IGNORED)
        patch_loss = patch_loss + 0.5 * F.cross_entropy(
            color_logits.flatten(0, 1), color.flatten(), ignore_index=IGNORED
        )

        present = batch["present"]
        content = torch.cat([present.amax(2), present.flatten(1)], 1)
        content_logits = self.content_head(whole)
        content_loss = 10 * F.binary_cross_entropy_with_logits(content_logits, content)

        contrastive, similarity = self.contrast(whole, batch)
        total = (
            weights.patch * patch_loss + weights.content * content_loss + weights.contrastive * contrastive
        )
        with torch.no_grad():
            on_object = color != IGNORED
            n_categories = len(CATEGORIES)
            found = content_logits[:, :n_categories][content[:, :n_categories] > 0] > 0
            numbers = {
                "category": (category_logits.argmax(-1) == category)[on_object].float().mean(),
                "color": (color_logits.argmax(-1) == color)[on_object].float().mean(),
                "background": (category_logits.argmax(-1) == category)[category == BACKGROUND].float().mean(),
                "cls_recall": found.float().mean(),
                "matched": (similarity.argmax(1).cpu() == torch.arange(len(similarity))).float().mean(),
            }
        return total, numbers


class ClipTrainer(VisionTrainer):
    """Train as CLIP is: [CLS] against the caption, softmax over the batch; patch rows of hidden state -2."""

    def __init__(self, clip: CLIPModel, weights: VisionLoss):
        super().__init__(clip.config.vision_config.hidden_size, weights)
        self.clip = clip

    def encode(self, pixels: torch.Tensor, chosen: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the [CLS] output and the patch rows; see `VisionTrainer.encode`."""
        vision = self.clip.vision_model
        hidden = vision.embeddings(to_pixels(pixels))
        if chosen is not None:
            hidden = torch.cat([hidden[:, :1], _rows(hidden[:, 1:], chosen)], 1)
        hidden = vision.pre_layrnorm(hidden)
        *body, last = vision.encoder.layers
        for layer in body:
            hidden = _hidden(layer(hidden, attention_mask=None))
        cls = vision.post_layernorm(_hidden(last(hidden, attention_mask=None))[:, 0])
        return cls, hidden[:, 1:]

    def contrast(
        self, whole: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return CLIP's loss; see `VisionTrainer.contrast`."""
        image = F.normalize(self.clip.visual_projection(whole), dim=-1)
        text_hidden = self.clip.text_model(
            input_ids=batch["caption"], attention_mask=batch["caption_mask"]
        ).last_hidden_state
        ends = batch["caption_mask"].sum(1) - 1
        text = F.normalize(self.clip.text_projection(text_hidden[torch.arange(len(ends)), ends]), dim=-1)
        similarity = self.clip.logit_scale.exp().clamp(max=100) * image @ text.T
        target = torch.arange(len(similarity), device=similarity.device)
        loss = (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2
        return loss, similarity


class SiglipTrainer(VisionTrainer):
    """Train as SigLIP is: the attention pool against captions, a sigmoid for every pair; patch rows of the last layer.

    Differs: the caption is read at its last word, not at the end of a padded sequence.

    Source: Zhai et al. 2023 (SigLIP).
    """

    def __init__(self, siglip: SiglipModel, weights: VisionLoss):
        super().__init__(siglip.config.vision_config.hidden_size, weights)
        self.siglip = siglip
        nn.init.constant_(siglip.logit_scale, math.log(10.0))
        nn.init.constant_(siglip.logit_bias, -10.0)

    def encode(self, pixels: torch.Tensor, chosen: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the attention pool's output and the patch rows; see `VisionTrainer.encode`."""
        vision = self.siglip.vision_model
        hidden = vision.embeddings(to_pixels(pixels, SIGLIP_MEAN, SIGLIP_STD))
        if chosen is not None:
            hidden = _rows(hidden, chosen)
        for layer in vision.encoder.layers:
            hidden = _hidden(layer(hidden, attention_mask=None))
        return vision.head(vision.post_layernorm(hidden)), hidden

    def contrast(
        self, whole: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return SigLIP's loss; see `VisionTrainer.contrast`."""
        text_hidden = self.siglip.text_model(
            input_ids=batch["caption"], attention_mask=batch["caption_mask"]
        ).last_hidden_state
        ends = batch["caption_mask"].sum(1) - 1
        text = self.siglip.text_model.head(text_hidden[torch.arange(len(ends)), ends])
        image, text = F.normalize(whole, dim=-1), F.normalize(text, dim=-1)
        similarity = self.siglip.logit_scale.exp().clamp(max=100) * image @ text.T + self.siglip.logit_bias
        sign = 2 * torch.eye(len(similarity), device=similarity.device) - 1
        return -F.logsigmoid(sign * similarity).sum(1).mean(), similarity


def _rows(hidden: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return the chosen rows of each image, `(n, n_chosen, width)`."""
    return hidden.gather(1, chosen.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))


def _hidden(output: torch.Tensor | tuple) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]
