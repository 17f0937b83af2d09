// The details of an item: its picture, what its score is made of, caption and metadata.

import * as api from "./api.js";
import { $, h, iconButton, icon, show } from "./dom.js";
import { thumbnailSize } from "./grid.js";
import { t } from "./i18n.js";
import { nameOf } from "./names.js";

const LARGE = 1600;
const WITH_RANKS = /_rank$/;
const UNINTERESTING = new Set(["name", "folder", "inode", "fused_captions", "overridden"]); // or told by the location
const LARGEST_SCALE = 2.5; // small pictures are not blown up further

export class Details {
  /** `actions`: onClose, onStep(-1 or 1), onLike, onPlus, onMinus, onFilter(key, value) and hasStep(step). */
  constructor(actions) {
    this.dialog = $("details");
    this.actions = actions;
    this.hit = null;
    this.dialog.addEventListener("close", () => this.actions.onClose());
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.dialog.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step && !event.ctrlKey && !event.metaKey && !event.altKey && event.target.tagName !== "INPUT") {
        event.preventDefault();
        this.actions.onStep(step);
      }
    });
    let startX = null;
    this.dialog.addEventListener("touchstart", (event) => (startX = event.touches.length === 1 ? event.touches[0].clientX : null), { passive: true });
    this.dialog.addEventListener("touchend", (event) => {
      const moved = startX === null ? 0 : event.changedTouches[0].clientX - startX;
      if (Math.abs(moved) > 70 && event.target.closest(".stage")) this.actions.onStep(moved < 0 ? 1 : -1);
    });
  }

  get isOpen() {
    return this.dialog.open;
  }

  /** Show a hit, or an item that no search found; `best` are the largest score parts among the hits. */
  open(hit, best = {}) {
    this.hit = hit;
    const name = nameOf(hit);
    this.dialog.setAttribute("aria-label", t.details(name));
    show(this.dialog, this.#stage(hit, name), this.#panel(hit, name, best));
    if (!this.dialog.open) this.dialog.showModal();
    this.dialog.querySelector(".panel").scrollTop = 0;
    this.dialog.querySelector("h2").focus({ preventScroll: true });
  }

  /** Enable the buttons to the previous and next hit, where there are some. */
  showSteps() {
    for (const button of this.dialog.querySelectorAll(".step")) button.disabled = !this.actions.hasStep(Number(button.dataset.step));
  }

  close() {
    if (this.dialog.open) this.dialog.close();
  }

  #stage(hit, name) {
    const { onStep, hasStep } = this.actions;
    const stage = h("div", { className: `stage ${hit.kind}` });
    if (hit.kind === "image") {
      const { width, height } = hit.metadata ?? {};
      const image = h("img", { alt: name, className: "large" });
      if (width && height) Object.assign(image.style, { maxWidth: `${LARGEST_SCALE * width}px`, maxHeight: `${LARGEST_SCALE * height}px` });
      stage.append(image);
      this.#load(image, hit);
    } else {
      stage.append(h("div", { className: "words", dir: "auto", tabIndex: 0 }, hit.kind === "audio" ? icon("sound") : null, hit.caption || hit.uri));
    }
    for (const [step, side] of [[-1, "previous"], [1, "next"]]) {
      stage.append(iconButton(side, t[side], () => onStep(step), { className: `plain step ${side}`, dataset: { step }, disabled: !hasStep(step) }));
    }
    return stage;
  }

  async #load(image, hit) {
    try {
      // The thumbnail of the grid is here already; the large picture takes its place when it is.
      await api.loadImage(image, hit.id, thumbnailSize(320)).catch(() => null);
      const large = h("img", { alt: image.alt, className: "large" });
      await api.loadImage(large, hit.id, LARGE);
      if (this.hit === hit) {
        large.style.maxWidth = `${LARGEST_SCALE * large.naturalWidth}px`;
        large.style.maxHeight = `${LARGEST_SCALE * large.naturalHeight}px`;
        image.replaceWith(large);
      }
    } catch {
      image.replaceWith(h("p", { className: "words" }, t.pictureGone));
    }
  }

  #panel(hit, name, best) {
    const { onLike, onPlus, onMinus } = this.actions;
    return h(
      "div",
      { className: "panel" },
      h(
        "div",
        { className: "panel-top" },
        h("h2", { tabIndex: -1, dir: "auto" }, name),
        iconButton("close", t.close, () => this.dialog.close()),
      ),
      h(
        "div",
        { className: "actions" },
        h("button", { type: "button", className: "primary", onclick: () => onLike(hit) }, icon("like"), t.like),
        h("button", { type: "button", onclick: () => onPlus(hit) }, icon("plus"), t.plus),
        h("button", { type: "button", onclick: () => onMinus(hit) }, icon("minus"), t.minus),
        copyButton(),
      ),
      hit.caption && hit.caption !== name ? section(t.caption, h("p", { className: "caption", dir: "auto" }, hit.caption)) : null,
      hit.parts ? section(t.score, scoreParts(hit, best)) : null,
      section(t.metadata, this.#metadata(hit)),
    );
  }

  #metadata(hit) {
    const { width, height, format, bytes, modified, ...others } = hit.metadata ?? {};
    const rows = Object.entries(others).filter(([key]) => !UNINTERESTING.has(key)).map(([key, value]) => [key, this.#values(key, value)]);
    const size = width && height ? `${t.number(width)} × ${t.number(height)}` : null;
    const file = [size, format, bytes ? t.bytes(bytes) : null].filter(Boolean).join(" · ");
    if (file) rows.push([t.file, file]);
    if (modified) rows.push([t.modified, Number.isNaN(Date.parse(modified)) ? String(modified) : t.date(Date.parse(modified) / 1000)]);
    if (hit.added_at) rows.push([t.added, t.date(hit.added_at)]);
    rows.push([t.location, h("span", { className: "uri", dir: "ltr" }, hit.uri)]);
    return h("dl", { className: "metadata" }, rows.map(([key, content]) => [h("dt", { dir: "auto" }, key), h("dd", {}, content)]));
  }

  #values(key, value) {
    const list = Array.isArray(value) ? value : [value];
    if (!list.length || list.some((one) => one === null || typeof one === "object")) {
      return [h("span", { className: "uri", dir: "auto" }, JSON.stringify(value))];
    }
    return list.map((one) => {
      const text = typeof one === "boolean" ? t[one ? "yes" : "no"] : String(one);
      const props = { type: "button", className: "value", dir: "auto", title: t.filterBy(key, text), "aria-label": t.filterBy(key, text) };
      return h("button", { ...props, onclick: () => this.actions.onFilter(key, one, Array.isArray(value)) }, text);
    });
  }
}

