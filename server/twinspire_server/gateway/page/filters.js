// Chips: filters by metadata, the kind of items, and how to search.

import { h, hasOpenPopover, icon, keepFocus, show } from "./dom.js";
import { t } from "./i18n.js";
import { MODES } from "./state.js";

const BOOKKEEPING = new Set(["inode", "bytes", "fused_captions", "overridden", "name"]);
const OF_FILES = new Set(["width", "height", "format", "modified", "line"]);
const MOST = 12;

/** Return the metadata keys that divide the items, those that are read from files last. */
export function usefulKeys(metadata) {
  return (metadata ?? [])
    .filter(({ key, values, minimum, maximum }) => {
      if (BOOKKEEPING.has(key)) return false;
      if (values?.length) return values.length > 1 && values.some(({ count }) => count > 1);
      return minimum !== undefined && minimum !== null && minimum !== maximum;
    })
    .sort((one, other) => OF_FILES.has(one.key) - OF_FILES.has(other.key)) // which are seldom asked for
    .slice(0, MOST);
}

let onClosed = () => {};

/**
 * Show the chips of a state; `onChange(changes)` is called with what the user chose. While a list of values is open the
 * chips stay as they are, and `onChange` is called once more when it is closed.
 */
export function showFilters(container, info, state, onChange) {
  if (hasOpenPopover(container)) return;
  onClosed = () => onChange({});
  const keys = usefulKeys(info?.index?.metadata);
  const set = (key, filter) => {
    const filters = { ...state.filters };
    if (filter) filters[key] = filter;
    else delete filters[key];
    onChange({ filters });
  };
  const known = keys.map(({ key }) => key);
  const others = Object.keys(state.filters).filter((key) => !known.includes(key));
  const chips = [
    ...kindChips(info, state, onChange),
    ...keys.map((entry) => keyChip(entry, state.filters[entry.key], (filter) => set(entry.key, filter))),
    ...others.map((key) => keyChip({ key, values: [] }, state.filters[key], (filter) => set(key, filter))),
    expressionChip(state.expression, (expression) => onChange({ expression })),
  ];
  keepFocus(container, () => show(container, chips));
  container.setAttribute("aria-label", t.filters);
}

/** Show the switch of modes, and of reranking where the gateway has it. */
export function showModes(container, info, state, onChange) {
  const modes = h(
    "div",
    { className: "segments", role: "radiogroup", "aria-label": t.modeLabel },
    MODES.map((mode) =>
      h(
        "label",
        { title: t.modeTitle[mode] },
        h("input", { type: "radio", name: "mode", value: mode, dataset: { focus: `mode ${mode}` }, checked: state.mode === mode, onchange: () => onChange({ mode }) }),
        h("span", {}, t.mode[mode]),
      ),
    ),
  );
  const canRerank = info?.page?.rerank || info?.rerank;
  const rerank = canRerank && h(
    "label",
    { className: "chip toggle" },
    h("input", { type: "checkbox", dataset: { focus: "rerank" }, checked: state.rerank, onchange: (event) => onChange({ rerank: event.target.checked }) }),
    h("span", {}, t.rerank),
  );
  keepFocus(container, () => show(container, rerank, modes));
}

function kindChips(info, state, onChange) {
  const kinds = Object.keys(info?.index?.kinds ?? {}).filter((kind) => info.index.kinds[kind] > 0);
  if (kinds.length < 2 && !state.kind) return [];
  const segments = ["", ...kinds].map((kind) =>
    h(
      "label",
      {},
      h("input", { type: "radio", name: "kind", value: kind, dataset: { focus: `kind ${kind}` }, checked: state.kind === kind, onchange: () => onChange({ kind }) }),
      h("span", {}, kind ? (t.kind[kind] ?? kind) : t.kindAll),
    ),
  );
  return [h("div", { className: "segments", role: "radiogroup", "aria-label": t.kindLabel }, segments)];
}

function describe(key, filter) {
  if (!filter) return key;
  const chosen = [...(filter.in ?? []), ...(filter.has ?? [])].map(String);
  if (chosen.length) return `${key}: ${chosen.length > 2 ? `${chosen.slice(0, 2).join(", ")} +${chosen.length - 2}` : chosen.join(", ")}`;
  if (filter.min && filter.max) return `${key}: ${filter.min} – ${filter.max}`;
  return filter.min ? `${key} ≥ ${filter.min}` : `${key} ≤ ${filter.max}`;
}

function keyChip(entry, filter, onChange) {
  const content = (close) => {
    const change = (range) => {
      close();
      onChange(range);
    };
    return entry.values?.length || filter?.in || filter?.has ? valueList(entry, filter, onChange) : rangeForm(entry, filter, change);
  };
  return chip(describe(entry.key, filter), Boolean(filter), content, onChange, entry.key);
}

