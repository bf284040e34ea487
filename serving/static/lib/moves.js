// Replace the cards of a list so that one sees what changed: those that stay move, new ones appear.

import { calm } from "./dom.js";

// cards: elements with data-item. Returns how many are new; 0 for a list that was empty.
export function replaceCards(list, cards) {
  const before = new Map([...list.children].filter((card) => card.dataset.item).map((card) => [card.dataset.item, card.getBoundingClientRect()]));
  list.replaceChildren(...cards);
  if (!before.size) return 0;
  const fresh = cards.filter((card) => card.dataset.item && !before.has(card.dataset.item));
  for (const card of fresh) card.classList.add("fresh");
  if (calm()) return fresh.length;
  const timing = { duration: 420, easing: "cubic-bezier(.2, .7, .2, 1)" };
  for (const card of cards) {
    const old = before.get(card.dataset.item);
    const now = card.getBoundingClientRect();
    if (old) card.animate([{ transform: `translate(${old.x - now.x}px, ${old.y - now.y}px)` }, { transform: "none" }], timing);
    else card.animate([{ opacity: 0, transform: "scale(.9)" }, { opacity: 1, transform: "none" }], timing);
  }
  return fresh.length;
}
