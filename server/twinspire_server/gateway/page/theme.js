// Dark and light: as the system, or as chosen here.

import { icon, show } from "./dom.js";
import { t } from "./i18n.js";

const KEPT = "twinspire.theme";
const THEMES = ["auto", "light", "dark"];
const ICONS = { auto: "auto", light: "sun", dark: "moon" };

export function setUpTheme(button) {
  apply(button, localStorage.getItem(KEPT));
  button.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? "auto";
    const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
    localStorage.setItem(KEPT, next);
    apply(button, next);
  });
}

function apply(button, wanted) {
  const theme = THEMES.includes(wanted) ? wanted : "auto";
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  button.title = t.theme[theme];
  button.setAttribute("aria-label", t.theme[theme]);
  show(button, icon(ICONS[theme]));
}
