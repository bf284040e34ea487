// The items in the plane: pan and zoom, colour by category, what a search finds, where a user was and what comes next.

import { call, path, send, start } from "../lib/api.js";
import { $, button, calm, link, make, toast } from "../lib/dom.js";
import { face, name } from "../lib/faces.js";
import { header } from "../lib/header.js";
import { t } from "../lib/strings.js";
import { nearestPoint } from "./grid.js";
import { pixelOf, pointPainter } from "./points.js";

const COLOURS = 12; // categories with a colour of their own: those with the most items
const NEAR = 14; // pixels from which the pointer finds a point
const PATH = 30; // events of a user that are drawn

const view = { x: 0.5, y: 0.5, zoom: 1, width: 1, height: 1, ratio: 1 }; // the middle of the screen; pixels for a unit
const map = { items: [], points: new Float32Array(0), rows: new Map(), category: [], categories: [], nearest: () => -1 };
const paintPoints = pointPainter($("points"));
let painted = { colours: new Uint32Array(0), order: new Uint32Array(0), ground: 0 };
let chosen = null; // the category that is lit
let lit = { past: [], next: [], found: [] }; // rows of the items that are marked

const onScreen = (row) => [
  (map.points[2 * row] - view.x) * view.zoom + view.width / 2,
  (map.points[2 * row + 1] - view.y) * view.zoom + view.height / 2,
];
const dark = matchMedia("(prefers-color-scheme: dark)");
const colourOf = (place) => (place < 0 ? (dark.matches ? [120, 128, 142] : [150, 158, 172])
  : hslToRgb((place * 360) / COLOURS + 12, 0.6, dark.matches ? 0.66 : 0.44));

function hslToRgb(hue, saturation, light) {
  const channel = (n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (light - saturation * Math.min(light, 1 - light) * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}

const css = (rgb) => `rgb(${rgb.join(" ")})`;
const token = (property) => getComputedStyle(document.documentElement).getPropertyValue(property);

const mixed = (rgb, ground, share) => rgb.map((part, channel) => Math.round(part * share + ground[channel] * (1 - share)));

// Colours of all points: faint but for the category that is chosen, and where marks are shown.
function paint() {
  const marked = lit.past.length + lit.next.length + lit.found.length > 0;
  const ground = getComputedStyle($("plane")).backgroundColor.match(/\d+/g).slice(0, 3).map(Number);
  const shades = (share) => Array.from({ length: COLOURS + 1 }, (_, place) => pixelOf(mixed(colourOf(place - 1), ground, share)));
  const usual = shades(marked ? 0.35 : 0.85);
  const [bright, faint] = [shades(1), shades(0.12)];
  const n = map.items.length;
  painted = { colours: new Uint32Array(n), order: new Uint32Array(n), ground: pixelOf(ground) };
  let [low, high] = [0, n]; // what is lit lies above
  for (let i = 0; i < n; i++) {
    const isLit = map.category[i] === chosen;
    painted.colours[i] = (chosen === null ? usual : isLit ? bright : faint)[map.place[map.category[i] + 1] + 1];
    if (isLit) painted.order[--high] = i;
    else painted.order[low++] = i;
  }
  draw();
}

let waiting = false;
function draw() { // at most once for each frame
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    paintPoints(map.points, painted.colours, painted.order, painted.ground, view);
    drawMarks();
  });
}

function drawMarks() {
  const pen = $("marks").getContext("2d");
  pen.setTransform(view.ratio, 0, 0, view.ratio, 0, 0);
  pen.clearRect(0, 0, view.width, view.height);
  const [ink, accent, ground, warn] = ["--ink", "--accent", "--card", "--warn"].map(token);
  pen.lineJoin = "round";
  if (lit.past.length > 1) { // from the oldest event to the newest
    pen.beginPath();
    for (const row of lit.past) pen.lineTo(...onScreen(row));
    pen.strokeStyle = ink;
    pen.globalAlpha = 0.45;
    pen.lineWidth = 1.5;
    pen.stroke();
    pen.globalAlpha = 1;
  }
  const disc = (row, radius, fill) => {
    pen.beginPath();
    pen.arc(...onScreen(row), radius, 0, 2 * Math.PI);
    pen.fillStyle = fill;
    pen.strokeStyle = ground;
    pen.lineWidth = 2;
    pen.fill();
    pen.stroke();
  };
  for (const row of lit.past) disc(row, 5, ink);
  for (const row of lit.found) disc(row, 6, warn);
  for (const row of lit.next) disc(row, 7, accent);
}

function resize() {
  const box = $("plane").getBoundingClientRect();
  const before = Math.min(view.width, view.height);
  Object.assign(view, { width: box.width, height: box.height, ratio: Math.min(2, devicePixelRatio) });
  for (const canvas of [$("points"), $("marks")]) {
    canvas.width = Math.round(box.width * view.ratio);
    canvas.height = Math.round(box.height * view.ratio);
  }
  view.zoom *= Math.min(view.width, view.height) / before;
  if (map.items.length) draw();
}

