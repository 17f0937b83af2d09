"""The page in a real browser: searching, filtering, details, keyboard and the address."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Request, expect

from support.browser import until
from support.page_index import COUNT, HOSTILE, PageIndex

pytestmark = pytest.mark.slow
TILES = "#results li.tile:not(.placeholder)"
QUERY = "a red bird in the forest"


def ids(page: Page) -> list[int]:
    """Return the items of the grid, in its order."""
    found: list[int] = page.eval_on_selector_all(TILES, "tiles => tiles.map(tile => tile.hit.id)")
    return found


def searched(page: Page, address: str) -> dict[str, Any]:
    """Open an address; return the body of its search once its hits are shown."""
    with page.expect_request("**/v1/search") as request:
        page.goto(address)
    expect(page.locator(TILES).first).to_be_visible()
    return body_of(request.value)


def body_of(request: Request) -> dict[str, Any]:
    """Return the JSON that a request sent."""
    body: dict[str, Any] = request.post_data_json
    return body


def search(page: Page, words: str) -> dict[str, Any]:
    """Type words and Enter; return the body of the search once its answer came."""
    page.locator("#words").fill("")
    with page.expect_response("**/v1/search") as response:
        page.locator("#words").fill(words)
        page.keyboard.press("Enter")
    settled(page)
    return body_of(response.value.request)


def settled(page: Page) -> None:
    """Wait until no search is under way."""
    until(page, "!document.querySelector('#results').hasAttribute('aria-busy')")


def test_words_show_the_hits_of_the_api_in_order(page: Page) -> None:
    """The grid has the hits of `POST /v1/search`, best first."""
    page.goto("/")
    search(page, QUERY)
    expect(page.locator(TILES).first).to_be_visible()
    response = page.request.post("/v1/search", data={"text": QUERY, "k": 60})
    wanted = [hit["id"] for hit in response.json()["hits"]]
    assert ids(page)[:60] == wanted


def test_a_picture_finds_its_item(page: Page, page_index: PageIndex) -> None:
    """A file that is chosen is searched by, and the item of the same picture is the first hit."""
    page.goto("/")
    page.locator("#file").set_input_files(page_index.files[7])
    until(page, "document.querySelector('#results li')?.hit?.score !== undefined")
    assert ids(page)[0] == 7
    expect(page.locator("#parts li img")).to_have_count(1)


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_a_picture_can_be_pasted_and_dropped(page: Page, page_index: PageIndex, way: str) -> None:
    """What is in the clipboard, or dropped anywhere on the page, is searched by."""
    page.goto("/")
    expect(page.locator(".start")).to_be_visible()
    content = base64.b64encode(page_index.files[12].read_bytes()).decode()
    page.evaluate(
        """([content, way]) => {
            const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "a.jpg", { type: "image/jpeg" }));
            const options = { bubbles: true, cancelable: true };
            document.body.dispatchEvent(way === "paste"
                ? new ClipboardEvent("paste", { ...options, clipboardData: transfer })
                : new DragEvent("drop", { ...options, dataTransfer: transfer }));
        }""",
        [content, way],
    )
    until(page, "document.querySelector('#results li')?.hit?.score !== undefined")
    assert ids(page)[0] == 12


def test_a_word_after_a_minus_is_subtracted(page: Page) -> None:
    """`-forest` becomes a part of negative weight and a chip, which can be removed."""
    page.goto("/")
    body = search(page, 'a red bird -forest -"a big tree"')
    assert body["query"][0] == {"text": "a red bird", "weight": 1}
    assert [(part["text"], part["weight"] < 0) for part in body["query"][1:]] == [
        ("forest", True),
        ("a big tree", True),
    ]
    with page.expect_request("**/v1/search") as request:
        page.locator("#parts li.minus").first.get_by_role("button", name="Remove").click()
    assert [part["text"] for part in body_of(request.value)["query"]] == ["a red bird", "a big tree"]


def test_typing_searches_and_leaves_what_is_typed(page: Page) -> None:
    """Hits come while words are typed; an unfinished minus word stays in the box; typing is one step of the history."""
    page.goto("/")
    before = page.evaluate("history.length")
    for words in ("a red", " bird -fo"):
        with page.expect_response("**/v1/search") as response:
            page.locator("#words").press_sequentially(words)
        assert response.value.ok
        settled(page)
    expect(page.locator("#words")).to_have_value("a red bird -fo")
    assert body_of(response.value.request)["query"] == [{"text": "a red bird", "weight": 1}]
    assert page.evaluate("history.length") == before + 1
    page.go_back()
    expect(page.locator(".start")).to_be_visible()


def test_a_weight_can_be_set_with_the_keyboard(page: Page) -> None:
    """A chip opens a slider; arrow keys change the weight step by step, and the slider keeps the focus."""
    searched(page, f"/?q={QUERY}&p=-0.5*text:forest")
    page.get_by_role("button", name="forest", exact=False).first.click()
    slider = page.get_by_role("slider")
    slider.focus()
    for weight in (-0.4, -0.3):
        with page.expect_request("**/v1/search") as request:
            page.keyboard.press("ArrowRight")
        assert body_of(request.value)["query"][1] == {"text": "forest", "weight": weight}
    expect(slider).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#parts")).to_contain_text("×0.3")


def test_more_like_this_searches_by_the_item(page: Page) -> None:
    """The key m on a tile searches for its item, which is then the first hit; the minus sign subtracts one."""
    searched(page, f"/?q={QUERY}")
    first = ids(page)[0]
    page.locator(TILES).first.locator("a").focus()
    with page.expect_request("**/v1/search") as request:
        page.keyboard.press("m")
    assert body_of(request.value)["query"] == [{"image": f"item:{first}", "weight": 1}]
    settled(page)
    assert ids(page)[0] == first
    page.locator(TILES).nth(1).locator("a").focus()
    second = ids(page)[1]
    with page.expect_request("**/v1/search") as request:
        page.keyboard.press("-")
    assert body_of(request.value)["query"][1] == {"image": f"item:{second}", "weight": -0.5}


def test_a_filter_keeps_its_items_and_the_back_button_removes_it(page: Page) -> None:
    """A value chosen in a chip filters, stands in the address, survives a reload and goes with the back button."""
    searched(page, f"/?q={QUERY}")
    page.get_by_role("button", name="background", exact=True).click()
    with page.expect_request("**/v1/search") as request:
        page.locator(".popover:popover-open").get_by_role("checkbox", name="forest").check()
    assert body_of(request.value)["where"] == "background in ('forest')"
    page.keyboard.press("Escape")
    chip = page.get_by_role("button", name="background: forest", exact=True)
    expect(chip).to_be_visible()
    expect(chip).to_be_focused()
    until(page, f"{_tiles()}.every((tile) => tile.hit.metadata.background === 'forest')")
    page.reload()
    expect(chip).to_be_visible()
    page.go_back()
    expect(chip).to_have_count(0)
    until(page, f"!{_tiles()}.every((tile) => tile.hit.metadata.background === 'forest')")


@pytest.mark.parametrize(
    ("address", "where"),
    [
        ('has.colours="red"&has.colours="blue"', "(colours contains 'red' or colours contains 'blue')"),
        ("min.exposure=3&max.exposure=5.5", "exposure >= 3 and exposure <= 5.5"),
        ('min.shot date=2015-01-01&in.background="it\'s"', "`shot date` >= 2015-01-01 and background in ('it''s')"),
        ('where=exposure > 3&in.background="sea"', "background in ('sea') and (exposure > 3)"),
    ],
)
def test_filters_of_the_address_are_conditions(page: Page, address: str, where: str) -> None:
    """Lists, ranges, keys with spaces, quotes and expressions become one filter, which the gateway accepts."""
    with page.expect_response("**/v1/search") as response:
        page.goto(f"/?q=a bird&{address}")
    assert body_of(response.value.request)["where"] == where
    assert response.value.status == 200


def test_modes_and_kinds_are_sent(page: Page) -> None:
    """The switch of modes sends the mode, and that of kinds the kind; texts are shown as such."""
    searched(page, f"/?q={QUERY}")
    with page.expect_request("**/v1/search") as request:
        page.get_by_role("radio", name="Meaning").check()
    assert body_of(request.value)["mode"] == "vector"
    with page.expect_request("**/v1/search") as request:
        page.get_by_role("radio", name="Texts").check()
    assert body_of(request.value)["kind"] == "text"
    expect(page.locator(TILES)).to_have_count(2)
    expect(page.locator("#results")).to_contain_text("שלום")


def test_a_link_opens_the_details_of_an_item(page: Page, page_index: PageIndex) -> None:
    """An address with an item shows its picture, caption and metadata, also without a search."""
    page.goto("/?item=5")
    dialog = page.get_by_role("dialog", name="Details")
    expect(dialog).to_contain_text(page_index.captions[5].splitlines()[1])
    expect(dialog.get_by_role("button", name="Only background")).to_be_visible()
    until(page, "document.querySelector('#details img.large')?.naturalWidth > 0")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page).not_to_have_url(re.compile("item="))


def test_details_step_through_the_hits_and_give_the_focus_back(page: Page) -> None:
    """Enter opens details with score parts, the right arrow the next hit; Escape returns to the tile last shown."""
    searched(page, f"/?q={QUERY}")
    page.keyboard.press("/")
    expect(page.locator("#words")).to_be_focused()
    page.keyboard.press("Escape")
    page.locator("#words").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Details")
    expect(dialog.locator(".score-parts")).to_contain_text("Similarity")
    second, third = ids(page)[1:3]
    expect(page).to_have_url(re.compile(f"item={second}$"))
    page.keyboard.press("ArrowRight")
    expect(page).to_have_url(re.compile(f"item={third}$"))
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    until(page, f"document.activeElement.closest('li')?.hit.id === {third}")
    expect(page).not_to_have_url(re.compile("item="))


def test_arrows_move_between_rows(page: Page) -> None:
    """The down arrow goes to a tile of the next row, the up arrow back to the first row."""
    searched(page, f"/?q={QUERY}")
    page.locator(TILES).first.locator("a").focus()
    top = "document.activeElement.getBoundingClientRect().top + scrollY"
    before = page.evaluate(top)
    page.keyboard.press("ArrowDown")
    assert page.evaluate(top) > before
    page.keyboard.press("ArrowUp")
    assert page.evaluate(top) == before


def test_scrolling_shows_every_item_once(page: Page) -> None:
    """Scrolling loads further hits until every item was shown, none twice."""
    searched(page, f"/?q={QUERY}&mode=vector")
    for _ in range(40):
        page.mouse.wheel(0, 2500)
        page.wait_for_timeout(50)
        if page.locator("#more .end").count():
            break
    shown = ids(page)
    assert sorted(shown) == list(range(COUNT + 2))


def test_tiles_have_their_pictures_shape_before_they_load(page: Page, page_index: PageIndex) -> None:
    """Rows fill the width in equal height, tiles have the pictures' aspect ratios, and nothing moves later."""
    page.add_init_script(
        "window.shift = 0; new PerformanceObserver((list) => { for (const entry of list.getEntries()) "
        "window.shift += entry.value; }).observe({ type: 'layout-shift', buffered: true });"
    )
    # What the index has to filter by is known after the hits: chips must not push them down.
    page.route("**/v1/info", lambda route: (page.wait_for_timeout(300), route.continue_()))
    searched(page, f"/?q={QUERY}&kind=image")
    expect(page.get_by_role("button", name="colours")).to_be_visible()
    boxes = page.eval_on_selector_all(
        TILES,
        "tiles => tiles.map(tile => { const { x, y, width, height } = tile.getBoundingClientRect();"
        " const { metadata } = tile.hit; return { x, y, width, height, ratio: metadata.width / metadata.height }; })",
    )
    grid = page.locator("#results").bounding_box()
    assert grid is not None
    rows = {box["y"] for box in boxes}
    for top in sorted(rows)[:-1]:
        row = [box for box in boxes if box["y"] == top]
        assert max(box["x"] + box["width"] for box in row) == pytest.approx(grid["x"] + grid["width"], abs=1)
        assert {round(box["height"], 1) for box in row} == {round(row[0]["height"], 1)}
    assert all(box["width"] / box["height"] == pytest.approx(box["ratio"], rel=0.02) for box in boxes)
    until(page, f"{_tiles()}.slice(0, 4).every((tile) => tile.querySelector('img').naturalWidth > 0)")
    assert page.evaluate("window.shift") < 0.02
    page.unroute_all(behavior="wait")  # the page asks again from time to time


