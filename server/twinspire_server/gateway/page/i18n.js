// The language of the page: that of the browser, or the one chosen here.

import en from "./en.js";
import zh from "./zh.js";

const LANGUAGES = { en, zh };
const KEPT = "twinspire.language";

const wanted = localStorage.getItem(KEPT) ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
export const language = wanted in LANGUAGES ? wanted : "en";
/** The strings of the page's language. */
export const t = LANGUAGES[language];

/** Show the page in the other language; what is searched for stays, it is in the address. */
export function switchLanguage() {
  localStorage.setItem(KEPT, language === "en" ? "zh" : "en");
  location.reload();
}

/** Put the strings into the elements that name one in `data-t`. */
export function translate(root = document) {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t[element.dataset.t];
}
