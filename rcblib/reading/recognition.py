"""Tell which tokens name what lies beneath them: by what is said of them alone, or by the nearest word."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import pandas as pd
import torch

from rcblib.data.coverage import object_coverage
from rcblib.records import ParameterError, Sample, SceneObject, SequenceSample

_MIN_PREFIX = 3  # letters from which on the beginning of a word counts as that word


def recognised(
    frame: pd.DataFrame,
    samples: Iterable[Sample | SequenceSample],
    pieces: Mapping[str, Collection[int]] | None = None,
) -> pd.Series:
    """Tell which tokens are recognised alone: the top-1 word names the object beneath, or its colour.

    Parameters
    ----------
    frame : pandas.DataFrame
        Probe table with ``image_id``, ``top1_word`` and ``object_category``; of several photos or videos, with
        ``picture`` too.
    samples : iterable of Sample or SequenceSample
        The inputs of the table; colours are those of the objects of the category beneath in the same photo or frame.
    pieces : Mapping, optional
        Category to the token ids with which its name may begin (`rcblib.evaluate.tokens.first_pieces`): an LLM that
        writes names in pieces says no more with its first token. The frame then has ``top1_id`` too.

    Returns
    -------
    pandas.Series
        Booleans on the index of `frame`; false where no object lies beneath.

    Raises
    ------
    ParameterError
        If an image of the table is not among the samples, or has no annotated objects, or rows of several photos do
        not say which one they are of.

    Notes
    -----
    A word names a category if it is one of the category's words, its plural, or its beginning: a tokenizer of pieces
    may cut ``elephant`` after ``eleph``. Such a beginning has at least three letters and is not itself the name of
    another category (``car`` does not name a carrot).
    """
    by_id = {sample.image_id: sample for sample in samples}
    for image_id in frame["image_id"].unique():
        if image_id not in by_id or by_id[image_id].objects is None:
            raise ParameterError("samples", f"no objects of image {image_id}", "every image with its objects")
    known: dict[tuple[int, int, str], set[str]] = {}
    names = set()
    for image_id, sample in by_id.items():
        for picture, objects in enumerate(_objects_by_picture(sample)):
            for item in objects:
                words = {*item.category.lower().split(), *([item.color.lower()] if item.color else [])}
                known.setdefault((image_id, picture, item.category), set()).update(words)
                names.add(item.category.lower())
    pictures = frame["picture"].fillna(0) if "picture" in frame else pd.Series(0, index=frame.index)
    several = [i for i in frame["image_id"].unique() if by_id[i].n_images > 1]
    if several and "picture" not in frame:
        raise ParameterError(
            "frame", f"rows of image {several[0]} without a picture", "a table with the column picture"
        )
    said = zip(frame["image_id"], pictures, frame["top1_word"], frame["object_category"], strict=True)
    found = [
        isinstance(category, str)
        and _names(str(word).lower(), known.get((image_id, picture, category), set()), names)
        for image_id, picture, word, category in said
    ]
    if pieces is not None:
        first = zip(found, frame["top1_id"], frame["object_category"], strict=True)
        found = [whole or token_id in pieces.get(category, ()) for whole, token_id, category in first]
    return pd.Series(found, index=frame.index, dtype=bool)


def nearest_words(tokens: torch.Tensor, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the word embedding that each visual token is nearest to by cosine.

    Parameters
    ----------
    tokens : torch.Tensor
        ``(n_tokens, d_model)`` rows that enter the LLM.
    embeddings : torch.Tensor
        ``(n_words, d_model)``, at least one.

    Returns
    -------
    number, cosine : torch.Tensor
        ``(n_tokens,)`` each: which word, the first of equals, and its cosine in [-1, 1].
    """
    unit = torch.nn.functional.normalize(embeddings, dim=-1)
    cosine, number = (torch.nn.functional.normalize(tokens, dim=-1) @ unit.T).max(dim=-1)
    return number, cosine


def tabulate_nearest_words(
    sample: Sample,
    tokens: torch.Tensor,
    grid: tuple[int, int],
    embeddings: torch.Tensor,
    words: Sequence[str],
) -> pd.DataFrame:
    """Tabulate which word each visual token of a picture is nearest to, beside what lies beneath its patch.

    Parameters
    ----------
    sample : Sample
        A picture with annotated objects.
    tokens : torch.Tensor
        ``(height * width, d_model)`` rows that enter the LLM, in raster order.
    grid : tuple of int
        ``(height, width)`` of the tokens.
    embeddings : torch.Tensor
        ``(n_words, d_model)``, on the device of the tokens.
    words : sequence of str
        Their names, as the annotation spells categories.

    Returns
    -------
    pandas.DataFrame
        One row a token: ``image_id``, ``position``, nearest ``word`` and its ``cosine`` in [-1, 1], ``coverage`` by
        objects in [0, 1], the category ``beneath`` (missing where there is none), and ``right``: the word is that
        category.
    """
    nearest, cosine = nearest_words(tokens, embeddings)
    covered = object_coverage(sample, *grid)
    said = [words[i] for i in nearest.tolist()]
    return pd.DataFrame(
        {
            "image_id": sample.image_id,
            "position": range(len(said)),
            "word": said,
            "cosine": cosine.float().cpu().numpy(),
            "coverage": covered.share.numpy(),
            "beneath": covered.category,
            "right": [word == beneath for word, beneath in zip(said, covered.category, strict=True)],
        }
    )


def _objects_by_picture(sample: Sample | SequenceSample) -> Sequence[Sequence[SceneObject]]:
    """Return the annotated objects of each picture; none where there is no annotation."""
    if sample.objects is None:
        return ()
    return (sample.objects,) if isinstance(sample, Sample) else sample.objects


def _names(word: str, accepted: set[str], categories: set[str]) -> bool:
    """Tell whether a word is one of those accepted, a plural of one, or the beginning of one."""
    if word in accepted or (word.endswith("s") and word[:-1] in accepted):
        return True
    if len(word) < _MIN_PREFIX or word in categories:
        return False
    return any(name.startswith(word) for name in accepted)
