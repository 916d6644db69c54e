"""Make built sites of a few files lighter, and check what they load and how much."""

import base64
import io
import json

import nbformat
import numpy as np
import PIL.Image
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib import TTFont

from tools import check_site, lighten_site, page_limits
from tools.book_extension import name_toggles


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ('<script src="https://cdn.example/x.js"></script>', ["https://cdn.example/x.js"]),
        ('<script src="//cdn.example/x.js"></script>', ["//cdn.example/x.js"]),
        ('<link rel="stylesheet" href="https://a.example/x.css">', ["https://a.example/x.css"]),
        ('<img src="http://a.example/x.png">', ["http://a.example/x.png"]),
        ('<style>@import "https://a.example/f.css";</style>', ["https://a.example/f.css"]),
        ("<style>p { background: url(https://a.example/x.png) }</style>", ["https://a.example/x.png"]),
        ('<script>import("https://a.example/vega.mjs")</script>', ["https://a.example/vega.mjs"]),
        (
            '<script>load("https://cdn.jsdelivr.net/npm/vega@6")</script>',
            ["https://cdn.jsdelivr.net/npm/vega@6"],
        ),
        ('<a href="https://arxiv.org/abs/2503.20540">paper</a>', []),
        ('<link rel="canonical" href="https://a.example/">', []),
        ('<script src="_static/x.js"></script><img src="data:image/png;base64,AA//BB">', []),
        ('<script>var schema = "https://vega.github.io/schema/v6.json"; // a note</script>', []),
        (
            '<iframe srcdoc="&lt;script src=&quot;//cdn.example/x.js&quot;&gt;&lt;/script&gt;"></iframe>',
            ["//cdn.example/x.js"],
        ),
        ("<p>The file https://cdn.example/x.js is not needed.</p>", []),
        ('<script>const THEBE_JS_URL = "https://unpkg.com/thebe@0.8.2/lib/index.js"</script>', []),
    ],
)
def test_loads_from_other_hosts_are_found_and_links_are_not(html, found):
    assert check_site.external_loads(html, ".html") == found


def test_site_check_reads_pages_and_style_sheets(tmp_path, capsys):
    (tmp_path / "_static").mkdir()
    (tmp_path / "index.html").write_text("<p>text</p>", encoding="utf-8")
    assert check_site.main([str(tmp_path)]) == 0
    (tmp_path / "_static" / "x.css").write_text("@font-face {src: url('https://a.example/f.woff')}")
    assert check_site.main([str(tmp_path)]) == 1
    assert "_static/x.css: loads https://a.example/f.woff" in capsys.readouterr().out


def test_a_site_without_pages_is_an_error(tmp_path):
    assert check_site.main([str(tmp_path)]) == 1


def test_too_many_bytes_are_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.css").write_text("@font-face {src: url(a.ttf)}" + " " * 100)
    (tmp_path / "a.ttf").write_bytes(b"0" * 1000)
    (tmp_path / "late.png").write_bytes(b"0" * 5000)
    page = '<link rel="stylesheet" href="a.css?v=1"><img src="late.png" loading="lazy">'
    (tmp_path / "intro.html").write_text(page)
    n_bytes = len(page) + 128 + 1000
    assert check_site.bytes_at_first(tmp_path / "intro.html") == n_bytes
    monkeypatch.setitem(check_site.MOST_BYTES_AT_FIRST, "intro.html", n_bytes)
    assert check_site.main([str(tmp_path)]) == 0
    monkeypatch.setitem(check_site.MOST_BYTES_AT_FIRST, "intro.html", n_bytes - 1)
    monkeypatch.setattr(check_site, "MOST_BYTES", n_bytes)
    assert check_site.main([str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert f"intro.html: loads {n_bytes} bytes at first; accepted: {n_bytes - 1}" in told
    assert f"the site takes {n_bytes + 5000} bytes; accepted: {n_bytes}; largest: late.png" in told


def page_of(*parts):
    return f"<nav>{'word ' * 900}<img class='drawn'></nav><article><h1>Title</h1>{''.join(parts)}</article>"


def words(n):
    return f"<p>{'word ' * n}</p>"


FIGURE = '<figure><img class="drawn" src="a.png" alt="Half of 8."></figure>'
TABS = (
    '<div class="sd-tab-set"><input type="radio"><label>One model</label><div class="sd-tab-content">{}</div>'
    '<input type="radio"><label>Another model</label><div class="sd-tab-content">{}</div></div>'
)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([words(200), FIGURE * 4, words(1799)], []),
        ([words(1999)], []),
        ([words(2000)], ["2001 words; accepted: 2000 that are not folded"]),
        ([FIGURE * 5], ["5 figures; accepted: 4 that are not folded"]),
        ([words(250), FIGURE], ["251 words before the first figure; accepted: 250"]),
        ([f"<details>{FIGURE * 5}{words(3000)}</details>", FIGURE * 4], []),
        ([TABS.format(FIGURE * 4, FIGURE * 4 + words(3000))], []),
        (
            [TABS.format(FIGURE * 3, ""), TABS.format(FIGURE * 2, "")],
            ["5 figures; accepted: 4 that are not folded"],
        ),
    ],
)
def test_pages_of_experiments_keep_to_their_limits_without_what_is_folded(parts, told, tmp_path, capsys):
    assert page_limits.limits_broken(page_of(*parts)) == told
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/a.html").write_text(page_of(*parts))
    assert check_site.main([str(tmp_path)]) == bool(told)
    assert all(f"notebooks/a.html: {line}" in capsys.readouterr().out for line in told)


