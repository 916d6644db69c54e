"""Point at the tokens of an explorer in a browser: from a file, without network, at three widths, in both themes."""

import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from rcblib.evaluate.explored import NEIGHBOURS
from rcblib.reading.explorer.writing import write_explorer
from tools.make_explorer import source_of
from tools.notebook_list import read_notebook_list

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (390, 768, 1280)
REPOSITORY = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, explored):
    """Return what opens the page; afterwards nothing was asked of a host, and nothing told on the console."""
    asked, told, contexts = [], [], []

    def only_files(route):
        if route.request.url.startswith(("file:", "data:", "blob:")):
            route.continue_()
        else:
            asked.append(route.request.url)
            route.abort()

    def open_page(width=1280, address="", folder=explored.folder, **settings):
        context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.route("**/*", only_files)
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.goto((folder / "index.html").as_uri() + address)
        if settings.get("java_script_enabled", True):
            page.wait_for_selector(".rx-ready")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert asked == [] and told == []


def center(page, row, column):
    """Return where on the window the token of a row and column of the drawn scenes, counted from 1, is."""
    page.locator(".rx-stage").scroll_into_view_if_needed()
    box = page.locator(".rx-stage").bounding_box()
    return box["x"] + box["width"] * (column - 0.5) / 12, box["y"] + box["height"] * (row - 0.5) / 12


