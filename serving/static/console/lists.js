// Lists for a user that are made to be looked at: nothing of them is logged or counted.

import { send } from "../lib/api.js";
import { make } from "../lib/dom.js";
import { face, name } from "../lib/faces.js";
import { t } from "../lib/strings.js";
import { hint } from "./parts.js";

const LENGTH = 12;

// {user_id, placement, variant, rules} -> the answer of /v1/preview.
export async function preview(asked) {
  const given = Object.fromEntries(Object.entries(asked).filter(([, value]) => value !== "" && value !== null));
  const [slate] = await send("POST", "/v1/preview", { limit: LENGTH, explain: true, ...given });
  return slate;
}

// A list with reasons. others: of the list beside it, whose other places are said.
export function slateList(heading, slate, others) {
  const box = make("div", "slate");
  const said = [t(slate.source === "popular" ? "lists.popular" : "lists.model"), ...(slate.degraded.length ? [t("lists.degraded", { parts: slate.degraded.join(", ") })] : [])];
  const list = make("ol", "rows");
  list.append(...slate.items.map((item) => {
    const row = make("li");
    row.dataset.item = item.item_id;
    const text = make("div", "text");
    text.append(make("div", "title", name(item)), make("div", "kinds", [item.item_id, item.why?.sentence].filter(Boolean).join(" · ")));
    row.append(make("span", "place", `${item.position}`), face(item), text);
    if (others) row.append(moved(item, others));
    return row;
  }));
  if (!slate.items.length) list.append(make("li", "empty", t("lists.empty")));
  box.append(make("h3", "", heading), hint(said.join(" · ")), list);
  return box;
}

function moved(item, others) {
  const other = others.items.find((one) => one.item_id === item.item_id);
  if (!other) return make("span", "chip on", t("lists.new"));
  return make("span", other.position === item.position ? "unseen" : "chip", other.position === item.position ? t("lists.same") : t("lists.was", { place: other.position }));
}
