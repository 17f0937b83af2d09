"""The page in a real browser: start, errors, languages, colours, phone, the server's figures, accessibility."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from support.browser import until
from support.gateway import served
from support.page_index import COUNT, PageIndex
from twinspire import Client, Index, sample_bundle
from twinspire.ingest import add_texts
from twinspire.stores import BundleReference
from twinspire_server.gateway.safety.options import SafetyOptions
from twinspire_server.gateway.settings import GatewaySettings

pytestmark = pytest.mark.slow
TILES = "#results li.tile:not(.placeholder)"
KEY = "a-key-of-at-least-thirty-two-characters"


def answer(status: int, message: str = "told", **headers: str) -> Callable[[Route], None]:
    """Return a handler that answers requests with an error of the gateway's form."""
    body = json.dumps({"error": {"message": message, "type": "", "param": None, "code": None}})
    return lambda route: route.fulfill(
        status=status, body=body, headers={"content-type": "application/json", **headers}
    )


def test_the_start_says_what_there_is(page: Page) -> None:
    """Before a search the page shows the index's size, the model, examples from captions, and items of the index."""
    page.goto("/")
    expect(page.locator(".start h2")).to_contain_text(str(COUNT + 2))
    expect(page.locator(".start .facts")).to_contain_text("scenes")
    assert page.locator(".example").count() > 3
    assert page.locator(TILES).count() == 24
    example = page.locator(".example").first
    words = example.inner_text()
    example.click()
    expect(page.locator("#words")).to_have_value(words)
    until(page, "document.querySelector('#results li')?.hit?.score !== undefined")


def test_no_hits_say_why_and_what_to_do(page: Page) -> None:
    """A phrase that nothing has shows the response's note, and a button that searches by meaning finds something."""
    page.goto('/?q="purple unicorn"')
    message = page.locator(".message")
    expect(message).to_contain_text("purple unicorn")
    message.get_by_role("button", name="meaning").click()
    expect(page.locator(TILES).first).to_be_visible()


def test_a_filter_that_cannot_be_read_shows_the_place(page: Page) -> None:
    """A refused filter is shown with its message; the page stays usable."""
    page.goto("/?q=a bird&where=year => 3")
    expect(page.locator(".message pre")).to_contain_text("year => 3")
    page.get_by_role("button", name="Remove Filter").click()
    expect(page.locator(TILES).first).to_be_visible()


def test_a_full_gateway_is_asked_again(page: Page) -> None:
    """After 429 the page counts down from Retry-After and then searches again by itself."""
    page.route("**/v1/search", answer(429, **{"Retry-After": "2"}))
    page.goto("/?q=a bird")
    expect(page.locator(".message .countdown")).to_contain_text(re.compile("[12] s"))
    page.unroute("**/v1/search")
    expect(page.locator(TILES).first).to_be_visible()


def test_a_model_that_is_away_is_said_and_waited_for(page: Page) -> None:
    """After 503 the page shows the reason, and the hits once the model answers."""
    page.route("**/v1/search", answer(503, "no server is reachable"))
    page.goto("/?q=a bird")
    expect(page.locator(".message")).to_contain_text("no server is reachable")
    page.unroute("**/v1/search")
    expect(page.locator(TILES).first).to_be_visible()


def test_a_lost_connection_is_said_and_found_again(page: Page) -> None:
    """Without a network the page says so; when it is back, so are the hits."""
    page.goto("/")
    expect(page.locator(".start")).to_be_visible()
    page.context.set_offline(True)
    page.locator("#words").fill("a bird")
    page.keyboard.press("Enter")
    expect(page.locator(".message h2")).to_contain_text("reached")
    page.context.set_offline(False)
    expect(page.locator(TILES).first).to_be_visible()


def test_further_pages_that_fail_leave_the_hits(page: Page) -> None:
    """An error while scrolling keeps what is shown and offers another try."""
    page.goto("/?q=a bird&mode=vector")
    expect(page.locator(TILES).first).to_be_visible()
    count = page.locator(TILES).count()
    page.route("**/v1/search", answer(500, "broken"))
    page.mouse.wheel(0, 50_000)
    expect(page.locator("#more")).to_contain_text("broken")
    assert page.locator(TILES).count() >= count
    page.unroute("**/v1/search")
    page.locator("#more button").click()
    until(page, f"document.querySelectorAll('{TILES}').length > {count}")