@pytest.mark.parametrize("width", WIDTHS)
def test_pointing_shows_a_token_and_a_second_pin_compares(visit, explored, width):
    page = visit(width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.mouse.move(*center(page, 3, 7))
    card = page.locator(".rx-card")
    assert card.locator("h2").inner_text() == "Row 3, column 7"
    table = explored.source.table
    row = table[(table["part"] == "tokens") & (table["image_id"] == explored.source.shown[0])].iloc[
        2 * 12 + 6
    ]
    assert card.locator(".rx-words li").count() == 5
    assert card.locator(".rx-words li").first.inner_text().startswith(row["word_1"])
    ranks = card.locator(".rx-scores li > :nth-child(2)").all_inner_texts()
    assert len(ranks) > 3 and all(
        re.search(r"( % of the tokens| all others| no other)$", text) for text in ranks
    )
    page.mouse.click(*center(page, 3, 7))
    page.mouse.click(*center(page, 9, 2))
    assert page.locator(".rx-card h2").all_inner_texts() == ["Row 3, column 7", "Row 9, column 2"]
    page.locator(".rx-card button").first.click()
    assert page.locator(".rx-pinned h2").all_inner_texts() == ["Row 9, column 2"]


def test_keys_move_pin_and_let_go_and_are_told(visit, explored):
    page = visit()
    stage = page.locator(".rx-stage")
    page.mouse.move(*center(page, 5, 5))
    stage.focus()
    for key, where in (
        ("Home", "Row 5, column 1"),
        ("ArrowRight", "Row 5, column 2"),
        ("ArrowUp", "Row 4, column 2"),
    ):
        page.keyboard.press(key)
        assert page.locator(".rx-card h2").inner_text() == where
    page.wait_for_function(
        "document.querySelector('.rx-live').textContent.startsWith('Row 4, column 2. Says ')"
    )
    page.keyboard.press("Enter")
    assert page.locator(".rx-pinned").count() == 1
    page.keyboard.press("Escape")
    assert page.locator(".rx-pinned").count() == 0
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    assert page.locator(".rx-card h2").inner_text() == "Row 4, column 12"
    # One tab stop for all tokens, and one for all pictures.
    page.keyboard.press("Tab")
    assert not page.evaluate("document.querySelector('.rx-stage').contains(document.activeElement)")
    chosen = page.locator(".rx-thumbs button[tabindex='0']")
    assert chosen.count() == 1
    chosen.focus()
    page.keyboard.press("ArrowRight")
    second = f"drawn scene {explored.source.shown[1]}"
    page.wait_for_function(f"document.querySelector('.rx-live').textContent === '{second}. 144 tokens.'")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == second
    assert page.evaluate("document.activeElement.getAttribute('aria-checked')") == "true"


def test_the_slider_drops_tokens_and_changes_the_answers(visit, explored):
    page = visit()
    first_from_a_fifth = page.locator(".rx-drop output").inner_text()
    assert first_from_a_fifth == "50 % of the tokens stay"
    assert len(re.findall("M", page.locator("path.rx-drop").get_attribute("d"))) == 144 - 72
    page.locator("#rx-budget").focus()
    page.keyboard.press("End")
    assert page.locator(".rx-drop output").inner_text() == "all tokens stay"
    assert page.locator("path.rx-drop").get_attribute("d") == ""
    page.keyboard.press("Home")
    assert page.locator(".rx-drop output").inner_text() == "10 % of the tokens stay"
    assert len(re.findall("M", page.locator("path.rx-drop").get_attribute("d"))) == 144 - 14
    table = explored.source.table
    rows = table[(table["part"] == "answers") & (table["image_id"] == explored.source.shown[0])]
    for column, name, how in ((3, "codebook", "removed"), (4, "random", "removed")):
        own = rows[(rows["method"] == name) & (rows["how"] == how) & (rows["retain_ratio"] == 0.1)]
        cells = page.locator(f".rx-answers tbody tr > :nth-child({column + 1})").all_inner_texts()
        wanted = [(row.prediction, "✓ right" if row.score >= 0.5 else "✗ wrong") for row in own.itertuples()]
        assert [tuple(text.split("\n")) for text in cells] == wanted
    page.locator("input[value='replaced']").check()
    own = rows[(rows["method"] == "codebook") & (rows["how"] == "replaced") & (rows["retain_ratio"] == 0.1)]
    cells = page.locator(".rx-answers tbody tr > :nth-child(4) > :first-child").all_inner_texts()
    assert cells == own["prediction"].tolist()
    select = page.locator(".rx-drop select")
    assert "not recorded" in select.locator("option[value='cls_most']").inner_text()
    assert select.locator("option[value='cls_most']").is_disabled()
    groups = select.locator("optgroup").evaluate_all("own => own.map((group) => group.label)")
    assert groups[:2] == ["controls", "codebook"] and "inside the LLM" in groups
    page.locator("#rx-find").fill("ORACLE")
    assert select.locator("option").count() == 2
    page.locator("#rx-find").press("Enter")
    assert select.input_value() == "oracle"
    assert select.evaluate("own => own === document.activeElement")
    select.select_option("random")
    assert page.locator(".rx-answers thead th").count() == 4  # random stands beside itself once


def test_what_was_asked_in_one_way_only_is_said_and_cannot_be_chosen_in_the_other(visit, explored, tmp_path):
    table = explored.source.table
    asked = table[(table["method"] != "oracle") | (table["how"] != "replaced")]
    write_explorer(tmp_path, [replace(explored.source, table=asked)])
    page = visit(folder=tmp_path)
    methods, replaced = page.locator(".rx-drop select"), page.locator("input[value='replaced']")
    replaced.check()
    oracle = methods.locator("option[value='oracle']")
    assert oracle.is_disabled() and oracle.inner_text().endswith("(not asked with tokens replaced)")
    page.locator("input[value='removed']").check()
    methods.select_option("oracle")
    assert replaced.is_disabled()
    assert page.locator(".rx-hows").inner_text().endswith("(not asked of this method)")
    assert "not recorded" not in page.locator(".rx-answers").inner_text()
    page.locator("summary", has_text="Where these numbers come from").click()
    ways = page.locator(".rx-foot li").all_inner_texts()
    assert "removed only: oracle by masks" in ways
    assert "removed and replaced: random tokens, codebook" in ways
    both = visit(390, "#explorer?method=oracle&how=replaced&budget=0", folder=tmp_path)
    assert both.locator("input[value='removed']").is_checked()
    assert both.locator(".rx-drop select").input_value() == "oracle"


def test_what_is_drawn_anew_keeps_the_focus(visit):
    page = visit(390)
    where = "document.activeElement.closest('.rx-drop, .rx-card, .rx-stage')?.className"
    method = page.locator(".rx-drop select")
    method.focus()
    method.select_option("random")
    assert method.evaluate("own => own === document.activeElement")
    page.locator("input[value='removed']").focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("input[value='replaced']").evaluate(
        "own => own.checked && own === document.activeElement"
    )
    page.locator("summary", has_text="All tokens as a table").click()
    method.select_option("codebook")
    assert page.locator(".rx-foot tbody tr").count() == 144  # what is open stays so
    stage = page.locator(".rx-stage")
    stage.focus()
    for key in ("Home", "Enter", "End", "Enter"):
        page.keyboard.press(key)
    for left in (1, 0):
        page.locator(".rx-pinned button").first.focus()
        page.keyboard.press("Enter")
        assert page.locator(".rx-pinned").count() == left
        assert page.evaluate(where) == ("rx-card rx-pinned" if left else "rx-stage")


def test_the_stage_tells_where_the_keys_begin(visit):
    page = visit()
    chosen = page.locator(".rx-card h2").inner_text()
    page.get_by_role("button", name="Tour in five steps").focus()
    page.keyboard.press("Tab")
    page.wait_for_function(f"document.querySelector('.rx-live').textContent.startsWith('{chosen}. Says ')")
    levels = page.locator("h1, h2, h3").evaluate_all("own => own.map((title) => Number(title.tagName[1]))")
    assert levels[0] == 1 and all(low - high <= 1 for high, low in pairwise(levels))


def test_the_address_keeps_what_is_seen(visit, explored):
    page = visit()
    page.locator(".rx-thumbs button").nth(1).click()
    page.wait_for_selector(".rx-stage[aria-label*='drawn scene']")
    page.locator(".rx-bar select").nth(1).select_option("global_divergence")
    page.mouse.click(*center(page, 2, 2))
    page.mouse.move(*center(page, 6, 4))
    page.locator("#rx-budget").focus()
    page.keyboard.press("ArrowLeft")
    state = page.evaluate("location.hash")
    again = visit(768, state)
    for part in (".rx-card h2", ".rx-answers td", ".rx-legend"):
        assert page.locator(part).all_inner_texts() == again.locator(part).all_inner_texts()
    assert again.evaluate("location.hash") == state
    strange = visit(
        390, "#explorer?image=none&token=99999&pins=7.7.8.9&budget=77&layer=none&method=none&view=9"
    )
    assert strange.locator(".rx-pinned").count() == 2
    broken = visit(390, "#explorer?token=1.5&budget=0.7&question=x&view=-1&how=other&pins=a.-3")
    assert broken.locator(".rx-card h2").all_inner_texts() == ["Row 1, column 2"]
    assert broken.locator(".rx-drop output").inner_text() == "10 % of the tokens stay"
    page.evaluate("location.hash = '#explorer?token=3'")  # what it does not name is as at the beginning
    page.wait_for_function("document.querySelector('.rx-card h2').textContent === 'Row 1, column 4'")
    assert page.locator(".rx-bar select").nth(1).input_value() == ""


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
    """Write the page of a recorded picture that a model reads whole and in four tiles."""
    listed = read_notebook_list(REPOSITORY / "workflow/notebooks.yml")
    stages = next(own for own in listed.explored if own[0].run == "explorer-llava-next-scenes")
    source = source_of(*stages, titles=listed.titles, root=REPOSITORY)
    table = source.table
    own = table[(table["image_id"] == source.shown[0]) & (table["part"] != NEIGHBOURS)]
    folder = tmp_path_factory.mktemp("tiled")
    write_explorer(folder, [replace(source, table=own)])
    return folder


@pytest.mark.parametrize("width", WIDTHS)
def test_tiles_are_seen_where_they_lie_and_lead_to_the_whole_picture(visit, tiled, width):
    page = visit(width, folder=tiled)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    views, stage = page.locator(".rx-views button"), page.locator(".rx-stage")
    names = views.evaluate_all("own => own.map((view) => view.getAttribute('aria-label'))")
    corners = [f"{where} tile" for where in ("upper left", "upper right", "lower left", "lower right")]
    assert names == ["whole picture", *corners]
    assert page.locator("path.rx-tiles").get_attribute("d").count("M") == 4
    box = stage.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.2)  # upper right
    page.get_by_role("button", name="see it in the upper right tile").click()
    assert stage.get_attribute("aria-label").endswith(", upper right tile: 12 rows of 12 tokens")
    assert page.locator(".rx-views i").count() == 1 and page.locator("path.rx-tiles").get_attribute("d") == ""
    headings = page.locator(".rx-card h2").all_inner_texts()
    assert [text.split(", ")[-1] for text in headings] == ["whole picture", "upper right tile"]
    assert len(re.findall("M", page.locator("path.rx-hatch").get_attribute("d"))) == 3 * (144 - 64)
    views.nth(2).focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("document.querySelector('.rx-live').textContent === 'upper left tile.'")
    assert views.nth(1).evaluate("own => own === document.activeElement && own.ariaChecked === 'true'")


