"""Write an explorer: scripts with its data, the script and the styles that show them, and a page."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import rcssmin
import rjsmin

from rcblib.data.samples import load_pictures
from rcblib.probe.inputs import Place, places_of
from rcblib.pruners.codebook import CodebookPruner
from rcblib.pruners.context import OF_SAMPLES, QUESTION
from rcblib.pruners.registry import PRUNERS
from rcblib.reading.explorer.build import Source, exhibit_of
from rcblib.reading.explorer.figure import static_figure
from rcblib.reading.explorer.packing import pack_texts, unpack_text
from rcblib.reading.explorer.pictures import MOST_BYTES, pictures_of, thumbnails
from rcblib.reading.explorer.schema import Exhibit, Image, Manifest, Model, Pictures, Seen, ShownMethod
from rcblib.records import ImageId, ParameterError
from rcblib.runs.files import atomic_write

PAGE = Path(__file__).parent / "page"
MOST_BYTES_IN_ALL = 4_000_000
MOST_BYTES_AT_FIRST = 300_000
"""Of what a page loads before anything is chosen."""

TOUR = [
    (
        "A picture is a grid of tokens",
        "The model does not see pixels. It reads one token for each square, and the token marked here is one of them.",
    ),
    (
        "What does it say alone?",
        "The model was shown this token and no other, and asked for one word. The bars are its five likeliest words. "
        "The deeper the tint, the surer a token is of its word.",
    ),
    (
        "Many say little",
        "Here is the token that is least sure. Tokens like it are alike in many pictures, and so they make a codebook "
        "of what is redundant.",
    ),
    (
        "Is it missed?",
        "The nine tokens around a place were taken out, and the whole picture was asked again. The deeper the tint, "
        "the more the answer moved.",
    ),
    (
        "Now drop tokens",
        "Faded tokens are gone before the model reads. Compare its answers with those after dropping as many at "
        "random, move the slider, and choose other methods.",
    ),
]
"""Title and text of each step of the tour; what it shows is the script's."""


def write_explorer(
    folder: str | os.PathLike, sources: Sequence[Source], title: str = "Point at a token"
) -> Manifest:
    """Write an explorer of what was measured, to be opened as a file or served.

    Parameters
    ----------
    folder : path-like
        Gets ``index.html``, ``fragment.html`` (what a page of a book includes), ``explorer.js``, ``explorer.css``,
        ``manifest.js``, and ``data/`` with a script for every picture, and one for every picture and model. What it
        held of an earlier explorer is replaced.
    sources : sequence of Source
        Of any number of models; pictures that several models were shown are kept once.
    title : str
        Of the page.

    Returns
    -------
    Manifest

    Raises
    ------
    ParameterError
        If budgets differ, or a picture, or all of them, take more than `MOST_BYTES` or `MOST_BYTES_IN_ALL`.
    """
    budgets = {tuple(source.budgets) for source in sources}
    if len(budgets) != 1:
        raise ParameterError("sources", f"budgets {sorted(budgets)}", "the same budgets in all")
    made = [own for source in sources for own in _exhibits(source)]
    pictures: dict[str, Pictures] = {}
    first_of: dict[str, Pictures] = {}
    seen: dict[tuple[str, str], Seen] = {}
    named: dict[tuple, str] = {}
    for exhibit, own in made:
        grids = [(view.rows, view.columns) for view in exhibit.views]
        first_of.setdefault(exhibit.image, own)
        key = exhibit.image if exhibit.image not in pictures else f"{exhibit.image}-{exhibit.model}"
        key = named.setdefault((exhibit.image, *grids), key)
        pictures.setdefault(key, own)
        seen[exhibit.image, exhibit.model] = Seen(pictures=key, grids=grids)
    manifest = _manifest(sources, seen, list(budgets.pop()), list(first_of.values()))
    files = {"manifest": manifest}
    files |= {f"data/{key}": own for key, own in pictures.items()}
    files |= {f"data/{exhibit.model}-{exhibit.image}": exhibit for exhibit, _ in made}
    texts = {name: script(name, content) for name, content in files.items()}
    first, own = made[0]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    values = {"title": title, "figure": static_figure(first, own), "manifest": manifest}
    pages = {
        name: environment.get_template(f"{name}.jinja").render(**values, folder=at)
        for name, at in (("index.html", "."), ("fragment.html", "explorer"))
    }
    programs = {
        name: minify((PAGE / name).read_text(encoding="utf-8")) + "\n"
        for name, minify in (("explorer.js", rjsmin.jsmin), ("explorer.css", rcssmin.cssmin))
    }
    at_first = ("manifest", f"data/{first.image}", f"data/{first.model}-{first.image}")
    _check_bytes("data", texts.values(), MOST_BYTES_IN_ALL)
    _check_bytes(
        "first load",
        [*map(texts.get, at_first), *programs.values(), pages["index.html"]],
        MOST_BYTES_AT_FIRST,
    )
    folder = Path(folder)
    shutil.rmtree(folder / "data", ignore_errors=True)
    for name, text in {**{f"{name}.js": text for name, text in texts.items()}, **programs, **pages}.items():
        atomic_write(folder / name, text.encode())
    return manifest


