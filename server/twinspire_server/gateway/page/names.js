// How an item is called: by its caption, in the page's language where it has several, or by its file.

import { language } from "./i18n.js";

const HAN = /\p{Script=Han}/u;
const isOwn = (text) => HAN.test(text) === (language === "zh");

export function nameOf(item) {
  const lines = item.caption?.split("\n").filter((line) => line.trim()) ?? [];
  return (lines.find(isOwn) ?? lines[0] ?? item.uri.split("/").at(-1)) || item.uri;
}

/** Return up to `count` of the texts, those in the page's language first. */
export const ownFirst = (texts, count) => [...texts.filter(isOwn), ...texts.filter((text) => !isOwn(text))].slice(0, count);
