"use strict";
// Demo page of the public API. Values from the API are inserted as text, never as markup.

const $ = (id) => document.getElementById(id);
const state = { user: "", placement: "", click: { event: "click", value: null }, searchBy: [], lastList: 0, file: null, lastSearch: 0 };
const keyHeaders = () => { // the key stays in this tab until it is closed
  const key = sessionStorage.getItem("key");
  return key ? { Authorization: `Bearer ${key}` } : {};
};

async function call(path, options = {}) {
  const started = performance.now();
  const response = await fetch(path, { ...options, headers: { ...options.headers, ...keyHeaders() } });
  const body = await response.json().catch(() => ({}));
  if (response.status === 401) $("unlock").hidden = false;
  if (!response.ok) throw new Error(body.detail ? body.detail : `the service responded with status ${response.status}`);
  return [body, performance.now() - started];
}

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

let toastTimer;
function toast(text) {
  ($("similar").open ? $("similar") : document.body).append($("toast")); // an open dialog covers all that is outside of it
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { $("toast").hidden = true; }, 4000);
}

const name = (item) => item.title || item.item_id;
const meaning = () => state.click.event + (state.click.value === null ? "" : ` ${state.click.value}`);

function initials(text) {
  const words = text.match(/[\p{L}\p{N}]+/gu) || ["·"];
  const significant = words.filter((word) => /^\p{L}/u.test(word) && !/^(the|a|an|of|and)$/i.test(word));
  return (significant.length ? significant : words).slice(0, 2).map((word) => [...word][0].toUpperCase()).join("");
}

function hue(text) {
  let sum = 7;
  for (const letter of text) sum = (sum * 31 + letter.codePointAt(0)) % 3600;
  return sum % 360;
}

function tile(item) {
  const face = make("div", "face tile", initials(name(item)));
  face.setAttribute("aria-hidden", "true");
  face.style.setProperty("--hue", hue(item.categories.join() + name(item).slice(0, 2)));
  return face;
}

function face(item) {
  if (!item.image) return tile(item);
  const picture = make("img", "face");
  picture.alt = "";
  picture.loading = "lazy";
  const failed = () => picture.replaceWith(tile(item));
  picture.addEventListener("error", failed, { once: true });
  if (item.image.startsWith("/") && sessionStorage.getItem("key")) load(picture, item.image).catch(failed);
  else picture.src = item.image;
  return picture;
}

async function load(picture, path) { // a picture cannot send a key
  const response = await fetch(path, { headers: keyHeaders() });
  if (!response.ok) throw new Error(path);
  picture.src = URL.createObjectURL(await response.blob());
  picture.addEventListener("load", () => URL.revokeObjectURL(picture.src), { once: true });
}

function texts(item, below) {
  const text = make("div", "text");
  text.append(make("div", "title", name(item)));
  if (below) text.append(make("div", "kinds", below));
  return text;
}

function strongest(near) {
  const known = Object.entries(near).filter(([, cosine]) => cosine !== null).sort((a, b) => b[1] - a[1]);
  const labels = known.map(([channel, cosine]) => `${channel} ${cosine.toFixed(2)}`);
  const chips = make("p", "chips");
  if (labels.length) chips.append(make("span", "", labels[0]));
  chips.title = `similarity: ${labels.join(", ")}`;
  return chips;
}

function card(item, requestId) {
  const entry = make("li", "card");
  const hit = make("button", "hit");
  hit.type = "button";
  const text = texts(item, item.categories.join(" · "));
  if (item.near) text.append(strongest(item.near));
  text.append(make("span", "does", meaning()));
  hit.append(face(item), text);
  hit.addEventListener("click", () => send(item, requestId, entry));
  const foot = make("div", "foot");
  const similar = make("button", "quiet", "Similar");
  similar.type = "button";
  similar.setAttribute("aria-label", `Items similar to ${name(item)}`);
  similar.addEventListener("click", () => showSimilar(item));
  foot.append(make("span", "", `#${item.position}`), similar);
  entry.append(hit, foot);
  entry.dataset.item = item.item_id;
  return entry;
}

function fill(list, cards, items, empty) {
  list.classList.toggle("plain", !items.some((item) => item.image));
  list.replaceChildren(...(cards.length ? cards : [make("li", "empty", empty)]));
}

const reasons = {
  store: "the feature store does not respond",
  last_known: "the history is the last known one",
  deadline: "no time was left",
  stale: "the history may be incomplete",
  recommender: "the model failed",
  bundle: "no bundle is served",
  log: "what is shown is not logged",
  rules: "a rule of the shop does not fit what is served",
};

