// Cards of items.

import { make } from "../lib/dom.js";
import { face } from "../lib/faces.js";
import { openDrawer } from "./drawer.js";
import { reactionButtons } from "./reactions.js";
import { price, similarity, texts } from "./texts.js";

// A card of a list that was shown as requestId.
export function card(item, requestId) {
  const entry = make("li", "card");
  entry.dataset.item = item.item_id;
  const where = { request_id: requestId, position: item.position };
  const hit = make("button", "hit");
  hit.type = "button";
  const text = texts(item, [price(item), ...item.categories].filter(Boolean).join(" · "));
  if (item.near) text.append(similarity(item.near, 1));
  if (item.why) text.append(make("p", "why", item.why.sentence));
  hit.append(face(item), text);
  hit.addEventListener("click", () => openDrawer(item, where));
  const foot = make("div", "foot");
  const buttons = make("div", "reactions");
  buttons.append(...reactionButtons(item, where, false));
  foot.append(make("span", "", `#${item.position}`), buttons);
  entry.append(hit, foot);
  return entry;
}
