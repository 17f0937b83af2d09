// What is searched for and shown, as it stands in the address. Texts and pictures are parts of one weighted sum.

import * as pictures from "./pictures.js";

const NAME = /^[^\W\d][\w-]*$/;
const RESERVED = /^(and|or|not|in|is|exists|like|contains|true|false|null)$/i;
export const MODES = ["auto", "vector", "keyword", "hybrid"];
const RERANKED = 20; // candidates of a search for a text alone
const FILTERS = ["in", "has", "min", "max"];

/** Return the state of a page with nothing in its search box. */
export function emptyState() {
  return { text: "", parts: [], filters: {}, expression: "", mode: "auto", kind: "", rerank: false, item: null, tab: "search" };
}

/** Read the state of an address; what it does not know is left out. */
export function readState(search) {
  const state = emptyState();
  for (const [name, value] of new URLSearchParams(search)) {
    const [kind, ...rest] = name.split(".");
    if (name === "q") state.text = value;
    else if (name === "p") state.parts.push(...readPart(value));
    else if (name === "where") state.expression = value;
    else if (name === "mode" && MODES.includes(value)) state.mode = value;
    else if (name === "kind") state.kind = value;
    else if (name === "rerank") state.rerank = value === "1";
    else if (name === "item" && /^\d+$/.test(value)) state.item = Number(value);
    else if (name === "tab" && value === "server") state.tab = value;
    else if (FILTERS.includes(kind) && rest.length) addFilter(state.filters, rest.join("."), kind, value);
  }
  return state;
}

function addFilter(filters, key, kind, value) {
  const filter = (filters[key] ??= {});
  if (kind === "min" || kind === "max") filter[kind] = value;
  else (filter[kind] ??= []).push(readJson(value));
}

function readJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function readPart(text) {
  const match = text.match(/^(-?[\d.]+)\*(text|item|upload):(.+)$/s);
  const weight = match && Number(match[1]);
  if (!weight || !Number.isFinite(weight)) return [];
  return [{ weight, kind: match[2], value: match[3] }];
}

/** Return the address of a state, relative to the page. */
export function writeState(state) {
  const values = new URLSearchParams();
  if (state.text) values.append("q", state.text);
  for (const part of state.parts) values.append("p", `${part.weight}*${part.kind}:${part.value}`);
  for (const [key, filter] of Object.entries(state.filters)) {
    for (const kind of ["in", "has"]) for (const value of filter[kind] ?? []) values.append(`${kind}.${key}`, JSON.stringify(value));
    for (const kind of ["min", "max"]) if (filter[kind]) values.append(`${kind}.${key}`, filter[kind]);
  }
  if (state.expression) values.append("where", state.expression);
  if (state.mode !== "auto") values.append("mode", state.mode);
  if (state.kind) values.append("kind", state.kind);
  if (state.rerank) values.append("rerank", "1");
  if (state.item !== null) values.append("item", state.item);
  if (state.tab !== "search") values.append("tab", state.tab);
  const text = values.toString();
  return text ? `?${text}` : ".";
}

/** Return whether there is anything to search for. */
export const isQuery = (state) => Boolean(state.text.trim()) || state.parts.length > 0;

/** Return what identifies the hits of a state: details and tabs leave them alone. */
export const searchKey = (state) => JSON.stringify([state.text.trim(), state.parts, conditions(state), state.mode, state.kind, state.rerank]);

/** Return the body of a search. */
export function searchBody(state, k, offset) {
  const words = state.text.trim();
  const query = words ? [{ text: words, weight: 1 }] : [];
  for (const { kind, value, weight } of state.parts) {
    if (kind === "text") query.push({ text: value, weight });
    else query.push({ image: kind === "item" ? `item:${value}` : pictures.address(value), weight });
  }
  const body = { query, k, offset };
  const where = conditions(state);
  if (where) body.where = where;
  if (state.mode !== "auto") body.mode = state.mode;
  if (state.kind) body.kind = state.kind;
  if (state.rerank && query.length === 1 && words) body.rerank = RERANKED;
  return body;
}

/** Return the filter of a state, "" for none. */
export function conditions(state) {
  const all = Object.entries(state.filters).flatMap(([key, filter]) => {
    const field = fieldName(key);
    const values = filter.in?.length ? [`${field} in (${filter.in.map(literal).join(", ")})`] : [];
    const elements = filter.has?.length ? [`(${filter.has.map((value) => `${field} contains ${literal(value)}`).join(" or ")})`] : [];
    const range = [["min", ">="], ["max", "<="]].filter(([kind]) => filter[kind]).map(([kind, sign]) => `${field} ${sign} ${rangeLiteral(filter[kind])}`);
    return [...values, ...elements, ...range];
  });
  const expression = state.expression.trim();
  if (expression) all.push(all.length ? `(${expression})` : expression);
  return all.join(" and ");
}

const TAKEN = ["kind", "uri", "caption", "id", "added_at", "changed_at"];

function fieldName(key) {
  const names = key.split(".").map((name) => (NAME.test(name) && !RESERVED.test(name) ? name : `\`${name}\``));
  return TAKEN.includes(key) ? `metadata.${key}` : names.join(".");
}

const literal = (value) => (typeof value === "string" ? `'${value.replaceAll("'", "''")}'` : String(value));
const rangeLiteral = (text) => (/^-?[\d.]+(e[+-]?\d+)?$/i.test(text) || /^\d{4}-\d\d-\d\d/.test(text) ? text : literal(text));

/** Take words after a minus out of the search box's text, as parts that are subtracted. */
export function splitWords(text) {
  const parts = [];
  const rest = text.replaceAll(/(^|\s)-(?:"([^"]+)"|“([^”]+)”|([^\s"“-][^\s"“]*))(?=\s|$)/g, (_, space, quoted, curly, word) => {
    parts.push({ weight: -0.5, kind: "text", value: quoted ?? curly ?? word });
    return space;
  });
  return { text: rest.replaceAll(/\s+/g, " ").trim(), parts };
}