const hints = { // by what failed, the first that is there; the history itself is not lost
  deadline: "No time was left for the model: these are the most popular items.",
  last_known: "The feature store does not respond: the items fit the history of some minutes ago.",
  store: "The feature store does not respond, so the history is not known: these are the most popular items.",
  stale: "The history is being loaded: the items may not fit it yet.",
  recommender: "The model failed: these are the most popular items.",
};

function hint(slate) {
  const failed = Object.keys(hints).find((reason) => slate.degraded.includes(reason));
  if (failed) return hints[failed];
  return slate.source === "popular"
    ? "No history yet: these are the most popular items. Choose one that you like."
    : "Choose an item, and the next response takes it into account.";
}

function showState(slate, millis) {
  const chips = [];
  for (const reason of slate.degraded) chips.push(make("span", "warn", `degraded: ${reasons[reason] || reason}`));
  chips.push(make("span", slate.source, slate.source === "popular" ? "popular items" : "from this history"));
  const time = make("span", "", `${millis.toFixed(millis < 10 ? 1 : 0)} ms`);
  time.title = Object.entries(slate.trace).map(([stage, ms]) => `${stage} ${ms} ms`).join("\n");
  const bundle = make("span", "", `bundle ${slate.bundle.slice(0, 8)}`);
  bundle.title = slate.bundle;
  chips.push(time, bundle);
  $("state").replaceChildren(...chips);
}

async function show() {
  const request = ++state.lastList;
  const user = encodeURIComponent(state.user);
  try {
    const [[slate, millis], [past]] = await Promise.all([
      call(`/v1/users/${user}/recommendations?limit=24&placement=${encodeURIComponent(state.placement)}`),
      call(`/v1/users/${user}/history?limit=60`),
    ]);
    if (request !== state.lastList) return; // a later request is shown already
    document.body.dataset.request = slate.request_id;
    showState(slate, millis);
    $("picks-title").textContent = `For ${state.user}`;
    $("hint").textContent = hint(slate);
    fill($("picks"), slate.items.map((item) => card(item, slate.request_id)), slate.items, "There are no more items to show.");
    $("count").textContent = past.total ? `${past.total} ${past.total === 1 ? "event" : "events, newest first"}` : "";
    const events = past.events.map((item) => {
      const entry = make("li", "card");
      entry.dataset.item = item.item_id;
      const value = item.value === null ? "" : ` ${item.value}`;
      entry.append(face(item), texts(item, `${item.event}${value} · ${new Date(item.timestamp).toLocaleDateString()}`));
      return entry;
    });
    fill($("past"), events, past.events, past.degraded.includes("store") && !past.degraded.includes("last_known")
      ? "The feature store does not respond: the history cannot be shown."
      : "No events yet. The items that you choose appear here.");
  } catch (error) {
    if (request === state.lastList) toast(error.message);
  }
}

async function send(item, requestId, entry) {
  const event = { user_id: state.user, item_id: item.item_id, ...state.click, request_id: requestId, position: item.position };
  try {
    await call("/v1/events", { method: "POST", body: JSON.stringify(event), headers: { "Content-Type": "application/json" } });
    $("similar").close();
    await show();
    if (entry.isConnected && $("finds").contains(entry)) { // the lists that changed may be off the screen
      entry.classList.add("chosen");
      entry.querySelector(".does").textContent = `✓ ${meaning()}`;
      toast(`${meaning()}: ${name(item)}. The history and the items for ${state.user}, below, have changed.`);
    } else {
      toast(`${meaning()}: ${name(item)}`);
      $("picks").focus({ preventScroll: true });
    }
  } catch (error) {
    toast(error.message);
  }
}

async function showSimilar(item) {
  try {
    const [slate] = await call(`/v1/items/${encodeURIComponent(item.item_id)}/similar?limit=12`);
    $("similar-title").textContent = `Similar to ${name(item)}`;
    fill($("alike"), slate.items.map((similar) => card(similar, slate.request_id)), slate.items, "No similar items.");
    if (!$("similar").open) $("similar").showModal();
    $("similar").scrollTop = 0;
  } catch (error) {
    toast(error.message);
  }
}

const media = { image: "picture", audio: "sound", video: "video" };

function offer(searchBy) {
  state.searchBy = searchBy;
  const kinds = Object.keys(media).filter((kind) => searchBy.includes(kind));
  $("add").hidden = !kinds.length;
  $("file").accept = kinds.map((kind) => `${kind}/*`).join();
  const words = new Intl.ListFormat("en", { type: "disjunction" }).format(kinds.map((kind) => `a ${media[kind]}`));
  $("add-what").textContent = `Add ${words}`;
  $("words").placeholder = kinds.length ? `Search by words, or drop ${words} anywhere` : "Search by words";
}

