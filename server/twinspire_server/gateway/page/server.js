// The view of the server: what it does at the moment, and did in the last minutes.

import * as api from "./api.js";
import { lineChart } from "./chart.js";
import { h, keepFocus, show } from "./dom.js";
import { t } from "./i18n.js";

const EVERY_MS = 2000;
const SLOTS = 60; // samples that the charts show: two minutes
const OWN = /\/v1\/status|\/v1\/items\/events|\/page\/|^(GET |HEAD )?\/$/; // what this page itself asks for

export class ServerView {
  constructor(root) {
    this.root = root;
    this.samples = [];
    this.timer = null;
  }

  start() {
    if (this.timer !== null) return;
    this.timer = 0;
    this.#read();
  }

  stop() {
    clearTimeout(this.timer);
    this.timer = null;
  }

  async #read() {
    let document = null;
    let problem = null;
    try {
      document = await api.status();
    } catch (error) {
      problem = error;
    }
    if (this.timer === null) return;
    this.samples.push(document && sample(document));
    this.samples = this.samples.slice(-SLOTS);
    if (!window.document.hidden) this.#show(document, problem);
    this.timer = setTimeout(() => this.#read(), EVERY_MS);
  }

  #show(document, problem) {
    const title = h(
      "div",
      { className: "server-title" },
      h("h1", {}, t.server.title),
      problem ? light(false, t.server.away) : lights(document),
    );
    const parts = [title];
    if (problem) parts.push(h("p", { className: "note", role: "alert" }, problem.message));
    parts.push(h("div", { className: "charts" }, this.#charts()));
    if (document) parts.push(h("div", { className: "tables" }, routes(document.requests), models(document.triton)));
    if (document && !document.servers?.length) parts.push(h("p", { className: "server-note" }, t.server.inProcess));
    keepFocus(this.root, () => show(this.root, parts));
  }

  #charts() {
    const { samples } = this;
    const values = (name) => samples.map((one) => one?.[name] ?? null);
    const has = (name) => values(name).some((value) => value !== null);
    const words = t.server;
    return [
      has("requests") && chart(words.requests, { series: [values("requests")], unit: words.perSecond, digits: 1 }),
      has("requests") && chart(`${words.latency} ${samples.at(-1)?.route ?? ""}`.trim(), { series: [values("p50"), values("p95"), values("p99")], names: [words.median, words.p95, words.p99], unit: "ms", digits: 1 }),
      chart(words.pending, { series: [values("pending")], digits: 0 }),
      has("batch") && chart(words.batch, { series: [values("batch")], digits: 1 }),
      has("queue") && chart(`${words.queue}, ${words.compute}`, { series: [values("queue"), values("compute")], names: [words.queue, words.compute], unit: "ms", digits: 2 }),
      has("canary") && chart(words.canary, { series: [values("canary")], digits: 5, top: 1, bottom: 0.99, help: words.canaryHelp }),
    ].filter(Boolean);
  }
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

/** Return the figures of one moment; null where the gateway does not know one. */
function sample(document) {
  const routes = foreign(document.requests);
  const models = towers(document.triton);
  const busy = models.filter(({ recent }) => recent?.requests_per_s);
  const weighed = (name) => {
    const all = sum(busy.map(({ recent }) => recent.requests_per_s));
    return models.length ? (all ? sum(busy.map(({ recent }) => recent[name] * recent.requests_per_s)) / all : 0) : null;
  };
  const [name, latency] = slowRoute(routes);
  const canaries = models.map((model) => model.canary_cosine).filter((value) => value !== undefined);
  return {
    requests: document.requests ? sum(routes.map(([, route]) => route.requests_per_s)) : null,
    route: name,
    p50: latency.p50_ms ?? null,
    p95: latency.p95_ms ?? null,
    p99: latency.p99_ms ?? null,
    pending: document.pending_inputs ?? null,
    batch: weighed("mean_batch"),
    queue: weighed("queue_ms"),
    compute: weighed("compute_ms"),
    canary: canaries.length ? Math.min(...canaries) : null,
  };
}

/** The busiest route that computes: quantiles of several do not add up, and pictures come from a cache. */
function slowRoute(routes) {
  const computing = routes.filter(([route]) => !route.includes("/v1/items") && !route.includes("/v1/info"));
  return computing.reduce((best, one) => (one[1].requests > (best[1].requests ?? 0) ? one : best), ["", {}]);
}

const foreign = (requests) => Object.entries(requests?.routes ?? {}).filter(([route]) => !OWN.test(route));
const TOWER = /_(image|text|audio)$/; // the models that compute; others prepare their inputs

function towers(triton) {
  return Object.entries(triton?.models ?? {}).filter(([name]) => TOWER.test(name)).map(([, model]) => model);
}


function lights(document) {
  const { triton } = document;
  if (!triton) return [];
  if (triton.error) return [light(false, triton.error)];
  const reasons = (triton.reasons ?? []).map(String).join(", ");
  return [light(triton.ready, triton.ready ? `Triton ${t.server.ready}` : `Triton ${t.server.notReady}${reasons ? `: ${reasons}` : ""}`)];
}

const light = (isGood, text) => h("span", { className: `light${isGood ? "" : " bad"}`, dir: "auto" }, text);

function chart(title, { series, names = [], unit = "", digits, top, bottom, help }) {
  const now = series.map((values) => values.at(-1) ?? null);
  const figure = (value) => (value === null ? "–" : t.number(value, digits));
  const label = `${title}: ${now.map((value, place) => `${names[place] ?? ""} ${figure(value)} ${unit}`.trim()).join(", ")}; ${t.server.lastMinutes}`;
  return h(
    "article",
    { className: "chart", title: help ?? "" },
    h("h2", {}, title),
    h("p", { className: "now" }, figure(now[0]), unit && now[0] !== null ? h("small", {}, unit) : null),
    h("p", { className: "legend" }, names.map((name, place) => h("span", { className: `s${place}` }, `${name} ${figure(now[place])}`))),
    lineChart({ series, slots: SLOTS, label, top, bottom, format: (value) => t.number(value, value && value < 10 ? 2 : 0) }),
  );
}

function routes(requests) {
  const rows = foreign(requests).sort(([, one], [, other]) => other.requests - one.requests);
  if (!requests) return null;
  const words = t.server;
  return h(
    "section",
    {},
    h("h2", {}, words.routes),
    rows.length
      ? table([words.route, `${words.requests}${words.perSecond}`, `${words.median} ms`, `${words.p95} ms`, `${words.p99} ms`, words.errors],
          rows.map(([route, one]) => [route, t.number(one.requests_per_s, 1), ...["p50_ms", "p95_ms", "p99_ms"].map((name) => t.number(one[name], 1)), t.number(one.errors)]))
      : h("p", { className: "summary" }, words.noRequests),
  );
}

function models(triton) {
  const rows = Object.entries(triton?.models ?? {});
  if (!rows.length) return null;
  const words = t.server;
  const figure = (value, digits) => (value === undefined || value === null ? "–" : t.number(value, digits));
  return h(
    "section",
    {},
    h("h2", {}, words.models),
    table([words.model, `${words.requests}${words.perSecond}`, words.batch, `${words.queue} ms`, `${words.compute} ms`, words.canary, words.errors],
      rows.map(([name, { recent, canary_cosine: canary, failures }]) => [
        name,
        figure(recent?.requests_per_s, 1),
        figure(recent?.mean_batch, 1),
        figure(recent?.queue_ms, 2),
        figure(recent?.compute_ms, 2),
        figure(canary, 5),
        figure(failures, 0),
      ])),
  );
}

function table(heads, rows) {
  return h(
    "div",
    { className: "scroll", tabIndex: 0, dataset: { focus: heads[0] }, role: "group", "aria-label": heads[0] },
    h("table", {}, h("thead", {}, h("tr", {}, heads.map((text) => h("th", { scope: "col" }, text)))), h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell) => h("td", {}, cell)))))),
  );
}