def test_texts_of_the_index_are_never_html(page: Page) -> None:
    """A caption, a metadata value and a filter that look like HTML are shown as text and run nothing."""
    page.goto(f"/?item={COUNT - 1}")
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("h2")).to_have_text(HOSTILE)
    expect(dialog.get_by_role("button", name="Only background")).to_have_text(HOSTILE)
    page.goto("/?" + f"q=x&in.background={json.dumps(HOSTILE)}".replace("#", "%23"))
    expect(page.locator(TILES)).to_have_count(1)
    assert page.evaluate("window.hacked") is None


def test_results_are_there_soon(page: Page) -> None:
    """From a search to its hits, and to the pictures of the first screen, measured by the page itself."""
    searched(page, f"/?q={QUERY}")
    until(page, "performance.getEntriesByName('twinspire:pictures').length > 0")
    measures: dict[str, float] = page.evaluate(
        "Object.fromEntries(performance.getEntriesByType('measure').map((one) => [one.name, one.duration]))"
    )
    assert 0 < measures["twinspire:hits"] <= measures["twinspire:pictures"] < 20_000


def test_nothing_comes_from_another_host(page: Page, page_gateway: str, page_index: PageIndex) -> None:
    """Everything that the page loads in a whole visit comes from the gateway."""
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    searched(page, f"/?q={QUERY}")
    page.locator("#file").set_input_files(page_index.files[3])
    page.goto("/?tab=server")
    expect(page.locator(".charts")).to_be_visible()
    assert len(addresses) > 20
    assert {address for address in addresses if not address.startswith((page_gateway, "data:", "blob:"))} == set()


def _tiles() -> str:
    return f"[...document.querySelectorAll('{TILES}')]"


def test_the_page_is_small(page_files_bytes: int) -> None:
    """All files of the page together have less than 200 kB."""
    assert 20_000 < page_files_bytes < 200_000


@pytest.fixture
def page_files_bytes() -> int:
    """The size of the page's files on disk."""
    from twinspire_server import gateway

    folder = Path(gateway.__file__).parent / "page"
    return sum(file.stat().st_size for file in folder.iterdir())
