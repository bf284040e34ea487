// Filters over what the catalogue says of its items. A filter holds for the recommendations and for a search.

import { $, make } from "../lib/dom.js";
import { t } from "../lib/strings.js";
import { shop, state } from "./state.js";

const FEW = 12; // categories that have a button; the others are in a list

export function offerFilters(choices) {
  const form = $("filter-fields");
  const fields = [];
  if (choices.categories.length > 1) fields.push(categories(choices.categories));
  if (choices.price && choices.price[0] < choices.price[1]) fields.push(prices(choices.price));
  for (const [column, values] of Object.entries(choices.columns)) fields.push(choose(column, values));
  form.replaceChildren(...fields);
  $("filters").hidden = !fields.length;
}

function group(title) {
  const set = make("fieldset");
  set.append(make("legend", "", title));
  return set;
}

function categories(names) {
  const set = group(t("filters.categories"));
  set.dataset.field = "categories";
  for (const name of names.slice(0, FEW)) {
    const label = make("label", "pill");
    const box = make("input");
    Object.assign(box, { type: "checkbox", name: "category", value: name });
    label.append(box, make("span", "", name));
    set.append(label);
  }
  if (names.length > FEW) {
    const more = select("category", t("filters.otherCategory"), names.slice(FEW));
    set.append(more);
  }
  return set;
}

function prices([least, most]) {
  const set = group(t("filters.price"));
  for (const [name, bound] of [["least", Math.floor(least * 100) / 100], ["most", Math.ceil(most * 100) / 100]]) {
    const input = make("input");
    Object.assign(input, { type: "number", name, min: 0, step: "any", placeholder: bound });
    input.setAttribute("aria-label", t(`filters.${name}`));
    set.append(input);
  }
  return set;
}

function select(name, title, values) {
  const list = make("select");
  list.name = name;
  list.setAttribute("aria-label", title);
  for (const [value, text] of [["", title], ...values.map((value) => [JSON.stringify(value), String(value)])]) {
    const option = make("option", "", text);
    option.value = value;
    list.append(option);
  }
  return list;
}

function choose(column, values) {
  const set = group(column);
  const list = select("column", t("filters.any"), values);
  list.setAttribute("aria-label", column);
  list.dataset.column = column;
  set.append(list);
  return set;
}

// The filter as the API takes it, null without conditions.
function read() {
  const form = $("filter-fields");
  const picked = [...form.querySelectorAll("[name=category]:checked")].map((box) => box.value);
  const other = form.querySelector("select[name=category]")?.value;
  if (other) picked.push(JSON.parse(other));
  const [least, most] = ["least", "most"].map((name) => form.querySelector(`[name=${name}]`)?.value || null).map((text) => text && Number(text));
  const columns = [...form.querySelectorAll("[data-column]")].filter((list) => list.value).map((list) => [list.dataset.column, [JSON.parse(list.value)]]);
  const filter = {};
  if (picked.length) filter.categories = picked;
  if (least !== null || most !== null) filter.price = [least, most];
  if (columns.length) filter.columns = Object.fromEntries(columns);
  return Object.keys(filter).length ? filter : null;
}

$("filter-fields").addEventListener("submit", (submitted) => submitted.preventDefault());
$("filter-fields").addEventListener("change", () => {
  state.filter = read();
  const count = Object.keys(state.filter || {}).length;
  $("filters-count").textContent = count ? t("filters.on", { count }) : "";
  shop.changed();
});
