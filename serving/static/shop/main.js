// The shop: one user, what is recommended to them and why, and what they did.

import { call, path, start } from "../lib/api.js";
import { $, button, make, toast } from "../lib/dom.js";
import { face } from "../lib/faces.js";
import { header } from "../lib/header.js";
import { replaceCards } from "../lib/moves.js";
import { all, has, t } from "../lib/strings.js";
import { card } from "./cards.js";
import { compare, offerCompare } from "./compare.js";
import { openDrawer } from "./drawer.js";
import { offerFilters } from "./filters.js";
import { meaning, postedId, undo } from "./reactions.js";
import { ask, isSearching, offerSearch, offerTaste } from "./search.js";
import { query, shop, state } from "./state.js";
import { empty, form, texts } from "./texts.js";

const PAGE = 24;
let newest = 0;
let shown = { items: [], cursor: null };

const recommendations = (limit, cursor) => call(`${path("users", state.user, "recommendations")}?${query({
  limit, placement: state.placement, explain: true, cursor, filter: state.filter && JSON.stringify(state.filter),
})}`);

// Of what failed, the first that there is a sentence for; the history itself is not lost.
const HINTS = ["deadline", "last_known", "store", "stale", "recommender"];

function hint(slate) {
  const failed = HINTS.find((reason) => slate.degraded.includes(reason));
  if (failed) return t(`hint.${failed}`);
  return t(slate.source === "popular" ? "hint.cold" : "hint.choose");
}

function showState(slate, millis) {
  const chips = slate.degraded.map((reason) =>
    make("span", "warn", t("state.degraded", { reason: has(`degraded.${reason}`) ? t(`degraded.${reason}`) : reason })));
  chips.push(make("span", slate.source, t(`state.${slate.source}`)));
  const time = make("span", "", t("state.millis", { millis: millis.toFixed(millis < 10 ? 1 : 0) }));
  time.title = Object.entries(slate.trace).map(([stage, ms]) => `${stage} ${ms} ms`).join("\n");
  const bundle = make("span", "", t("state.bundle", { bundle: slate.bundle.slice(0, 8) }));
  bundle.title = slate.bundle;
  chips.push(time, bundle);
  if (slate.variant !== "default") chips.push(make("span", "", slate.variant));
  $("state").replaceChildren(...chips);
}

function showUser(user) {
  state.positives = user.positives || 0;
  offerTaste();
  const likes = user.likes && user.likes.length ? t("who.likes", { categories: all(user.likes) }) : "";
  const events = user.events === null ? t("who.unknown") : t("who.events", { count: user.events });
  $("who").textContent = [likes, events].filter(Boolean).join(", ");
}

function showPast(past) {
  $("count").textContent = past.total ? t("history.count", { count: past.total }) : "";
  const events = past.events.map((item) => {
    const entry = make("li", "card");
    entry.dataset.item = item.item_id;
    entry.append(face(item), texts(item, `${meaning(item)} · ${new Date(item.timestamp).toLocaleDateString()}`));
    if (postedId(item)) {
      const back = button("quiet", t("react.undo"), () => undo(item));
      back.setAttribute("aria-label", t("react.undoLabel", { item: item.title || item.item_id }));
      entry.append(back);
    }
    return entry;
  });
  const away = past.degraded.includes("store") && !past.degraded.includes("last_known");
  replaceCards($("past"), events.length ? events : [empty(t(away ? "history.away" : "history.empty"))]);
}

// Make the list anew. Returns how many of its items were not shown before.
async function show() {
  const request = ++newest;
  try {
    const [[slate, millis], [past], [user]] = await Promise.all([
      recommendations(Math.max(PAGE, Math.min(100, shown.items.length))),
      call(`${path("users", state.user, "history")}?limit=60`),
      call(path("users", state.user)),
    ]);
    if (request !== newest) return 0; // a later request is shown already
    document.body.dataset.request = slate.request_id;
    shown = { items: slate.items, cursor: slate.cursor };
    state.shown = shown.items.length;
    showState(slate, millis);
    showUser(user);
    showPast(past);
    $("picks-title").textContent = t("shop.for", { user: state.user });
    $("hint").textContent = hint(slate);
    form($("picks"), slate.items);
    const cards = slate.items.map((item) => card(item, slate.request_id));
    $("picks-more").hidden = !slate.cursor;
    return replaceCards($("picks"), cards.length ? cards : [empty(t(state.filter ? "shop.noneFiltered" : "shop.none"))]);
  } catch (error) {
    if (request === newest) toast(error.message);
    return 0;
  }
}

async function more() {
  try {
    const [slate] = await recommendations(PAGE, shown.cursor);
    shown = { items: [...shown.items, ...slate.items], cursor: slate.cursor };
    state.shown = shown.items.length;
    const cards = slate.items.map((item) => card(item, slate.request_id));
    $("picks").append(...cards);
    $("picks-more").hidden = !slate.cursor;
    if (cards.length) cards[0].querySelector(".hit").focus({ preventScroll: true });
  } catch (error) {
    toast(error.message);
  }
}

shop.changed = async () => {
  const [fresh] = await Promise.all([show(), isSearching() ? ask() : null, compare()]);
  return fresh;
};

async function choose(user) {
  if (/^\.\.?$/.test(user)) return toast(t("shop.noUrl"));
  state.user = user;
  shown = { items: [], cursor: null };
  $("user").value = user;
  const url = new URL(location.href);
  url.searchParams.set("user", user);
  history.replaceState(null, "", url);
  await shop.changed();
}

$("pick").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  if ($("user").value) choose($("user").value);
});
$("invent").addEventListener("click", () => choose(`guest-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`));
$("user").addEventListener("focus", () => $("user").select());
$("placement").addEventListener("change", () => { state.placement = $("placement").value; shop.changed(); });
$("picks-more").addEventListener("click", more);
$("drawer").addEventListener("click", (clicked) => { if (clicked.target === $("drawer")) $("drawer").close(); });

header("shop");
start(async () => {
  try {
    const [[about], [{ users }]] = await Promise.all([call("/v1/about"), call("/v1/users?limit=50")]);
    state.about = about;
    $("note").hidden = !about.simulated;
    offerSearch(about);
    offerFilters(about.filters);
    offerCompare(about.experiments);
    $("placement").replaceChildren(...Object.keys(about.placements).map((place) => make("option", "", place)));
    state.placement = $("placement").value;
    $("placement").parentElement.hidden = Object.keys(about.placements).length < 2;
    $("users").replaceChildren(...users.map((user) => { const option = make("option"); option.value = user; return option; }));
    const asked = new URL(location.href).searchParams;
    await choose(asked.get("user") || users[0] || "guest");
    if (asked.has("item")) openDrawer((await call(path("items", asked.get("item"))))[0]);
  } catch (error) {
    $("hint").textContent = error.message;
  }
});
