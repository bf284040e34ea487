// The details of an item: what it is, why or why not for this user, what is similar and in what.

import { call, path, show } from "../lib/api.js";
import { $, button, make, toast } from "../lib/dom.js";
import { face, name } from "../lib/faces.js";
import { icon } from "../lib/icons.js";
import { t } from "../lib/strings.js";
import { reactionButtons } from "./reactions.js";
import { query, state } from "./state.js";
import { price, similarity, texts } from "./texts.js";

let newest = 0;

export async function openDrawer(item, where = {}) {
  const request = ++newest;
  const drawer = $("drawer");
  const body = make("div", "details");
  drawer.replaceChildren(head(item), body);
  drawer.dataset.item = item.item_id;
  if (!drawer.open) drawer.showModal();
  drawer.scrollTop = 0;
  try {
    const [[full], [similar], why] = await Promise.all([
      call(path("items", item.item_id)),
      call(`${path("items", item.item_id, "similar")}?limit=8`).catch(() => [{ items: [] }]), // not embedded yet
      item.why ? [item.why] : whyNot(item),
    ]);
    if (request === newest) body.append(...parts({ ...item, ...full }, where, similar, why[0]));
  } catch (error) {
    toast(error.message);
  }
}

const whyNot = (item) =>
  call(`${path("users", state.user, "why-not")}?${query({ item_id: item.item_id, placement: state.placement, limit: Math.min(100, Math.max(1, state.shown)) })}`)
    .catch((error) => [{ detail: error.message }]);

function head(item) {
  const line = make("div", "head");
  const title = make("h2", "", name(item));
  title.id = "drawer-title";
  const close = button("quiet round", "", () => $("drawer").close());
  close.setAttribute("aria-label", t("drawer.close"));
  close.append(icon("close"));
  line.append(title, close);
  return line;
}

function parts(item, where, similar, why) {
  const top = make("div", "top");
  const facts = make("div", "facts");
  if (price(item)) facts.append(make("p", "price", price(item)));
  if (item.categories.length) facts.append(make("p", "kinds", item.categories.join(" · ")));
  if (!item.available) facts.append(make("p", "chips warn-line", t("drawer.hidden")));
  const reactions = make("div", "reactions wide");
  reactions.append(...reactionButtons(item, where, true));
  facts.append(reactions);
  top.append(face(item), facts);
  const found = [top, ...players(item)];
  if (item.fields.description) found.push(make("p", "description", item.fields.description));
  found.push(reasons(why));
  if (similar.items.length) found.push(alike(similar));
  found.push(fields(item));
  return found;
}

function players(item) {
  return ["audio", "video"].filter((kind) => item[kind]).map((kind) => {
    const player = make(kind);
    player.controls = true;
    player.preload = "metadata";
    player.setAttribute("aria-label", t(`drawer.${kind}`, { item: name(item) }));
    show(player, item[kind]).catch(() => player.replaceWith(make("p", "hint", t("drawer.notLoaded"))));
    return player;
  });
}

function block(title, ...content) {
  const section = make("section");
  section.append(make("h3", "", title), ...content);
  return section;
}

// why: of a shown item, or the stage at which the item leaves the way into the list.
function reasons(why) {
  if (!why.sentence) return block(t("drawer.whyNot", { user: state.user }), make("p", "reason", why.detail));
  const content = [make("p", "reason", why.sentence)];
  const most = Math.max(...why.features.map((feature) => Math.abs(feature.contribution)));
  if (why.features.length) {
    const bars = make("ul", "bars");
    for (const { name: feature, contribution } of why.features) {
      const bar = make("li");
      const meter = make("meter");
      Object.assign(meter, { min: 0, max: most, value: Math.abs(contribution) });
      meter.setAttribute("aria-label", feature);
      bar.append(make("span", "", feature), meter, make("span", "", contribution.toFixed(2)));
      bars.append(bar);
    }
    content.push(make("p", "kinds", t("drawer.features")), bars);
  }
  return block(t("drawer.why", { user: state.user }), ...content);
}

function alike(similar) {
  const list = make("ul", "rows");
  list.id = "alike";
  for (const item of similar.items) {
    const row = make("li");
    row.dataset.item = item.item_id;
    const hit = button("hit", "", () => openDrawer(item, { request_id: similar.request_id, position: item.position }));
    const text = texts(item);
    text.append(similarity(item.near));
    hit.append(face(item), text);
    row.append(hit);
    list.append(row);
  }
  return block(t("drawer.similar"), list);
}

function fields(item) {
  const table = make("table");
  const shown = (value) => (Array.isArray(value) ? value.join(", ") : String(value));
  for (const [field, value] of Object.entries({ item_id: item.item_id, ...item.fields, status: item.status })) {
    if (value === null || field === "description") continue;
    const row = make("tr");
    const heading = make("th", "", field);
    heading.scope = "row";
    row.append(heading, make("td", "", shown(value)));
    table.append(row);
  }
  const details = make("details");
  details.append(make("summary", "", t("drawer.fields")), table);
  return details;
}
