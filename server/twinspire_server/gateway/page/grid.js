// The grid of hits: layout, pictures as they come into view, and the focus among them.

import * as api from "./api.js";
import { h, icon, iconButton } from "./dom.js";
import { t } from "./i18n.js";
import { aspect, justify } from "./justify.js";
import { nameOf } from "./names.js";

const SIZES = [160, 240, 320, 480, 640, 960, 1280];

/** Return the smallest size of thumbnails that fills so many CSS pixels on this screen. */
export function thumbnailSize(pixels) {
  const wanted = pixels * Math.min(window.devicePixelRatio || 1, 3);
  return SIZES.find((size) => size >= wanted * 0.95) ?? SIZES.at(-1);
}

const scoreOf = (hit) => (hit.score === undefined ? "" : t.number(hit.score, 2));

export class Grid {
  /** `onOpen(hit)`, `onLike(hit)` and `onMinus(hit)` are called for a tile; `addressOf(hit)` is that of its details. */
  constructor(list, { onOpen, onLike, onMinus, addressOf, onImage }) {
    this.list = list;
    this.actions = { onOpen, onLike, onMinus, addressOf };
    this.onImage = onImage ?? (() => {});
    this.hits = [];
    this.tiles = new Map();
    this.boxes = [];
    this.watcher = new IntersectionObserver((entries) => this.#seen(entries), { rootMargin: "600px 0px" });
    new ResizeObserver(() => this.layout()).observe(list);
    list.addEventListener("keydown", (event) => this.#key(event));
    list.addEventListener("focusin", (event) => this.#focused(event.target.closest("li")));
  }

  /** Show these hits in place of others; tiles of hits that stay are kept, with their pictures. */
  replace(hits) {
    const stay = new Set(hits.map((hit) => hit.id));
    for (const [id, tile] of this.tiles) {
      if (stay.has(id)) continue;
      this.watcher.unobserve(tile);
      tile.remove();
      this.tiles.delete(id);
    }
    this.hits = hits;
    this.#build(hits);
  }

  /** Add hits at the end; those that are shown already are left out. */
  append(hits) {
    const more = hits.filter((hit) => !this.tiles.has(hit.id));
    this.hits = [...this.hits, ...more];
    this.#build(more);
  }

  /** Show grey tiles where hits will be. */
  placeholders(count) {
    this.replace([]);
    const ratios = Array.from({ length: count }, (_, place) => [1, 1.5, 0.75, 1.33, 1][place % 5]);
    this.list.append(...ratios.map((ratio) => h("li", { className: "tile placeholder", dataset: { ratio }, "aria-hidden": "true" })));
    this.layout();
  }

  layout() {
    const width = this.list.clientWidth;
    const blank = [...this.list.querySelectorAll(".placeholder")];
    const tiles = blank.length ? blank : this.hits.map((hit) => this.tiles.get(hit.id));
    if (!width || !tiles.length) {
      this.list.style.height = "0";
      return;
    }
    const ratios = blank.length ? blank.map((tile) => Number(tile.dataset.ratio)) : this.hits.map(aspect);
    const isNarrow = width < 600;
    const { boxes, height } = justify(ratios, {
      width,
      target: isNarrow ? 132 : Math.min(300, Math.max(200, width / 6.2)),
      gap: isNarrow ? 4 : 8,
    });
    this.boxes = boxes;
    this.list.style.height = `${Math.ceil(height)}px`;
    for (const [place, tile] of tiles.entries()) {
      const box = boxes[place];
      tile.style.transform = `translate(${box.x}px, ${box.y}px)`;
      tile.style.width = `${box.width}px`;
      tile.style.height = `${box.height}px`;
    }
  }

  /** Focus the tile of an item, if it is shown. */
  focus(id) {
    this.tiles.get(id)?.querySelector("a").focus();
  }

  /** The hit of the tile that has the focus or the pointer. */
  get current() {
    const tile = document.activeElement?.closest?.("#results li") ?? this.list.querySelector("li:hover");
    return tile && this.hits.find((hit) => this.tiles.get(hit.id) === tile);
  }

  #build(hits) {
    for (const old of this.list.querySelectorAll(".placeholder")) old.remove();
    for (const hit of hits) {
      let tile = this.tiles.get(hit.id);
      if (tile) tile.querySelector(".score").textContent = scoreOf(hit);
      else this.tiles.set(hit.id, (tile = this.#tile(hit)));
      this.list.append(tile); // in the order of the hits; moves one that stays
    }
    for (const hit of hits) this.watcher.observe(this.tiles.get(hit.id));
    if (this.hits.length && !this.list.querySelector("a[tabindex='0']")) this.#focused(this.tiles.get(this.hits[0].id));
    this.layout();
  }

  #tile(hit) {
    const name = nameOf(hit);
    const { onLike, onMinus, addressOf } = this.actions;
    const link = h(
      "a",
      {
        href: addressOf(hit),
        tabIndex: -1,
        "aria-label": t.details(name),
        onclick: (event) => {
          if (event.metaKey || event.ctrlKey || event.shiftKey || event.button) return;
          event.preventDefault();
          this.actions.onOpen(hit);
        },
      },
      ...this.#content(hit, name),
      h("span", { className: "label" }, h("span", { className: "name", dir: "auto" }, name), h("span", { className: "score" }, scoreOf(hit))),
    );
    const buttons = h(
      "div",
      { className: "quick" },
      iconButton("like", t.like, () => onLike(hit), { tabIndex: -1 }),
      iconButton("minus", t.minus, () => onMinus(hit), { tabIndex: -1 }),
    );
    const tile = h("li", { className: `tile ${hit.kind}` }, link, buttons);
    tile.hit = hit;
    return tile;
  }

  #content(hit, name) {
    if (hit.kind === "image") return [h("img", { alt: name, decoding: "async", draggable: false })];
    const words = hit.caption || hit.uri;
    return [h("span", { className: "card", dir: "auto" }, hit.kind === "audio" ? icon("sound") : null, words)];
  }

  async #seen(entries) {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      this.watcher.unobserve(target);
      const image = target.querySelector("img");
      if (image && !image.src) this.#load(image, target);
    }
  }

