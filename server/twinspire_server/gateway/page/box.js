// The search box: words, and the other parts of the query as chips with a sign and a weight.

import * as api from "./api.js";
import { $, h, hasOpenPopover, icon, iconButton, keepFocus, show } from "./dom.js";
import { place } from "./filters.js";
import { t } from "./i18n.js";
import * as pictures from "./pictures.js";
import { splitWords } from "./state.js";

const TYPING_MS = 250;

export class SearchBox {
  /** `onWords(text, isFinal)`, `onParts(parts, text)` and `onProblem(message)` are called with what the user entered. */
  constructor({ onWords, onParts, onProblem }) {
    Object.assign(this, { onWords, onParts, onProblem, parts: [] });
    this.input = $("words");
    this.input.placeholder = matchMedia("(max-width: 640px)").matches ? t.placeholderShort : t.placeholder;
    this.input.setAttribute("aria-label", t.searchLabel);
    setButton($("clear"), "close", t.clear, () => this.clear());
    setButton($("pick"), "image", t.pick, () => $("file").click());
    $("file").addEventListener("change", (event) => {
      this.addFiles([...event.target.files]);
      event.target.value = "";
    });
    $("search").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.input.addEventListener("input", (event) => !event.isComposing && this.#typed());
    this.input.addEventListener("compositionend", () => this.#typed());
    this.input.addEventListener("keydown", (event) => this.#key(event));
    this.#listenForPictures();
  }

  /** Show the words and parts of a state. */
  show({ text, parts }) {
    clearTimeout(this.timer);
    // Words after a minus stay in the box until Enter makes them chips.
    if (![this.input.value.trim(), splitWords(this.input.value).text].includes(text.trim())) this.input.value = text;
    this.parts = parts;
    // While a weight is being set its chip stays.
    if (!hasOpenPopover($("parts"))) keepFocus($("parts"), () => show($("parts"), parts.map((part, place) => this.#chip(part, place))));
    $("parts").hidden = !parts.length;
    $("clear").hidden = !text && !parts.length;
    if (parts.length) this.input.placeholder = t.placeholderMore;
  }

  clear() {
    this.input.value = "";
    this.onParts([], "");
    this.input.focus();
  }

  /** Search by these files, together with what is in the box. */
  async addFiles(files) {
    const images = files.filter((file) => file.type.startsWith("image/") || /\.(heic|heif|jpe?g|png|webp|gif|bmp|tiff?)$/i.test(file.name));
    if (!images.length) return this.onProblem(t.pictureUnreadable);
    try {
      const names = await Promise.all(images.map((file) => pictures.keep(file)));
      this.onParts([...this.parts, ...names.map((value) => ({ weight: 1, kind: "upload", value }))], this.input.value);
    } catch {
      this.onProblem(t.pictureUnreadable);
    }
  }

  #typed() {
    $("clear").hidden = !this.input.value && !this.parts.length;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.onWords(splitWords(this.input.value).text, false), TYPING_MS);
  }

  #submit() {
    clearTimeout(this.timer);
    const { text, parts } = splitWords(this.input.value);
    if (parts.length) {
      this.input.value = text;
      this.onParts([...this.parts, ...parts], text);
    } else this.onWords(this.input.value, true);
  }

  #key(event) {
    if (event.key === "Backspace" && !this.input.value && this.parts.length) this.onParts(this.parts.slice(0, -1), "");
  }

  #chip(part, place) {
    const name = { text: part.value, item: t.partItem(part.value), upload: t.partPicture }[part.kind];
    const isMinus = part.weight < 0;
    const change = (parts) => this.onParts(parts, this.input.value);
    return h(
      "li",
      { className: `part${isMinus ? " minus" : ""}` },
      this.#weightButton(part, name, `part ${place}`, (weight) => change(this.parts.map((one, at) => (at === place ? { ...one, weight } : one)))),
      iconButton("close", t.remove(name), () => change(this.parts.filter((_, at) => at !== place))),
    );
  }

  #weightButton(part, name, focus, onWeight) {
    const popover = h("div", { className: "popover weight", popover: "auto", role: "dialog", "aria-label": t.weightOf(name) });
    const sign = part.weight < 0 ? "−" : "+";
    const size = Math.abs(part.weight);
    const button = h(
      "button",
      { type: "button", className: "part-name", title: t.weightOf(name), dataset: { focus }, "aria-haspopup": "dialog" },
      h("span", { className: "sign" }, sign),
      this.#picture(part),
      part.kind === "text" ? h("span", { dir: "auto" }, part.value) : h("span", { className: "hidden-text" }, name),
      size === 1 ? null : h("span", { className: "times" }, `×${t.number(size, size < 1 ? 1 : 0)}`),
    );
    button.popoverTargetElement = popover;
    popover.addEventListener("toggle", (event) => {
      if (event.newState === "open") place(popover, button);
      else this.onParts(this.parts, this.input.value);
    });
    const field = h("input", { type: "range", min: "-2", max: "2", step: "0.1", value: String(part.weight), "aria-label": t.weightOf(name) });
    const figure = h("output", {}, t.number(part.weight, 1));
    field.addEventListener("input", () => (figure.textContent = t.number(Number(field.value), 1)));
    field.addEventListener("change", () => Number(field.value) && onWeight(Number(field.value)));
    popover.append(h("label", {}, h("span", {}, t.weight), field, figure));
    return [button, popover];
  }

  #picture({ kind, value }) {
    if (kind === "text") return null;
    const image = h("img", { alt: "" });
    if (kind === "upload") image.src = pictures.address(value) ?? "";
    else api.loadImage(image, value, 160).catch(() => image.replaceWith(icon("image")));
    return image;
  }

  #listenForPictures() {
    const files = (transfer) => [...(transfer?.files ?? [])];
    document.addEventListener("paste", (event) => {
      const pasted = files(event.clipboardData);
      if (!pasted.length) return;
      event.preventDefault();
      this.addFiles(pasted);
    });
    const drop = $("drop");
    const isFile = (event) => event.dataTransfer?.types.includes("Files");
    document.addEventListener("dragover", (event) => {
      if (!isFile(event)) return;
      event.preventDefault();
      drop.hidden = false;
    });
    document.addEventListener("dragleave", (event) => event.relatedTarget === null && (drop.hidden = true));
    document.addEventListener("drop", (event) => {
      drop.hidden = true;
      if (!isFile(event)) return;
      event.preventDefault();
      this.addFiles(files(event.dataTransfer));
    });
  }
}

function setButton(button, name, label, onclick) {
  button.title = label;
  button.setAttribute("aria-label", label);
  button.addEventListener("click", onclick);
  show(button, icon(name));
}
