"""Point at the tokens of an explorer in a browser: from a file, without network, at three widths, in both themes."""

import re
import shutil

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (390, 768, 1280)

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

    def open_page(width=1280, address="", **settings):
        context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.route("**/*", only_files)
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.goto((explored.folder / "index.html").as_uri() + address)
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
    assert card.locator("h3").inner_text() == "Row 3, column 7"
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
    assert page.locator(".rx-card h3").all_inner_texts() == ["Row 3, column 7", "Row 9, column 2"]
    page.locator(".rx-card button").first.click()
    assert page.locator(".rx-pinned h3").all_inner_texts() == ["Row 9, column 2"]


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
        assert page.locator(".rx-card h3").inner_text() == where
    page.wait_for_function(
        "document.querySelector('.rx-live').textContent.startsWith('Row 4, column 2. Says ')"
    )
    page.keyboard.press("Enter")
    assert page.locator(".rx-pinned").count() == 1
    page.keyboard.press("Escape")
    assert page.locator(".rx-pinned").count() == 0
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    assert page.locator(".rx-card h3").inner_text() == "Row 4, column 12"
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
    for part in (".rx-card h3", ".rx-answers td", ".rx-legend"):
        assert page.locator(part).all_inner_texts() == again.locator(part).all_inner_texts()
    assert again.evaluate("location.hash") == state
    strange = visit(
        390, "#explorer?image=none&token=99999&pins=7.8.9&budget=77&layer=none&method=none&view=9"
    )
    assert strange.locator(".rx-pinned").count() == 2


def test_the_tour_goes_through_five_steps(visit):
    page = visit(768)
    page.get_by_role("button", name="Tour in five steps").click()
    for number in range(1, 6):
        assert page.locator(".rx-tour h3").inner_text().startswith(f"{number} of 5: ")
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