function hold(file) {
  const kind = file && file.type.split("/")[0];
  if (file && !(kind in media)) return toast(`${file.name} is not an image, a sound or a video`);
  if (file && !state.searchBy.includes(kind)) return toast(`${file.name}: the items cannot be searched by ${media[kind]}`);
  URL.revokeObjectURL($("preview").src);
  state.file = file;
  $("file").value = "";
  $("held").hidden = !file;
  $("preview").hidden = !(file && file.type.startsWith("image/"));
  if (!file) {
    state.lastSearch++; // drops the response of a search that is running
    $("ask").classList.remove("busy");
    $("preview").removeAttribute("src");
    return;
  }
  $("held-name").textContent = file.name;
  if (!$("preview").hidden) $("preview").src = URL.createObjectURL(file);
  ask();
}

async function ask() {
  const words = $("words").value.trim();
  const file = state.file;
  if (!words && !file) return;
  const request = ++state.lastSearch;
  const form = new FormData();
  form.append("limit", "24");
  if (words) form.append("text", words);
  if (file) form.append(file.type.split("/")[0], file);
  $("ask").classList.add("busy");
  try {
    const [slate, millis] = await call("/v1/search", { method: "POST", body: form });
    if (request !== state.lastSearch) return;
    const failed = slate.query.failed.map((part) => {
      const chip = make("span", "warn", `${part.part} not read`);
      chip.title = part.reason;
      return chip;
    });
    $("found-state").replaceChildren(...failed, make("span", "", `${millis.toFixed(0)} ms`));
    $("found-title").textContent = `Found for ${[words && `“${words}”`, file && file.name].filter(Boolean).join(" and ")}`;
    fill($("finds"), slate.items.map((item) => card(item, slate.request_id)), slate.items, "No items found.");
    $("found").hidden = false;
  } catch (error) {
    if (request === state.lastSearch) toast(error.message);
  } finally {
    if (request === state.lastSearch) $("ask").classList.remove("busy");
  }
}

function clear() {
  $("found").hidden = true;
  $("words").value = "";
  hold(null);
}

function choose(user) {
  if (/^\.\.?$/.test(user)) return toast("A user id cannot be “.” or “..”: no URL can hold it.");
  state.user = user;
  $("user").value = user;
  const url = new URL(location.href);
  url.searchParams.set("user", user);
  history.replaceState(null, "", url);
  return show();
}

$("unlock").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  sessionStorage.setItem("key", $("key").value.replace(/[^\x21-\x7e]/g, ""));
  $("key").value = "";
  $("unlock").hidden = true;
  start();
});
$("pick").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  if ($("user").value) choose($("user").value);
});
$("invent").addEventListener("click", () => choose(`guest-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`));
$("user").addEventListener("focus", () => $("user").select());
$("placement").addEventListener("change", () => { state.placement = $("placement").value; show(); });
$("ask").addEventListener("submit", (submitted) => { submitted.preventDefault(); ask(); });
$("clear").addEventListener("click", () => { clear(); $("words").focus(); });
$("let-go").addEventListener("click", () => { hold(null); $("words").focus(); });
$("file").addEventListener("change", () => { if ($("file").files.length) hold($("file").files[0]); });
for (const moved of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(moved, (dragged) => {
    if ($("ask").hidden || !dragged.dataTransfer.types.includes("Files")) return;
    dragged.preventDefault(); // otherwise the browser opens the file
    $("ask").classList.toggle("over", moved === "dragover");
    if (moved === "drop" && dragged.dataTransfer.files.length) hold(dragged.dataTransfer.files[0]);
  });
}
$("similar").addEventListener("close", () => document.body.append($("toast")));
$("close").addEventListener("click", () => $("similar").close());
$("similar").addEventListener("click", (clicked) => { if (clicked.target === $("similar")) $("similar").close(); });

async function start() {
  try {
    const [about] = await call("/v1/about");
    state.click = about.click;
    $("ask").hidden = !about.search;
    offer(about.search_by);
    $("placement").replaceChildren(...Object.keys(about.placements).map((place) => make("option", "", place)));
    state.placement = $("placement").value;
    $("placement").parentElement.hidden = Object.keys(about.placements).length < 2;
    const [{ users }] = await call("/v1/users?limit=50");
    $("users").replaceChildren(...users.map((user) => { const o = make("option"); o.value = user; return o; }));
    await choose(new URL(location.href).searchParams.get("user") || users[0] || "guest");
  } catch (error) {
    $("hint").textContent = error.message;
  }
}
start();
