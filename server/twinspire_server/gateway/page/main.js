// The page: one state, kept in the address; searches it, and shows what it finds.

import * as api from "./api.js";
import { SearchBox } from "./box.js";
import { Details } from "./details.js";
import { $, h, icon, show } from "./dom.js";
import { showFilters, showModes } from "./filters.js";
import { Grid } from "./grid.js";
import { language, switchLanguage, t, translate } from "./i18n.js";
import { listenForKeys } from "./keys.js";
import * as messages from "./messages.js";
import * as pictures from "./pictures.js";
import { conditions, emptyState, isQuery, readState, searchBody, searchKey, writeState } from "./state.js";
import { ServerView } from "./server.js";
import { setUpTheme } from "./theme.js";

const PAGE = 60; // hits of a request
const DEEPEST = 9_900; // the gateway ranks 10,000 hits at most
const AGAIN_MS = 10_000; // until a stream of events that ended is opened again
const LATE_MS = 150; // until what is waited for is said to be waited for

let state = emptyState();
let info = null;
let shownKey = null; // of the hits that the grid shows
let loaded = 0; // hits that were received, those that came twice too
let isComplete = true; // whether there is no further page of hits
let hasFailed = false;
let running = null;
let retryTimer = null;
let isTyping = false;

const grid = new Grid($("results"), {
  onOpen: (hit) => go({ item: hit.id }),
  onLike: (hit) => like(hit),
  onMinus: (hit) => combine(hit, -0.5),
  addressOf: (hit) => writeState({ ...state, item: hit.id }),
  onImage: markPictures,
});
const details = new Details({
  onClose: () => state.item !== null && closeDetails(),
  onStep: (step) => {
    const next = neighbour(step);
    if (next) go({ item: next.id }, { replace: true });
  },
  hasStep: (step) => Boolean(neighbour(step)),
  onLike: (hit) => like(hit),
  onPlus: (hit) => combine(hit, 1),
  onMinus: (hit) => combine(hit, -0.5),
  onFilter: (key, value, isList) => go({ item: null, filters: { ...state.filters, [key]: { [isList ? "has" : "in"]: [value] } } }),
});
const box = new SearchBox({
  onWords: (text, isFinal) => {
    // While words are typed the address changes in place; Enter makes a step that the back button returns to.
    go({ text, item: null, tab: "search" }, { replace: isTyping });
    isTyping = !isFinal;
  },
  onParts: (parts, text) => go({ parts, text, item: null, tab: "search" }),
  onProblem: (text) => show($("notes"), h("p", { className: "note", role: "alert" }, text)),
});
const server = new ServerView($("view-server"));

/** Change the state, and the address with it. */
function go(changes, { replace = false } = {}) {
  const before = writeState(state);
  state = { ...state, ...changes };
  const address = writeState(state);
  if (address !== before) {
    if (replace) history.replaceState({ own: history.state?.own }, "", address);
    else history.pushState({ own: true }, "", address);
  }
  if (!("text" in changes)) isTyping = false;
  render();
}

function like(hit) {
  go({ text: "", parts: [{ weight: 1, kind: "item", value: String(hit.id) }], item: null, mode: "auto" });
  window.scrollTo({ top: 0 });
}

function combine(hit, weight) {
  const parts = state.parts.filter(({ kind, value }) => kind !== "item" || value !== String(hit.id));
  go({ parts: [...parts, { weight, kind: "item", value: String(hit.id) }], item: null });
  window.scrollTo({ top: 0 });
}

function neighbour(step) {
  const place = grid.hits.findIndex((hit) => hit.id === state.item);
  return place < 0 ? undefined : grid.hits[place + step];
}

function closeDetails() {
  const { item } = state;
  // Back, where the details were opened here, so that no step to them is left in the history.
  if (history.state?.own && shownKey !== null) {
    history.back();
  } else go({ item: null }, { replace: true });
  grid.focus(item);
}