// Zoom by a factor, so that the place under (px, py) stays.
function zoomAt(factor, px, py) {
  const least = Math.min(view.width, view.height) * 0.6;
  const zoom = Math.min(least * 400, Math.max(least, view.zoom * factor));
  const [dx, dy] = [px - view.width / 2, py - view.height / 2];
  view.x += dx / view.zoom - dx / zoom;
  view.y += dy / view.zoom - dy / zoom;
  view.zoom = zoom;
  draw();
}

// Show a part of the plane: all of it, or the rows.
function show(rows) {
  const xs = rows.map((row) => map.points[2 * row]);
  const ys = rows.map((row) => map.points[2 * row + 1]);
  const bounds = rows.length ? [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)] : [0, 1, 0, 1];
  const size = Math.max(bounds[1] - bounds[0], (bounds[3] - bounds[2]) * (view.width / view.height), 0.05);
  const goal = { x: (bounds[0] + bounds[1]) / 2, y: (bounds[2] + bounds[3]) / 2, zoom: (view.width / size) * 0.8 };
  if (!rows.length) goal.zoom = Math.min(view.width, view.height) * 0.96;
  if (calm()) {
    Object.assign(view, goal);
    return draw();
  }
  const from = { ...view };
  const begun = performance.now();
  const step = (now) => {
    const part = Math.min(1, Math.max(0, (now - begun) / 450));
    const eased = 1 - (1 - part) ** 3;
    view.x = from.x + (goal.x - from.x) * eased;
    view.y = from.y + (goal.y - from.y) * eased;
    view.zoom = from.zoom * (goal.zoom / from.zoom) ** eased;
    draw();
    if (part < 1) requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
}

// The item under the pointer. Its title is asked for when the pointer rests.
let resting;
let shownRow = -1;
function hover(px, py) {
  const x = view.x + (px - view.width / 2) / view.zoom;
  const y = view.y + (py - view.height / 2) / view.zoom;
  const row = map.nearest(x, y, NEAR / view.zoom);
  if (row === shownRow) return;
  shownRow = row;
  clearTimeout(resting);
  $("tip").hidden = true;
  if (row >= 0) resting = setTimeout(() => tip(row), 60);
}

async function tip(row) {
  const [item] = await call(path("items", map.items[row])).catch(() => [null]);
  if (!item || row !== shownRow) return;
  const text = make("div", "text");
  text.append(make("div", "title", name(item)), make("div", "kinds", item.categories.join(" · ")));
  $("tip").replaceChildren(face(item), text);
  $("tip").hidden = false;
  const [x, y] = onScreen(row);
  const box = $("tip").getBoundingClientRect();
  const left = Math.min(view.width - box.width - 8, Math.max(8, x + 12));
  const top = y + box.height + 20 > view.height ? y - box.height - 12 : y + 12;
  $("tip").style.transform = `translate(${left}px, ${Math.max(8, top)}px)`;
}

function legend() {
  const counts = new Map();
  for (const category of map.category) counts.set(category, (counts.get(category) || 0) + 1);
  const ranked = [...counts].filter(([category]) => category >= 0).sort((a, b) => b[1] - a[1]).map(([category]) => category);
  map.place = new Int16Array(map.categories.length + 1).fill(-1); // of category c at c + 1: its colour
  ranked.slice(0, COLOURS).forEach((category, place) => { map.place[category + 1] = place; });
  $("legend").replaceChildren(...ranked.map((category) => {
    const entry = make("li");
    const press = button("", "", () => light(chosen === category ? null : category));
    press.value = category;
    press.setAttribute("aria-pressed", "false");
    const dot = make("i");
    dot.style.setProperty("--colour", css(colourOf(map.place[category + 1])));
    press.append(dot, make("span", "", map.categories[category]), make("span", "", counts.get(category)));
    entry.append(press);
    return entry;
  }));
}

// Light up a category, or none.
function light(category) {
  chosen = category;
  for (const press of $("legend").querySelectorAll("button")) press.setAttribute("aria-pressed", press.value === String(category));
  paint();
}

// List what is marked. groups: [[text, colour, items], …]
function list(title, groups) {
  $("lit").hidden = false;
  $("lit-title").textContent = title;
  $("lit-items").replaceChildren(...groups.filter(([, , items]) => items.length).flatMap(([what, colour, items]) => [
    ...(what ? [make("li", "kinds", what)] : []), ...items.map((item) => {
    const row = make("li");
    const dot = make("i");
    dot.style.setProperty("--colour", colour);
    dot.title = what;
    row.dataset.item = item.item_id;
    row.append(dot, link(name(item), `/?${new URLSearchParams({ ...($("user").value && { user: $("user").value }), item: item.item_id })}`));
    return row;
  })]));
}

const rowsOf = (items) => items.map((item) => map.rows.get(item.item_id)).filter((row) => row !== undefined);

