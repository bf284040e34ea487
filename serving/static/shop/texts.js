// The words of an item.

import { make } from "../lib/dom.js";
import { name } from "../lib/faces.js";
import { has, t } from "../lib/strings.js";

const amount = new Intl.NumberFormat(undefined, { minimumFractionDigits: 2, maximumFractionDigits: 2 });
export const price = (item) => (item.price === null ? "" : amount.format(item.price));

export function texts(item, below) {
  const text = make("div", "text");
  text.append(make("div", "title", name(item)));
  if (below) text.append(make("div", "kinds", below));
  return text;
}

// What is similar and how much, the most similar first, at most `count` of the channels.
export function similarity(near, count) {
  const known = Object.entries(near).filter(([, cosine]) => cosine > 0).sort((a, b) => b[1] - a[1]);
  const labels = known.map(([channel, cosine]) => `${has(`channel.${channel}`) ? t(`channel.${channel}`) : channel} ${cosine.toFixed(2)}`);
  const chips = make("p", "chips");
  chips.append(...labels.slice(0, count).map((label) => make("span", "", label)));
  chips.title = t("card.similarity", { channels: labels.join(", ") });
  return chips;
}

// Whether any item of a list has a picture decides the form of its cards.
export const form = (list, items) => list.classList.toggle("plain", !items.some((item) => item.image));

export const empty = (text) => make("li", "empty", text);