function render() {
  const isSearch = state.tab === "search";
  $("view-search").hidden = !isSearch;
  $("view-server").hidden = isSearch;
  for (const tab of document.querySelectorAll("[data-tab]")) {
    if (tab.dataset.tab === state.tab) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  document.title = isSearch && state.text ? `${state.text} · twinspire` : isSearch ? "twinspire" : `${t.tabServer} · twinspire`;
  box.show(state);
  renderBar();
  if (isSearch) server.stop();
  else server.start();
  if (isSearch && (info || isQuery(state))) update();
  renderDetails();
}

function renderBar() {
  const isChosen = conditions(state) || state.kind || state.mode !== "auto";
  // Before the index is known its place is kept, so that hits that come first do not move.
  $("bar").hidden = (info && !info.index?.items) || !(isQuery(state) || isChosen);
  if (info) showFilters($("chips"), info, state, (changes) => go(changes));
  showModes($("switches"), info, state, (changes) => go(changes));
}

async function renderDetails() {
  if (state.item === null || state.tab !== "search") return details.close();
  const id = state.item;
  let hit = grid.hits.find((one) => one.id === id);
  if (details.isOpen && details.hit?.id === id && (!hit || details.hit === hit)) return undefined;
  if (!hit) {
    if (running) return undefined; // its hits may have it
    try {
      hit = await api.item(id);
    } catch (error) {
      if (error.status === 404) {
        go({ item: null }, { replace: true });
        return show($("notes"), h("p", { className: "note", role: "alert" }, t.itemGone));
      }
      return fail(error);
    }
    if (state.item !== id) return undefined;
  }
  details.open(hit, largestParts());
  if (!neighbour(2) && !isComplete && !running) run(loaded); // so that the next steps have hits to go to
  return undefined;
}

function largestParts() {
  const best = {};
  for (const hit of grid.hits) {
    for (const [name, value] of [["score", hit.score], ...Object.entries(hit.parts ?? {})]) best[name] = Math.max(best[name] ?? 0, value);
  }
  return best;
}

/** Search for the state, unless its hits are shown already. */
async function update() {
  const key = isQuery(state) ? searchKey(state) : "";
  if (key === shownKey) return;
  running?.abort();
  running = null;
  clearTimeout(retryTimer);
  shownKey = key;
  show($("notes"));
  if (!key) return showStart();
  const gone = state.parts.filter(({ kind, value }) => kind === "upload" && pictures.address(value) === undefined);
  if (gone.length) return go({ parts: state.parts.filter((part) => !gone.includes(part)) }, { replace: true });
  await run(0);
}

async function run(offset) {
  hasFailed = false;
  const abort = (running = new AbortController());
  const late = setTimeout(() => waiting(offset), LATE_MS);
  $("results").setAttribute("aria-busy", "true");
  const started = performance.now();
  try {
    const response = await api.search(searchBody(state, PAGE, offset), abort.signal);
    if (running !== abort) return;
    running = null;
    received(response, offset, performance.now() - started);
    performance.measure("twinspire:hits", { start: started });
    awaited = { started, offset };
    markPictures();
  } catch (error) {
    if (error.name === "AbortError" || running !== abort) return;
    running = null;
    if (offset) failAtEnd(error);
    else fail(error);
  } finally {
    clearTimeout(late);
    if (running === abort || running === null) {
      $("progress").hidden = true;
      $("results").classList.remove("stale");
      $("results").removeAttribute("aria-busy");
    }
  }
  if (!running) renderDetails();
}

function waiting(offset) {
  $("progress").hidden = false;
  if (offset) return;
  show($("state"));
  if (grid.hits.length) $("results").classList.add("stale");
  else grid.placeholders(24);
}

function received(response, offset, ms) {
  const { hits, notes, searched } = response;
  if (offset) grid.append(hits);
  else {
    grid.replace(hits);
    window.scrollTo({ top: 0 });
  }
  loaded = offset + hits.length;
  isComplete = hits.length < PAGE || loaded + PAGE > DEEPEST;
  const mode = t.usedMode[response.mode] ?? response.mode;
  $("summary").textContent = grid.hits.length ? t.shown(grid.hits.length, searched, mode, Math.max(1, Math.round(ms))) : t.summaryNone;
  if (!offset) showOutcome(hits, notes);
  else details.showSteps();
  showEnd();
}

function showOutcome(hits, notes) {
  if (hits.length) {
    show($("state"));
    show($("notes"), notes.map((note) => h("p", { className: "note", dir: "auto" }, note)));
    return;
  }
  show($("notes"));
  const hasFilters = conditions(state) || state.kind;
  show(
    $("state"),
    messages.noHits(notes, [
      hasFilters && [t.tryWithoutFilters, () => go({ filters: {}, expression: "", kind: "" })],
      state.mode !== "vector" && [t.tryVector, () => go({ mode: "vector" })],
      [t.tryNew, () => box.clear()],
    ]),
  );
}

function showEnd() {
  const count = grid.hits.length;
  show($("more"), isComplete && count >= PAGE && h("p", { className: "end" }, t.end(count)));
  end.unobserve($("more")); // an observer tells changes only, and the end may be in view still
  if (!isComplete) end.observe($("more"));
}

/** Say under the hits why there are no more of them. */
function failAtEnd(error) {
  isComplete = true;
  const again = h("button", { type: "button", onclick: () => run(loaded) }, t.retry);
  show($("more"), h("div", { className: "end", role: "alert" }, h("p", {}, error.message), again));
}

const end = new IntersectionObserver(
  ([{ isIntersecting }]) => isIntersecting && !running && !isComplete && !hasFailed && run(loaded),
  { rootMargin: "1200px 0px" },
);

function showStart() {
  $("progress").hidden = true;
  $("results").classList.remove("stale");
  $("summary").textContent = "";
  isComplete = true;
  show($("more"));
  if (!info) return;
  const open = (event, changes) => {
    event.preventDefault();
    go(changes);
  };
  show($("state"), messages.start(info, { addressOf: (changes) => writeState({ ...state, ...changes }), onOpen: open }));
  grid.replace(info.page?.items ?? []);
}

/** Say what went wrong, and try again by itself where that may help. */
function fail(error) {
  hasFailed = true;
  isComplete = true;
  grid.replace([]);
  show($("more"));
  $("summary").textContent = "";
  show($("notes"));
  clearTimeout(retryTimer);
  const again = [0, 429, 502, 503, 504].includes(error.status);
  const until = Date.now() + 1000 * Math.max(error.retryAfter ?? 0, error.status === 0 ? 3 : 2);
  const tick = () => {
    const seconds = Math.ceil((until - Date.now()) / 1000);
    if (seconds <= 0) return retry();
    show($("state").firstElementChild?.querySelector(".countdown") ?? h("p"), error.status === 429 ? t.busyText(seconds) : t.unavailableText(seconds));
    retryTimer = setTimeout(tick, 500);
    return undefined;
  };
  show($("state"), messages.failure(error, again ? Math.ceil((until - Date.now()) / 1000) : null, retry));
  if (again) retryTimer = setTimeout(tick, 500);
  if (error.status === 401 || error.status === 403) $("state").querySelector("input")?.focus();
}

function retry() {
  clearTimeout(retryTimer);
  shownKey = null;
  begin();
}

let awaited = null;

/** Measure the time from a search to all its pictures on the first screen. */
function markPictures() {
  if (!awaited || awaited.offset) return;
  const waitedFor = grid.hits.some((hit) => {
    const tile = grid.tiles.get(hit.id);
    const { top } = tile.getBoundingClientRect();
    return top < window.innerHeight && tile.querySelector("img") && !tile.classList.contains("loaded");
  });
  if (waitedFor) return;
  performance.measure("twinspire:pictures", { start: awaited.started });
  awaited = null;
}

/** Read what the gateway has, and show the state. */
async function begin() {
  hasFailed = false;
  const reading = api.info();
  render();
  try {
    info = await reading;
  } catch (error) {
    return hasFailed ? undefined : fail(error); // the search has said so
  }
  follow();
  render();
  return undefined;
}

let following = null;

/** Keep the size of the index up to date while the page is looked at. */
async function follow() {
  if (following || document.hidden || !info?.index) return;
  following = new AbortController();
  const { signal } = following;
  try {
    await api.events("v1/items/events", changed, signal);
  } catch (error) {
    if (error.status >= 400 && error.status < 500) return; // a gateway without events
  } finally {
    if (following?.signal === signal) following = null;
  }
  setTimeout(follow, AGAIN_MS);
}

let refresh = null;

function changed(name, { items, done, total: all }) {
  if (name === "upload") $("indexing").textContent = done < all ? t.indexing(done, all) : "";
  if (!Number.isFinite(items) || items === info.index.items) return;
  info.index.items = items;
  clearTimeout(refresh);
  refresh = setTimeout(async () => {
    info = await api.info().catch(() => info);
    renderBar();
    if (!isQuery(state) && state.tab === "search") showStart();
  }, 500);
}

function setUp() {
  translate();
  setUpTheme($("theme"));
  $("tabs").setAttribute("aria-label", t.tabs);
  Object.assign($("language"), { textContent: t.language, title: t.switchLanguage, lang: language === "en" ? "zh-CN" : "en" });
  $("language").setAttribute("aria-label", t.switchLanguage);
  $("language").addEventListener("click", switchLanguage);
  for (const link of document.querySelectorAll("[data-tab], [data-home]")) {
    link.addEventListener("click", (event) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      go(link.dataset.tab ? { tab: link.dataset.tab, item: null } : emptyState());
    });
  }
  window.addEventListener("popstate", () => {
    isTyping = false;
    state = readState(location.search);
    render();
  });
  window.addEventListener("online", () => hasFailed && retry());
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) following?.abort();
    else follow();
  });
  listenForKeys({ box, grid, details, like, minus: (hit) => combine(hit, -0.5), helpButton: $("help") });
  show($("help"), icon("help"));
}

setUp();
state = readState(location.search);
begin();