@pytest.mark.parametrize(
    ("alt", "caption", "told"),
    [
        ("Codebook 0.5, random tokens 0.6", "Scores of methods.", ""),
        ("The codebook scores lower than random tokens.", "", ""),
        ("Points with intervals.", "Scores.", "holds neither a number nor a comparison"),
        ("", "Scores.", "holds neither a number nor a comparison"),
        ("Scores of 8  methods", "Scores of 8 methods.", "repeats the caption"),
        ("5, " * 101, "", "has 303 characters; accepted: 300"),
    ],
)
def test_alternative_texts_hold_what_was_found_and_not_the_caption(alt, caption, told):
    assert page_limits.alternative_text_is_poor(alt, caption) == told
    html = f'<article><img class="drawn" src="a.png" alt="{alt}"><img src="icon.png"></article>'
    figure = html.replace("<img class", "<figure><img class").replace(
        "><img src", f"><figcaption>{caption}</figcaption></figure><img src"
    )
    problems = page_limits.figures_without_words(figure)
    assert problems == ([f"a.png: alternative text {alt[:60]!r} {told}"] if told else [])


def test_names_of_code_break_behind_an_underscore_in_tables_alone():
    code = '<span class="pre">n_tokens</span> <span class="pre">__main__</span>'
    page = f"<p>{code}</p><table><tr><td><code>{code}</code>a_b</td></tr></table>"
    light = lighten_site.lighten_page(page, "a.html")
    broken = code.replace("n_tokens", "n_<wbr>tokens")
    assert light == f"<p>{code}</p><table><tr><td><code>{broken}</code>a_b</td></tr></table>"
    assert lighten_site.lighten_page(light, "a.html") == light


def test_tables_of_experiments_are_headed_by_words():
    table = '<div class="cell_output"><table><tr><th>{}</th></tr><tr><td>a_file</td></tr></table></div>'
    assert page_limits.code_names_in_tables(table.format("retain ratio, [CLS], LLaVA-NeXT")) == []
    told = ["a table is headed by 'retain_ratio'; accepted: words"]
    assert page_limits.code_names_in_tables(table.format(" retain_ratio\n")) == told


def png(values):
    written = io.BytesIO()
    PIL.Image.fromarray(values).save(written, "PNG")
    return written.getvalue()


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(lighten_site, "KEPT", tmp_path / "kept")
    return tmp_path / "kept"


def test_few_colours_stay_exactly_and_pictures_are_made_once(kept):
    values = np.random.default_rng(0).integers(0, 2, (64, 64, 1), np.uint8) * np.array(
        [200, 30, 90], np.uint8
    )
    light = lighten_site.light_picture(png(values))
    assert len(light) < len(png(values))
    with PIL.Image.open(io.BytesIO(light)) as found:
        np.testing.assert_array_equal(np.asarray(found.convert("RGB")), values)
    path = next(kept.iterdir())
    path.write_bytes(b"as it was")
    assert lighten_site.light_picture(png(values)) == b"as it was"


def test_many_colours_stay_near_and_what_gets_no_smaller_is_left(kept):
    ramp = np.linspace(0, 255, 256).astype(np.uint8)
    values = np.stack([*np.meshgrid(ramp, ramp), np.full((256, 256), 128, np.uint8)], -1)
    with PIL.Image.open(io.BytesIO(lighten_site.light_picture(png(values)))) as found:
        apart = np.abs(np.asarray(found.convert("RGB")).astype(int) - values)
    assert apart.mean() < 8
    grey = png(values[:, :, 0])
    assert lighten_site.light_picture(grey) == grey


def test_two_processes_make_a_site_as_light_as_one(tmp_path, monkeypatch):
    left = {}
    for jobs in (1, 2):
        monkeypatch.setattr(lighten_site, "KEPT", tmp_path / f"kept {jobs}")
        site = tmp_path / f"site {jobs}"
        site.mkdir()
        for seed in range(4):
            values = np.random.default_rng(seed // 2).integers(0, 2, (64, 64, 1), np.uint8) * np.full(
                3, 255, np.uint8
            )
            (site / f"{seed}.png").write_bytes(png(values))
        assert lighten_site.main([str(site), "--jobs", str(jobs)]) == 0
        left[jobs] = {path.name: path.read_bytes() for path in site.iterdir()}
        assert len(list(lighten_site.KEPT.iterdir())) == 2
    assert left[1] == left[2] and len(left[1]["0.png"]) < len(png(values))


