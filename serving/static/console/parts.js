// Parts that views share: numbers with their sources, tables, times, fields of forms.

import { call } from "../lib/api.js";
import { $, button, link, make } from "../lib/dom.js";
import { t } from "../lib/strings.js";

const language = document.documentElement.lang;
const digits = new Intl.NumberFormat(language, { maximumSignificantDigits: 3 });
const whole = new Intl.NumberFormat(language);
const units = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];

export const nothing = "–";
export const number = (value) => (value === null || value === undefined || Number.isNaN(value) ? nothing
  : Number.isInteger(value) || Math.abs(value) >= 1000 ? whole.format(Math.round(value)) : digits.format(value));
export const share = (value) => new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: 1 }).format(value);

export function seconds(value) {
  if (value === null || value === undefined) return nothing;
  const [unit, length] = units.find(([, size]) => value >= size) || ["second", 1];
  return new Intl.NumberFormat(language, { style: "unit", unit, unitDisplay: "long", maximumFractionDigits: value / length < 10 ? 1 : 0 }).format(value / length);
}

export function bytes(value) {
  const [unit, size] = value >= 1e9 ? ["gigabyte", 1e9] : value >= 1e6 ? ["megabyte", 1e6] : value >= 1e3 ? ["kilobyte", 1e3] : ["byte", 1];
  return new Intl.NumberFormat(language, { style: "unit", unit, maximumFractionDigits: 1 }).format(value / size);
}

// A time of the API, and how long before `now` it was.
export function time(text, now) {
  if (!text) return nothing;
  const element = make("time", "", t("console.ago", { seconds: seconds(Math.max(0, (new Date(now) - new Date(text)) / 1000)) }));
  element.dateTime = text;
  element.title = text;
  return element;
}

// A figure that opens what it comes from. path: of a call that reads; find: a name of a metric, or keys with dots.
export function source(content, path, find = "") {
  const to = link("", path, "source");
  to.append(content);
  to.title = t("console.from", { source: `GET ${path} ${find}` });
  to.addEventListener("click", (clicked) => {
    if (clicked.ctrlKey || clicked.metaKey || clicked.shiftKey) return;
    clicked.preventDefault();
    open(path, find);
  });
  return to;
}

async function open(path, find) {
  const dialog = $("source");
  const head = make("div", "head");
  const title = make("h2", "", `GET ${path}`);
  title.id = "source-title";
  head.append(title, button("quiet", t("console.close"), () => dialog.close()));
  const text = make("pre", "", t("console.loading"));
  text.tabIndex = 0;
  const more = make("p", "hint");
  more.append(link(t("console.documented"), "/docs"));
  dialog.replaceChildren(head, ...(find ? [make("p", "hint", find)] : []), text, more);
  dialog.showModal();
  try {
    const [body] = await call(path);
    text.textContent = typeof body === "string"
      ? body.split("\n").filter((line) => !find || line.replace(/^# (HELP|TYPE) /, "").startsWith(find)).join("\n")
      : JSON.stringify(find.split(".").filter(Boolean).reduce((part, key) => part?.[key], body) ?? body, null, 2);
  } catch (error) {
    text.textContent = error.message;
  }
}

// A table with a caption as its heading. rows: cells are texts or elements; the first names the row.
export function table(caption, heads, rows) {
  const box = make("div", "scrolls");
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", caption);
  const element = make("table");
  const head = make("tr");
  head.append(...heads.map((text) => Object.assign(make("th", "", text), { scope: "col" })));
  element.append(head, ...rows.map((cells) => {
    const row = make("tr");
    cells.forEach((content, at) => {
      const cell = at ? make("td") : Object.assign(make("th"), { scope: "row" });
      cell.append(content);
      row.append(cell);
    });
    return row;
  }));
  box.append(element);
  return box;
}

export function part(heading, ...content) {
  const section = make("section");
  section.append(make("h2", "", heading), ...content);
  return section;
}

export const hint = (text) => make("p", "hint", text);

// A figure with its name under it.
export function tile(name, content, below = "") {
  const box = make("div", "tile-figure");
  const value = make("dd");
  value.append(content);
  const label = make("dt", "", name);
  box.append(label, value, ...(below ? [make("dd", "below", below)] : []));
  return box;
}

let fields = 0;
// A labelled field. control: an input, select or textarea.
export function field(text, control) {
  control.id ||= `field-${++fields}`;
  const box = make("p", "field");
  const label = make("label", "", text);
  label.htmlFor = control.id;
  box.append(label, control);
  return box;
}

export function input(options = {}) {
  return Object.assign(make("input"), { autocomplete: "off", spellcheck: false, ...options });
}

export function select(choices, value) {
  const list = make("select");
  list.append(...choices.map(([key, text]) => Object.assign(make("option", "", text), { value: key })));
  if (value !== undefined) list.value = value;
  return list;
}

// A form that runs when it is submitted. What goes wrong is said below it.
export function form(content, run) {
  const element = make("form");
  element.autocomplete = "off";
  const problem = make("p", "problem");
  problem.setAttribute("role", "alert");
  element.append(...content, problem);
  element.addEventListener("submit", async (submitted) => {
    submitted.preventDefault();
    problem.textContent = "";
    try {
      await run();
    } catch (error) {
      problem.textContent = error.message;
    }
  });
  return element;
}

export const submit = (text) => Object.assign(make("button", "", text), { type: "submit" });