def _check_bytes(what: str, texts: Iterable[str], limit: int) -> None:
    n_bytes = sum(len(text.encode()) for text in texts)
    if n_bytes > limit:
        accepted = f"at most {limit / 1e6:g} MB: fewer images"
        raise ParameterError("shown", f"{what} of {n_bytes / 1e6:.2f} MB", accepted)


def script(name: str, content: Any) -> str:
    """Return a classic script that hands data over under a name: pages opened as files may load those.

    An exhibit is handed over as one text, as `pack_texts` writes it.
    """
    values = content.model_dump(mode="json")
    text = _json(pack_texts(_parts(values)) if isinstance(content, Exhibit) else values).replace("</", "<\\/")
    return f"(window.rcbExplorer=window.rcbExplorer||{{}})[{json.dumps(name)}]={text};\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _parts(values: Mapping[str, Any]) -> Iterator[str]:
    """Cut the text of an object where one of its fields begins."""
    for number, (name, value) in enumerate(values.items()):
        yield f"{',' if number else '{'}{_json(name)}:{_json(value)}"
    yield "}"


def read_script(text: str) -> Any:
    """Return the data that `script` wrote."""
    found = json.loads(text.partition("]=")[2].rstrip().rstrip(";"))
    return json.loads(unpack_text(found)) if isinstance(found, str) else found


def _exhibits(source: Source) -> Iterable[tuple[Exhibit, Pictures]]:
    for image_id in source.shown:
        places = _places(source, image_id)
        exhibit = exhibit_of(source, image_id, [place.view for place in places])
        n_left = MOST_BYTES - len(script(f"data/{exhibit.model}-{exhibit.image}", exhibit).encode()) - 300
        yield exhibit, pictures_of(source.adapter, source.samples[image_id], places, n_left)


def _places(source: Source, image_id: ImageId) -> list[Place]:
    sample = source.samples[image_id]
    return places_of(source.adapter.encode_input(load_pictures(sample), sample.kind))


def _kind(name: str) -> str:
    """Say in words what a method chooses by."""
    method = PRUNERS.get(name)
    if method is None or method.paper.startswith("a control") or name == "random":
        return "controls"
    if method.needs & OF_SAMPLES:
        return "bounds that know the answer"
    if method.kind._overrides("inside"):
        return "inside the LLM"
    if issubclass(method.kind, CodebookPruner):
        return "codebook"
    return "states of the vision encoder" if method.needs - {QUESTION} else "spread and merging"


def _manifest(
    sources: Sequence[Source],
    seen: Mapping[tuple[str, str], Seen],
    budgets: list[float],
    pictures: Sequence[Pictures],
) -> Manifest:
    titles: dict[str, tuple[str, str]] = {}
    for source in sources:
        for image_id in source.shown:
            name = Path(image_id).stem if isinstance(image_id, str) else str(image_id)
            titles.setdefault(source.key(image_id), (f"{source.group} {name}", source.group))
    methods = dict.fromkeys(name for source in sources for name in source.facts["methods"])
    methods |= dict.fromkeys(PRUNERS)
    labels = {name: label for source in sources for name, label in source.facts["methods"].items()}
    models: dict[str, Model] = {}
    for source in sources:
        before = models.get(source.model)
        models[source.model] = Model(
            name=source.model,
            title=source.title or source.model,
            family=source.facts["description"].get("family") or source.adapter.family,
            question=source.facts["description"]["config"]["question"],
            codebook=source.codebook,
            origin=[
                *(before.origin if before else ()),
                *(line for line in source.origin if not before or line not in before.origin),
            ],
            unfit=dict(source.facts.get("unfit", {})),
        )
    return Manifest(
        budgets=budgets,
        methods=[
            ShownMethod(
                name=name,
                label=labels.get(name) or PRUNERS[name].label,
                kind=_kind(name),
                paper=PRUNERS[name].paper if name in PRUNERS else "",
            )
            for name in methods
        ],
        signals=list({own.name: own for source in sources for own in source.signals()}.values()),
        models=list(models.values()),
        images=[
            Image(
                key=key,
                title=title,
                group=group,
                models={model: own for (image, model), own in seen.items() if image == key},
            )
            for key, (title, group) in titles.items()
        ],
        tour=TOUR,
        thumbs=thumbnails(pictures),
    )
