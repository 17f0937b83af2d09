// Keys that work anywhere on the page, and the list of them.

import { $, h, iconButton, show } from "./dom.js";
import { t } from "./i18n.js";

export function listenForKeys({ box, grid, details, like, minus, helpButton }) {
  helpButton.title = t.help;
  helpButton.setAttribute("aria-label", t.help);
  helpButton.addEventListener("click", help);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const isField = event.target.matches?.("input:not([type=radio], [type=checkbox], [type=range]), textarea, select");
    if (isField) {
      if (event.key === "Escape" && event.target === box.input) {
        event.preventDefault(); // which would empty the field
        box.input.blur();
      } else if (event.key === "ArrowDown" && event.target === box.input && grid.hits.length) {
        event.preventDefault();
        grid.focus(grid.hits[0].id);
      }
      return;
    }
    const hit = details.isOpen ? details.hit : grid.current;
    const action = {
      "/": () => !details.isOpen && focusBox(box),
      "?": help,
      m: () => hit && like(hit),
      "-": () => hit && minus(hit),
    }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
}

function focusBox(box) {
  box.input.focus();
  box.input.select();
}

function help() {
  const dialog = $("keys");
  if (dialog.open) return dialog.close();
  const { title, tips, ...keys } = t.keys;
  const row = ([key, text]) => h("div", {}, h("dt", {}, ...key.split(" ").length > 3 ? key.split(" ").map((one) => h("kbd", {}, one)) : [h("kbd", {}, key)]), h("dd", {}, text));
  const all = Object.entries(keys);
  const isTip = ([key]) => key.length > 4 && key !== "Enter" && !key.startsWith("←");
  show(
    dialog,
    h("div", { className: "panel-top" }, h("h2", {}, title), iconButton("close", t.close, () => dialog.close())),
    h("dl", { className: "keys" }, all.filter((one) => !isTip(one)).map(row)),
    h("h3", {}, tips),
    h("dl", { className: "keys" }, all.filter(isTip).map(row)),
  );
  dialog.setAttribute("aria-label", title);
  dialog.onclick = (event) => event.target === dialog && dialog.close();
  dialog.showModal();
  return undefined;
}
