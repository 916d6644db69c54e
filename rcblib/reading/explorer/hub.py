"""Upload an explorer to the Hugging Face Hub as a static Space: a page that the Hub serves and runs nothing for."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from rcblib.codebook.files import HUB_ID
from rcblib.reading.explorer.schema import Manifest
from rcblib.reading.explorer.writing import read_script
from rcblib.records import ParameterError
from rcblib.runs.paths import user_path

PATTERNS = ["index.html", "*.js", "*.css", "data/*"]
"""Files of an explorer that a page by itself needs."""

_CARD = """---
{facts}
---

# Point at a token

A picture as a multimodal LLM reads it, token by token: what each says alone, and what is lost without it.

Models: {models}. Pictures: {n_images}. Outputs are recorded; nothing is computed here.
"""


def push_explorer(
    folder: str | os.PathLike, repo_id: str, *, private: bool = False, token: str | None = None
) -> str:
    """Upload what `rcblib.reading.explorer.writing.write_explorer` wrote, pictures included.

    Parameters
    ----------
    folder : path-like
        The explorer's.
    repo_id : str
        ``owner/name`` of a Space; made where it does not exist. Its card is written anew.
    private : bool
        Whether a new Space is private.
    token : str, optional
        Access token; by default the one that the machine is logged in with.

    Returns
    -------
    str
        Address of the Space.

    Raises
    ------
    ParameterError
        On a malformed `repo_id`, or a folder that holds no explorer.
    OSError
        If the Hub refuses.
    """
    import huggingface_hub

    if not HUB_ID.fullmatch(repo_id):
        raise ParameterError("repo_id", repo_id, "owner/name")
    place = user_path(folder, "explorer")
    manifest = _manifest(place)
    facts = huggingface_hub.SpaceCardData(title="Point at a token", sdk="static", app_file="index.html")
    card = _CARD.format(
        facts=facts.to_yaml(),
        models=", ".join(f"`{model.name.replace('`', '')}`" for model in manifest.models),
        n_images=len(manifest.images),
    )
    api = huggingface_hub.HfApi(token=token)
    api.create_repo(repo_id, repo_type="space", space_sdk="static", private=private, exist_ok=True)
    upload = {"repo_id": repo_id, "repo_type": "space", "commit_message": "Upload an explorer"}
    with tempfile.TemporaryDirectory() as beside:
        for path in (path for pattern in PATTERNS for path in sorted(place.glob(pattern))):
            target = Path(beside, path.relative_to(place))
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
        Path(beside, "README.md").write_text(card, encoding="utf-8")
        api.upload_folder(folder_path=beside, **upload)
    return f"{api.endpoint}/spaces/{repo_id}"


def _manifest(place: Path) -> Manifest:
    """Read what an explorer holds; an error where a folder holds none."""
    accepted = "the folder of an explorer, with index.html and manifest.js"
    try:
        if not (place / "index.html").is_file():
            raise ValueError
        return Manifest.model_validate(read_script((place / "manifest.js").read_text(encoding="utf-8")))
    except (OSError, ValueError):  # pydantic's errors and those of JSON are ValueErrors
        raise ParameterError("explorer", str(place), accepted) from None