@pytest.fixture
def locked_gateway(page_index: PageIndex, tmp_path: Path) -> Iterator[str]:
    """The address of a gateway that asks for a key."""
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY} browser\n")
    keys.chmod(0o600)
    with served(GatewaySettings(index=str(page_index.path), safety=SafetyOptions(keys=keys))) as url:
        yield url


def test_a_key_is_asked_for_and_kept_by_the_tab_alone(chromium: Browser, locked_gateway: str) -> None:
    """A wrong key is refused, the right one shows hits and pictures; it is in no address and in no lasting storage."""
    with chromium.new_context(base_url=locked_gateway, locale="en-US") as context:
        page = context.new_page()
        page.goto("/?q=a bird")
        page.get_by_label("API key").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("key")
        page.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator(TILES).first).to_be_visible()
        until(page, f"document.querySelector('{TILES} img').naturalWidth > 0")
        page.reload()
        expect(page.locator(TILES).first).to_be_visible()
        assert KEY not in page.url
        assert KEY not in page.evaluate("JSON.stringify(localStorage) + document.cookie")
        other = context.new_page()
        other.goto("/?q=a bird")
        expect(other.get_by_label("API key")).to_be_visible()


def test_a_gateway_without_an_index_says_how_to_start_one(chromium: Browser) -> None:
    """Without an index the page says so at the start and after a search."""
    with served(GatewaySettings(bundle=sample_bundle())) as url, chromium.new_context(locale="en-US") as context:
        page = context.new_page()
        page.goto(url)
        expect(page.locator(".message")).to_contain_text("--index")
        page.goto(f"{url}/?q=a bird")
        expect(page.locator(".message")).to_contain_text("--index")


def test_an_index_that_grows_is_seen(chromium: Browser, local_client: Client, tmp_path: Path) -> None:
    """The page of an empty index says so, and shows the first item that another process adds without a reload."""
    space, dim = local_client.space, local_client.dim
    (tmp_path / "texts.txt").write_text("a red house\n")
    with (
        Index.create(tmp_path / "index", space=space, dim=dim, bundle=BundleReference("scenes")) as index,
        served(GatewaySettings(index=str(tmp_path / "index"))) as url,
        chromium.new_context(locale="en-US") as context,
    ):
        page = context.new_page()
        page.goto(url)
        expect(page.locator(".message h2")).to_contain_text("empty")
        add_texts(index, local_client, [tmp_path / "texts.txt"])
        expect(page.locator(".start h2")).to_contain_text("1", timeout=30_000)


def test_chinese_is_the_browsers_or_chosen(chromium: Browser, page_gateway: str) -> None:
    """A Chinese browser gets Chinese, captions in Chinese first; the switch changes to English, and that is kept."""
    with chromium.new_context(base_url=page_gateway, locale="zh-CN") as context:
        page = context.new_page()
        page.goto("/?q=一只红色的鸟")
        expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
        expect(page.get_by_role("link", name="服务器")).to_be_visible()
        expect(page.locator(TILES).first.locator(".name")).to_have_text(re.compile("[\u4e00-\u9fff]"))
        page.get_by_role("button", name="切换到英文").click()
        expect(page.get_by_role("link", name="Server")).to_be_visible()
        page.reload()
        expect(page.locator("html")).to_have_attribute("lang", "en")
        expect(page.locator("#words")).to_have_value("一只红色的鸟")


def test_both_languages_have_all_strings(page: Page) -> None:
    """The modules of strings have the same keys, and as many arguments where a string has some."""
    page.goto("/")
    shapes = page.evaluate(
        """async () => {
            const shape = (value) => typeof value === "object"
                ? Object.fromEntries(Object.entries(value).map(([key, one]) => [key, shape(one)]).sort())
                : typeof value === "function" ? value.length : typeof value;
            const read = async (name) => shape((await import(new URL(`page/${name}.js`, location).href)).default);
            return [await read("en"), await read("zh")];
        }"""
    )
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) > 50