def test_the_tour_goes_through_five_steps(visit):
    page = visit(768)
    page.get_by_role("button", name="Tour in five steps").click()
    for number in range(1, 6):
        assert page.locator(".rx-tour h2").inner_text().startswith(f"{number} of 5: ")
        page.locator(".rx-tour .rx-main-button").click()
    assert page.locator(".rx-tour").is_hidden()
    assert page.locator(".rx-drop output").inner_text() == "50 % of the tokens stay"


def test_tokens_that_were_not_probed_are_hatched_and_said(visit):
    page = visit()
    assert len(re.findall("M", page.locator("path.rx-hatch").get_attribute("d"))) == 3 * (144 - 36)
    assert "hatched: not probed" in page.locator(".rx-legend").inner_text()
    hatched = re.match(r"M(\d+) (\d+)", page.locator("path.rx-hatch").get_attribute("d"))
    column, row = int(hatched[1]) + 1, int(float(hatched[2])) + 1
    page.mouse.move(*center(page, row, column))
    assert "Not probed" in page.locator(".rx-card").inner_text()


def test_picture_and_table_are_saved(visit, explored):
    page = visit(accept_downloads=True)
    with page.expect_download() as found:
        page.get_by_role("button", name="Save the table").click()
    lines = found.value.path().read_text(encoding="utf-8").split("\n")
    assert len(lines) == 145 and lines[0].startswith(
        "view,row,column,object,probed,stays,word 1,probability 1"
    )
    with page.expect_download() as found:
        page.get_by_role("button", name="Save the picture").click()
    assert found.value.path().read_bytes().startswith(b"\x89PNG")
    page.locator("summary", has_text="All tokens as a table").click()
    page.wait_for_selector(".rx-foot tbody tr")
    assert page.locator(".rx-foot tbody tr").count() == 144


def test_without_javascript_there_is_a_figure(visit):
    page = visit(390, java_script_enabled=False)
    assert page.locator(".rx-static svg image").count() == 1
    assert page.locator(".rx-static tbody tr").count() >= 3
    assert page.locator("noscript").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_and_targets_are_large(visit, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = visit(390, color_scheme=scheme, reduced_motion="reduce")
    page.locator("#rx-budget").focus()
    page.keyboard.press("Home")
    page.mouse.click(*center(page, 4, 4))
    for summary in page.locator("summary").all():
        summary.click()
    page.get_by_role("button", name="Tour in five steps").click()
    found = axe.run(page, options={"preload": False}).response[
        "violations"
    ]  # styles of files cannot be fetched
    assert [
        (v["id"], v["nodes"][0]["html"][:120]) for v in found if v["impact"] in ("serious", "critical")
    ] == []
    for target in page.locator("button, select, summary, input:not([type=radio]), .rx-hows label").all():
        if target.is_visible():
            assert target.bounding_box()["height"] >= 44, target.evaluate("node => node.outerHTML")
    assert (
        page.evaluate("getComputedStyle(document.querySelector('.rx-bar-track span')).transitionDuration")
        == "0s"
    )