  async #load(image, tile) {
    const started = performance.now();
    try {
      const { width, height } = tile.getBoundingClientRect();
      await api.loadImage(image, tile.hit.id, thumbnailSize(Math.max(width, height)));
      // A picture from the cache stands at once; others fade in.
      if (performance.now() - started < 60) tile.classList.add("at-once");
      tile.classList.add("loaded");
    } catch {
      tile.classList.add("missing");
      image.replaceWith(h("span", { className: "card gone" }, t.pictureGone));
    }
    this.onImage();
  }

  #focused(tile) {
    if (!tile) return;
    for (const link of this.list.querySelectorAll("a[tabindex='0']")) link.tabIndex = -1;
    tile.querySelector("a").tabIndex = 0;
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const place = this.hits.findIndex((hit) => this.tiles.get(hit.id) === event.target.closest("li"));
    if (place < 0) return;
    const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: this.hits.length - 1 }[event.key] ?? this.#vertical(place, event.key);
    if (to === undefined) return;
    event.preventDefault();
    const hit = this.hits[Math.min(this.hits.length - 1, Math.max(0, to))];
    this.focus(hit.id);
    this.tiles.get(hit.id).scrollIntoView({ block: "nearest" });
  }

  #vertical(place, key) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[key];
    if (!step) return undefined;
    const from = this.boxes[place];
    const middle = from.x + from.width / 2;
    const row = this.boxes.map((box, index) => ({ ...box, index })).filter((box) => box.row === from.row + step);
    if (!row.length) return place;
    const distance = (box) => Math.abs(box.x + box.width / 2 - middle);
    return row.reduce((best, box) => (distance(box) < distance(best) ? box : best)).index;
  }
}