const section = (title, content) => h("section", {}, h("h3", {}, title), content);

function copyButton() {
  const label = h("span", { role: "status" }, t.copy);
  const copy = async () => {
    await copyText(location.href);
    label.textContent = t.copied;
    setTimeout(() => (label.textContent = t.copy), 2000);
  };
  return h("button", { type: "button", onclick: copy }, icon("link"), label);
}

async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Without TLS, and not on this machine, a browser has no clipboard.
  const field = h("textarea", { value: text, className: "hidden-text" });
  $("details").append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}

function scoreParts(hit, best) {
  // In a search of one kind the score is that of its one part.
  const isPart = Object.values(hit.parts).some((value) => Math.abs(value - hit.score) < 1e-9);
  const bars = isPart ? [] : [[t.score, hit.score, Math.abs(hit.score) / Math.max(1, best.score ?? 0), "score"]];
  const ranks = [];
  for (const [name, value] of Object.entries(hit.parts)) {
    const label = t.part[name] ?? name;
    if (WITH_RANKS.test(name)) ranks.push(`${label} ${t.number(value)}`);
    else if (name === "pinned") ranks.push(label);
    else bars.push([label, value, Math.abs(value) / (name === "keyword" ? Math.max(value, best[name] ?? 0) : 1), value < 0 ? "negative" : name]);
  }
  if (hit.probability !== null && hit.probability !== undefined) bars.push([t.probability, hit.probability, hit.probability, "probability"]);
  return [
    h(
      "ul",
      { className: "score-parts" },
      bars.map(([label, value, share, kind]) =>
        h(
          "li",
          {},
          h("span", { className: "part" }, label),
          h("span", { className: "bar" }, h("span", { className: `fill ${kind}`, style: { width: `${Math.min(100, 100 * share)}%` } })),
          h("span", { className: "figure" }, kind === "probability" ? `${t.number(100 * value, value < 0.1 ? 1 : 0)} %` : t.number(value, 3)),
        ),
      ),
    ),
    ranks.length ? h("p", { className: "ranks" }, ranks.join(" · ")) : null,
  ];
}
