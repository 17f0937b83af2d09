// What stands in place of hits: the start, nothing found, and what went wrong.

import * as api from "./api.js";
import { h, icon, svg } from "./dom.js";
import { t } from "./i18n.js";
import { ownFirst } from "./names.js";

const EXAMPLES = 6;

/** Return a message with a drawing, a title, texts and buttons. */
function message(drawing, title, ...content) {
  return h("div", { className: "message" }, drawing, h("h2", {}, title), ...content);
}

/** Return the page before a search: what there is, and queries to begin with. */
export function start(info, { addressOf, onOpen }) {
  const { index, page } = info;
  if (!index) return message(drawing("empty"), t.noIndex, h("p", {}, t.noIndexText));
  if (!index.items) return message(drawing("empty"), t.emptyIndex, h("p", {}, t.emptyIndexText));
  const examples = ownFirst(page?.examples ?? [], EXAMPLES).map((text) => h("a", { className: "chip example", href: addressOf({ text }), onclick: (event) => onOpen(event, { text }), dir: "auto" }, icon("search"), text));
  return h(
    "div",
    { className: "start" },
    h("h2", {}, t.emptyTitle(index.items)),
    h("p", {}, t.emptyText),
    examples.length ? h("div", { className: "examples" }, examples) : null,
    h("p", { className: "facts" }, t.facts(info.model, info.dim)),
  );
}

/** Return the message for a search without hits. */
export function noHits(notes, buttons) {
  return message(
    drawing("none"),
    t.noHits,
    ...(notes.length ? notes : [t.noHitsText]).map((note) => h("p", { dir: "auto" }, note)),
    h("div", { className: "buttons" }, buttons.filter(Boolean).map(([label, onclick]) => h("button", { type: "button", onclick }, label))),
  );
}

/** Return the message for a failed request; `seconds` until it is tried again, null where it is not. */
export function failure(error, seconds, retry) {
  const again = h("button", { type: "button", className: "primary", onclick: retry }, t.retry);
  const buttons = h("div", { className: "buttons" }, again);
  const detail = h("p", { className: "detail", dir: "auto" }, error.message);
  if (error.code === "no_index") return message(drawing("empty"), t.noIndex, h("p", {}, t.noIndexText));
  switch (error.status) {
    case 0:
      return message(drawing("offline"), t.offline, h("p", {}, t.offlineText), buttons);
    case 401:
    case 403:
      return keyForm(retry);
    case 429:
      return message(drawing("busy"), t.busy, countdown(seconds, t.busyText), buttons);
    case 502:
    case 503:
    case 504:
      return message(drawing("offline"), t.unavailable, detail, countdown(seconds, t.unavailableText), buttons);
    case 409:
      return message(drawing("broken"), t.otherSpace, detail);
    case 400:
    case 404:
    case 413:
    case 422:
      return message(drawing("broken"), t.badRequest, h("pre", { className: "detail", tabIndex: 0 }, error.message));
    default:
      return message(drawing("broken"), t.failed, detail, buttons);
  }
}

function countdown(seconds, text) {
  return seconds === null ? null : h("p", { className: "countdown" }, text(seconds));
}

function keyForm(retry) {
  const field = h("input", { type: "password", required: true, autocomplete: "off", "aria-label": t.keyLabel, placeholder: t.keyLabel });
  const submit = (event) => {
    event.preventDefault();
    api.setKey(field.value.trim());
    retry();
  };
  const wrong = api.hasKey() ? h("p", { className: "wrong", role: "alert" }, t.wrongKey) : null;
  return message(
    drawing("key"),
    t.denied,
    h("p", {}, t.deniedText),
    h("form", { className: "key", onsubmit: submit }, field, h("button", { type: "submit", className: "primary" }, t.keySend)),
    wrong,
  );
}

/** Return a drawing of picture frames in the state that the message is about. */
function drawing(name) {
  const frame = (x, y, tilt, extra = "") => svg("rect", { x, y, width: 60, height: 46, rx: 6, transform: `rotate(${tilt} ${x + 30} ${y + 23})`, class: `frame ${extra}` });
  const hills = svg("path", { d: "M76 74l14-16 10 11 7-7 11 12z", class: "hills" });
  const sun = svg("circle", { cx: 108, cy: 52, r: 4, class: "sun" });
  const marks = {
    none: [svg("circle", { cx: 118, cy: 72, r: 17, class: "mark glass" }), svg("path", { d: "M130 85l15 15", class: "mark" })],
    empty: [svg("path", { d: "M100 48v24M88 60h24", class: "mark" })],
    offline: [svg("path", { d: "M58 28l88 76", class: "mark" })],
    busy: [svg("circle", { cx: 130, cy: 80, r: 16, class: "mark glass" }), svg("path", { d: "M130 71v9l6 4", class: "mark" })],
    broken: [svg("path", { d: "M104 36l-8 16 10 8-8 18", class: "mark" })],
    key: [svg("circle", { cx: 124, cy: 78, r: 10, class: "mark glass" }), svg("path", { d: "M131 85l17 17M142 96l6-6", class: "mark" })],
  };
  const picture = name === "empty" ? [] : [hills, sun];
  return svg("svg", { viewBox: "0 0 200 120", class: "drawing", "aria-hidden": "true" }, frame(38, 34, -9, "back"), frame(102, 34, 8, "back"), frame(70, 36, 0), ...picture, ...marks[name]);
}