function expressionChip(expression, onChange) {
  const content = (close) => {
    const field = h("input", { type: "text", value: expression, placeholder: "year >= 2020", "aria-label": t.expressionHelp, spellcheck: false, dir: "ltr" });
    return h(
      "form",
      {
        className: "expression",
        onsubmit: (event) => {
          event.preventDefault();
          close();
          onChange(field.value.trim());
        },
      },
      h("p", {}, t.expressionHelp),
      field,
      h("button", { type: "submit", className: "primary" }, t.apply),
    );
  };
  return chip(expression ? `${t.expression}: ${expression}` : t.expression, Boolean(expression), content, onChange, t.expression, "filter", "");
}

/** Return a chip that opens a popover; one that is set has a button that removes it. */
function chip(label, isSet, content, onChange, name, iconName = null, nothing = null) {
  const popover = h("div", { className: "popover", popover: "auto", role: "dialog", "aria-label": name });
  const close = () => popover.hidePopover();
  const button = h("button", { type: "button", className: `chip${isSet ? " set" : ""}`, dataset: { focus: `chip ${name}` }, "aria-haspopup": "dialog", "aria-expanded": "false" }, iconName && icon(iconName), h("span", { dir: "auto" }, label), icon("down"));
  button.popoverTargetElement = popover;
  popover.addEventListener("beforetoggle", (event) => {
    const isOpen = event.newState === "open";
    button.setAttribute("aria-expanded", String(isOpen));
    if (isOpen) show(popover, content(close));
  });
  popover.addEventListener("toggle", (event) => {
    if (event.newState !== "open") return onClosed();
    place(popover, button);
    return popover.querySelector("input")?.focus();
  });
  const remove = isSet && h("button", { type: "button", className: "chip-remove", title: t.remove(name), "aria-label": t.remove(name), onclick: () => onChange(nothing) }, icon("close"));
  return h("div", { className: `chip-group${isSet ? " set" : ""}` }, button, remove, popover);
}

/** Put a popover under what opened it, inside the window. */
export function place(popover, anchor) {
  const { left, bottom } = anchor.getBoundingClientRect();
  const space = document.documentElement.clientWidth - popover.offsetWidth - 12;
  popover.style.left = `${Math.max(12, Math.min(left, space))}px`;
  popover.style.top = `${bottom + 6}px`;
}

function valueList(entry, filter, onChange) {
  const isList = entry.type === "list" || Boolean(filter?.has);
  const kind = isList ? "has" : "in";
  const chosen = filter?.[kind] ?? [];
  const values = (entry.values ?? []).map(({ value, count }) => ({ value, count }));
  for (const value of chosen) if (!values.some((known) => known.value === value)) values.push({ value });
  const boxes = values.map(({ value, count }) => {
    const box = h("input", { type: "checkbox", checked: chosen.includes(value), onchange: () => apply() });
    box.chosen = value;
    const text = typeof value === "boolean" ? t[value ? "yes" : "no"] : String(value);
    return h("label", {}, box, h("span", { dir: "auto" }, text), count === undefined ? null : h("span", { className: "count" }, t.number(count)));
  });
  const list = h("div", { className: "values" }, boxes);
  const apply = () => {
    const now = [...list.querySelectorAll("input:checked")].map((box) => box.chosen);
    onChange(now.length ? { [kind]: now } : null);
  };
  return list;
}

function rangeForm(entry, filter, onChange) {
  const isTime = entry.type === "time";
  const shown = (value) => (value === undefined || value === null ? "" : isTime ? String(value).slice(0, 10) : String(value));
  const field = (kind, bound) =>
    h("input", { type: isTime ? "date" : "number", step: "any", value: shown(filter?.[kind]), placeholder: shown(bound), min: shown(entry.minimum), max: isTime ? "" : shown(entry.maximum), "aria-label": `${entry.key} ${t[kind === "min" ? "minimum" : "maximum"]}` });
  const [from, to] = [field("min", entry.minimum), field("max", entry.maximum)];
  const submit = (event) => {
    event.preventDefault();
    const range = {};
    if (from.value) range.min = from.value;
    if (to.value) range.max = to.value;
    onChange(Object.keys(range).length ? range : null);
  };
  return h(
    "form",
    { className: "range", onsubmit: submit },
    h("label", {}, h("span", {}, t.minimum), from),
    h("label", {}, h("span", {}, t.maximum), to),
    h("p", {}, `${shown(entry.minimum)} – ${shown(entry.maximum)}`),
    h("button", { type: "submit", className: "primary" }, t.apply),
  );
}
