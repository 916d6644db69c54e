"""Build a book of two pages with the project's own configuration, and read it in a browser without network."""

import base64
import io
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pypdf
import pytest

from rcblib.reading.figures import interval_plot
from rcblib.records import ParameterError
from tools import make_pdf
from tools.check_site import check_site

REPOSITORY = Path(__file__).resolve().parents[1]


def chart_notebook():
    """Return an executed notebook that shows one figure."""
    picture = io.BytesIO()
    figure, axes = plt.subplots(figsize=(5, 3))
    interval_plot(axes, pd.DataFrame({"signal": ["entropy"], "value": 0.7, "low": 0.6, "high": 0.8}))
    figure.savefig(picture)
    plt.close(figure)
    cell = nbformat.v4.new_code_cell("chart", execution_count=1)
    shown = {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": "chart"}
    cell.outputs = [nbformat.v4.new_output("display_data", shown)]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A chart"), cell])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return notebook


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the pages and return the folder that holds them."""
    pytest.importorskip("jupyter_book")
    root = tmp_path_factory.mktemp("project")
    for name in (
        "_config.yml",
        "pyproject.toml",
        "tools",
        "benchmarks",
        "book/_static",
        "book/references.bib",
    ):
        source, target = REPOSITORY / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    (root / "workflow").mkdir()
    (root / "workflow/notebooks.yml").write_text("notebooks: [{name: chart}]\n", encoding="utf-8")
    (root / "book/_toc.yml").write_text(
        "format: jb-book\nroot: equations\nparts: [{caption: Experiments, chapters: [{glob: notebooks/*}]}]\n"
    )
    (root / "book/equations.md").write_text(
        "# A page\n\nWith $p_1(i)$, {cite:p}`yang2025beyond` and\n\n$$\n\\tfrac12 \\sum_i M_i \\log M_i\n$$\n\n"
        "```{bibliography}\n```\n",
        encoding="utf-8",
    )
    for folder in ("notebooks", "results/executed"):
        (root / folder).mkdir(parents=True)
        nbformat.write(chart_notebook(), root / folder / "chart.ipynb")
    # All that makes the site, but for the pages of the library, which is not here.
    script = "import sys; from tools import build_site as b; b.PACKAGES = (); sys.exit(b.main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "--jobs=2", "--repository="]
    answer = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return root / "book/_build/html"


def test_pages_are_built_without_warnings_and_load_nothing_from_other_hosts(site):
    assert check_site(site) == []
    assert (site / "notebooks/chart.html").is_file()
    assert "Beyond intermediate states" in (site / "equations.html").read_text(encoding="utf-8")


def test_without_a_repository_there_are_no_buttons_for_one(site):
    page = (site / "notebooks/chart.html").read_text(encoding="utf-8")
    assert "colab" not in page and "repository-button" not in page


@pytest.mark.browser
def test_equations_and_charts_show_offline(site):
    program = next(filter(None, map(shutil.which, make_pdf.BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    requested, errors = [], []

    def only_files(route):
        if route.request.url.startswith(("file:", "data:", "blob:")):
            route.continue_()
        else:
            requested.append(route.request.url)
            route.abort()

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(90_000)
        page.route("**/*", only_files)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((site / "equations.html").as_uri())
        page.wait_for_selector("mjx-container mjx-math")
        assert page.locator("mjx-container").count() == 2
        assert page.locator("mjx-container[tabindex]").count() == 0
        assert page.locator("mjx-container").first.bounding_box()["width"] > 10
        page.goto((site / "notebooks/chart.html").as_uri())
        drawn = page.locator("img.drawn").first
        drawn.wait_for()
        assert drawn.evaluate("picture => picture.naturalWidth") > 100
        browser.close()
    assert requested == []
    assert errors == []


@pytest.mark.browser
def test_pages_are_printed_as_one_file_with_an_outline(site, tmp_path):
    if not any(map(shutil.which, make_pdf.BROWSERS)):
        pytest.skip("no Chromium is installed")
    toc = {
        "root": "equations",
        "parts": [{"chapters": [{"file": "notebooks/chart"}, {"file": "api/rcblib"}]}],
    }
    pages = list(make_pdf.pages_of(toc))
    assert pages == ["equations", "notebooks/chart"]
    n_sheets = make_pdf.write_pdf(site, pages, tmp_path / "book.pdf")
    printed = pypdf.PdfReader(tmp_path / "book.pdf")
    assert len(printed.pages) == n_sheets >= 2
    assert [entry.title for entry in printed.outline] == ["A page", "A chart"]
    text = [sheet.extract_text() for sheet in printed.pages]
    assert "A page" in text[0] and "Yang" in text[0] and "Search" not in text[0]
    assert sum(len(sheet.images) for sheet in printed.pages) >= 1


def test_a_page_that_is_not_there_ends_printing_before_it_begins(site, tmp_path, capsys):
    with pytest.raises(ParameterError, match="page: got 'nothing'"):
        make_pdf.write_pdf(site, ["equations", "nothing"], tmp_path / "book.pdf")
    assert not (tmp_path / "book.pdf").exists()
    assert make_pdf.main([], tmp_path) == 2 and "make book" in capsys.readouterr().err