async function look(words) {
  try {
    const [slate] = await send("POST", "/v1/search", { text: words, limit: 50 });
    lit = { past: [], next: [], found: rowsOf(slate.items) };
    list(t("search.found", { query: `“${words}”` }), [["", token("--warn"), slate.items.slice(0, 20)]]);
    paint();
    show(lit.found);
  } catch (error) {
    toast(error.message);
  }
}

async function follow(user) {
  try {
    const [[past], [slate]] = await Promise.all([
      call(`${path("users", user, "history")}?limit=${PATH}`),
      call(`${path("users", user, "recommendations")}?limit=10`),
    ]);
    lit = { past: rowsOf(past.events).reverse(), next: rowsOf(slate.items), found: [] };
    list(t(past.total ? "map.pathOf" : "map.noPath", { user }), [
      [t("map.next"), token("--accent"), slate.items],
      [t("map.past", { count: past.total }), token("--ink"), past.events.slice(0, 12)],
    ]);
    const url = new URL(location.href);
    url.searchParams.set("user", user);
    history.replaceState(null, "", url);
    paint();
    show([...lit.past, ...lit.next]);
  } catch (error) {
    toast(error.message);
  }
}

const at = (event) => {
  const box = $("plane").getBoundingClientRect();
  return [event.clientX - box.x, event.clientY - box.y];
};
const fingers = new Map(); // pointers that are down: one pans, two zoom
$("plane").addEventListener("pointerdown", (event) => {
  $("plane").setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, at(event));
  $("plane").classList.add("dragged");
});
$("plane").addEventListener("pointermove", (event) => {
  const now = at(event);
  if (!fingers.has(event.pointerId)) return hover(...now);
  const before = fingers.get(event.pointerId);
  const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
  fingers.set(event.pointerId, now);
  if (other) {
    const far = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]) || 1;
    return zoomAt(far(now) / far(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
  }
  view.x -= (now[0] - before[0]) / view.zoom;
  view.y -= (now[1] - before[1]) / view.zoom;
  draw();
});
for (const ended of ["pointerup", "pointercancel"]) {
  $("plane").addEventListener(ended, (event) => {
    fingers.delete(event.pointerId);
    $("plane").classList.toggle("dragged", fingers.size > 0);
  });
}
$("plane").addEventListener("pointerleave", () => { clearTimeout(resting); shownRow = -1; $("tip").hidden = true; });
$("plane").addEventListener("wheel", (event) => {
  event.preventDefault();
  zoomAt(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), ...at(event));
}, { passive: false });
$("plane").addEventListener("dblclick", (event) => {
  const row = map.nearest(view.x + (at(event)[0] - view.width / 2) / view.zoom, view.y + (at(event)[1] - view.height / 2) / view.zoom, NEAR / view.zoom);
  if (row >= 0) location.href = `/?${new URLSearchParams({ item: map.items[row] })}`;
});
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
$("plane").addEventListener("keydown", (event) => {
  if (event.key in KEYS) {
    view.x += (KEYS[event.key][0] * 80) / view.zoom;
    view.y += (KEYS[event.key][1] * 80) / view.zoom;
    draw();
  } else if (event.key === "+" || event.key === "-") zoomAt(event.key === "+" ? 1.4 : 1 / 1.4, view.width / 2, view.height / 2);
  else return;
  event.preventDefault();
});
$("look").addEventListener("submit", (submitted) => { submitted.preventDefault(); if ($("words").value.trim()) look($("words").value.trim()); });
$("follow").addEventListener("submit", (submitted) => { submitted.preventDefault(); if ($("user").value) follow($("user").value); });
$("whole").addEventListener("click", () => {
  lit = { past: [], next: [], found: [] };
  $("lit").hidden = true;
  light(null);
  show([]);
});
dark.addEventListener("change", () => { legend(); paint(); });
new ResizeObserver(resize).observe($("plane"));

header("map");
start(async () => {
  try {
    const [[about], [given], [{ users }]] = await Promise.all([call("/v1/about"), call("/v1/map"), call("/v1/users?limit=50")]);
    const points = new Float32Array(2 * given.items.length);
    for (let i = 0; i < given.items.length; i++) {
      points[2 * i] = given.x[i] / 65535;
      points[2 * i + 1] = given.y[i] / 65535;
    }
    Object.assign(map, { ...given, points, rows: new Map(given.items.map((item, row) => [item, row])), nearest: nearestPoint(points) });
    legend();
    resize();
    view.zoom = Math.min(view.width, view.height) * 0.96;
    paint();
    $("look").hidden = !about.search_by.includes("text");
    $("users").replaceChildren(...users.map((user) => { const option = make("option"); option.value = user; return option; }));
    $("hint").textContent = t("map.hint", { count: given.items.length, method: given.method });
    document.body.dataset.ready = "yes";
    const user = new URL(location.href).searchParams.get("user");
    if (user) {
      $("user").value = user;
      await follow(user);
    }
  } catch (error) {
    $("hint").textContent = error.message;
  }
});