def test_pictures_inside_notebooks_are_made_lighter_and_nothing_else_changes(kept):
    values = np.random.default_rng(0).integers(0, 2, (64, 64, 1), np.uint8) * np.full(3, 255, np.uint8)
    cell = nbformat.v4.new_code_cell("show()")
    shown = {"image/png": base64.b64encode(png(values)).decode(), "text/plain": "a picture"}
    cell.outputs = [nbformat.v4.new_output("display_data", shown)]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title"), cell])
    light = json.loads(lighten_site.light_notebook(nbformat.writes(notebook)))
    found = light["cells"][1]["outputs"][0]["data"].pop("image/png")
    assert base64.b64decode(found) == lighten_site.light_picture(png(values))
    given = json.loads(nbformat.writes(notebook))
    del given["cells"][1]["outputs"][0]["data"]["image/png"]
    assert light == given


def font(path, letters):
    maker = FontBuilder(1000)
    names = [".notdef", *(f"icon{letter:x}" for letter in letters)]
    maker.setupGlyphOrder(names)
    maker.setupCharacterMap({letter: f"icon{letter:x}" for letter in letters})
    maker.setupGlyf({name: maker_glyph() for name in names})
    maker.setupHorizontalMetrics(dict.fromkeys(names, (500, 0)))
    maker.setupHorizontalHeader()
    maker.setupOS2()
    maker.setupPost()
    path.parent.mkdir(parents=True)
    maker.save(path)


def maker_glyph():
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    pen.lineTo((100, 0))
    pen.lineTo((0, 100))
    pen.closePath()
    return pen.glyph()


def test_what_no_page_needs_is_taken_out(tmp_path, kept):
    site = tmp_path / "site"
    files = {
        "_static/scripts/fontawesome.js": "all icons",
        "_static/scripts/theme.js.map": "{}",
        "_static/mathjax/tex-chtml.js": "loaded",
        "_static/mathjax/tex-svg.js": "another",
        "_static/mathjax/input/tex/extensions/color.js": "loaded by the bundle",
        "_static/mathjax/output/chtml/fonts/a.woff": "a font",
        "_static/styles/theme.css": '.fa-bars:before,.fa-navicon:before{content:"\\f0c9"}'
        '.fa-cat:before{content:"\\f6be"}'
        '@font-face{src:url(../f/a.woff2) format("woff2"),url(../f/a.ttf)}.next:after{content:"\\f061"}',
        "search.html": '<script src="searchindex.js"></script>',
    }
    scripts = [
        f'<script defer src="_static/{name}"></script>'
        for name in ("scripts/fontawesome.js?digest=1", "searchtools.js", "mathjax/tex-chtml.js", "theme.js")
    ]
    files["plain.html"] = "".join(scripts) + '<i class="fa-solid fa-bars"></i>'
    files["formula.html"] = "".join(scripts) + '<span class="math notranslate">x</span>'
    for name, text in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    letters = site / "_static/vendor/fontawesome/webfonts/fa-solid-900.ttf"
    font(letters, [0xF0C9, 0xF6BE, 0xF061])

    assert lighten_site.main([str(site)]) == 0
    left = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    gone = {"_static/scripts/fontawesome.js", "_static/scripts/theme.js.map", "_static/mathjax/tex-svg.js"}
    assert left == {*files, letters.relative_to(site).as_posix()} - gone
    assert (site / "plain.html").read_text().startswith('<script defer src="_static/theme.js"></script><i')
    assert "mathjax/tex-chtml.js" in (site / "formula.html").read_text()
    assert "searchindex" in (site / "search.html").read_text()
    styles = (site / "_static/styles/theme.css").read_text()
    assert "fa-navicon" in styles and "fa-cat" not in styles and "woff2" not in styles and "a.ttf" in styles
    assert set(TTFont(letters).getBestCmap()) == {0xF0C9, 0xF061}
    before = {path: path.read_bytes() for path in site.rglob("*.*") if path.suffix != ".ttf"}
    lighten_site.lighten(site)
    assert {path: path.read_bytes() for path in before} == before


def test_toggles_are_named_after_the_link_before_them():
    html = '<li><a class="x" href="#"><em>Pruned</em> &amp; timed</a><details open="open"><summary></summary>'
    named = html.replace("<summary>", '<summary aria-label="pages below Pruned &amp; timed">')
    assert name_toggles(html + "<p><a>b</a></p>") == named + "<p><a>b</a></p>"
