// Two variants of the running experiments side by side, for one user. Nothing counts as shown.

import { send } from "../lib/api.js";
import { $, make, toast } from "../lib/dom.js";
import { t } from "../lib/strings.js";
import { face } from "../lib/faces.js";
import { state } from "./state.js";
import { form, texts } from "./texts.js";

const LENGTH = 12;
let newest = 0;

export function offerCompare(experiments) {
  const variants = experiments.flatMap(({ name, variants: found }) => Object.keys(found).map((variant) => `${name}:${variant}`));
  $("compare").hidden = !variants.length;
  if (!variants.length) return;
  $("sides").replaceChildren(...["left", "right"].map((side, at) => {
    const list = make("select");
    list.setAttribute("aria-label", t(`compare.${side}`));
    list.append(...variants.map((variant) => make("option", "", variant)));
    list.selectedIndex = at;
    list.addEventListener("change", compare);
    return list;
  }));
}

export async function compare() {
  if ($("compare").hidden) return;
  const request = ++newest;
  const wanted = [...$("sides").querySelectorAll("select")].map((list) => list.value);
  try {
    const slates = await Promise.all(wanted.map((variant) => send("POST", "/v1/preview", {
      user_id: state.user, placement: state.placement, limit: LENGTH, variant,
    })));
    if (request !== newest) return;
    const places = slates.map(([slate]) => new Map(slate.items.map((item) => [item.item_id, item.position])));
    $("columns").replaceChildren(...slates.map(([slate], side) => column(slate, places[1 - side])));
  } catch (error) {
    if (request === newest) $("columns").replaceChildren(make("p", "hint", error.message));
  }
}

// The list of one side. others: place of each item on the other side.
function column(slate, others) {
  const list = make("ol", "rows");
  form(list, slate.items);
  for (const item of slate.items) {
    const row = make("li");
    row.dataset.item = item.item_id;
    const other = others.get(item.item_id);
    const moved = other === undefined ? t("compare.only") : other === item.position ? "" : t("compare.place", { place: other });
    row.append(make("span", "place", `${item.position}`), face(item), texts(item, moved));
    list.append(row);
  }
  return list;
}