def test_colours_follow_the_system_and_the_switch(chromium: Browser, page_gateway: str) -> None:
    """A dark system has a dark page; the switch chooses light, which is kept."""
    with chromium.new_context(base_url=page_gateway, locale="en-US", color_scheme="dark") as context:
        page = context.new_page()
        page.goto("/")
        background = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
        assert page.evaluate(background) < 60
        page.get_by_role("button", name="Colours").click()
        assert page.evaluate(background) > 200
        page.reload()
        assert page.evaluate(background) > 200


@pytest.mark.parametrize(
    "address", ["/", '/?q=a bird&p=-0.5*text:forest&in.background="sea"', "/?q=a bird&item=3", "/?tab=server"]
)
def test_a_phone_shows_all_without_scrolling_sideways(chromium: Browser, page_gateway: str, address: str) -> None:
    """At 390 pixels nothing is wider than the screen, and buttons can be hit with a finger."""
    options: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with chromium.new_context(base_url=page_gateway, locale="en-US", device_scale_factor=2, **options) as context:
        page = context.new_page()
        page.goto(address)
        expect(page.locator(f"{TILES}, .charts, .message").first).to_be_attached()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        heights = page.eval_on_selector_all(
            "button, .chip, .tabs a", "all => all.map(one => one.getBoundingClientRect().height).filter(Boolean)"
        )
        assert min(heights) >= 24


def test_pictures_are_as_sharp_as_the_screen(chromium: Browser, page_gateway: str) -> None:
    """On a screen of twice the density thumbnails are larger, and only those near the screen are asked for."""
    sizes = {}
    for density in (1, 2):
        with chromium.new_context(base_url=page_gateway, locale="en-US", device_scale_factor=density) as context:
            page = context.new_page()
            asked: list[str] = []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto("/?q=a bird&mode=vector")
            until(page, f"document.querySelector('{TILES} img')?.naturalWidth > 0")
            found = [int(url.rpartition("=")[2]) for url in asked if "/image?" in url]
            sizes[density] = found[0]
            assert len(found) < 60
    assert sizes[2] > sizes[1]


def test_the_server_tab_shows_figures(page: Page) -> None:
    """The tab shows requests and latency of the gateway, in charts that say their values, and the routes."""
    page.goto("/?q=a bird")
    expect(page.locator(TILES).first).to_be_visible()
    page.get_by_role("link", name="Server").click()
    expect(page.get_by_role("img", name=re.compile(r"^Requests: [0-9.]+ .s"))).to_be_visible()
    expect(page.get_by_role("table")).to_contain_text("/v1/search")
    page.route("**/v1/status", answer(500, "no figures"))
    expect(page.get_by_role("alert")).to_contain_text("no figures")
    page.go_back()
    expect(page.locator(TILES).first).to_be_visible()


ADDRESSES = {
    "start": "/",
    "hits": '/?q=a bird&p=-0.5*text:forest&p=1*item:3&in.background="sea"',
    "details": "/?q=a bird&item=3",
    "no hits": '/?q="no such words"',
    "server": "/?tab=server",
}


@pytest.mark.parametrize(
    ("state", "scheme"),
    [(state, "light") for state in (*ADDRESSES, "popover", "keys", "key")]
    + [(state, "dark") for state in ("hits", "details", "server", "key")],
)
def test_axe_finds_nothing_serious(chromium: Browser, page_gateway: str, state: str, scheme: Any) -> None:
    """No state of the page has a serious or critical violation of axe's rules, in light and dark."""
    # axe itself is a script that the page's policy would not let in.
    with chromium.new_context(
        base_url=page_gateway, locale="en-US", color_scheme=scheme, reduced_motion="reduce", bypass_csp=True
    ) as context:
        page = context.new_page()
        if state == "key":
            page.route("**/v1/search", answer(401))
        page.goto(ADDRESSES.get(state, ADDRESSES["hits"]))
        expect(page.locator(f"{TILES}, .charts, .message").first).to_be_visible()
        if state == "popover":
            page.get_by_role("button", name="colours", exact=True).click()
        if state == "keys":
            page.get_by_role("button", name="Keyboard").click()
        found = Axe().run(page).response["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in serious] == []
