// Items: search by words or id, hide and show again, edit, add with a picture.

import { call, path, send } from "../lib/api.js";
import { $, button, make, toast } from "../lib/dom.js";
import { face, name } from "../lib/faces.js";
import { t } from "../lib/strings.js";
import { field, form, hint, input, submit } from "./parts.js";

const PAGE = 30;
const MEDIA = ["image", "audio", "video"];

export async function items(view) {
  const words = input({ type: "search", maxLength: 2000 });
  const list = make("ul", "rows");
  const said = hint("");
  said.setAttribute("role", "status");
  const more = button("quiet", t("items.more"), () => browse().catch((error) => toast(error.message)));
  let cursor = null;

  async function browse() {
    const [page] = await call(`/v1/items?limit=${PAGE}${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
    list.append(...page.items.map((item) => row(item)));
    cursor = page.cursor;
    more.hidden = !cursor;
  }

  async function find() {
    const asked = words.value.trim();
    list.replaceChildren();
    more.hidden = true;
    if (!asked) {
      cursor = null;
      said.textContent = t("items.all");
      await browse();
      return;
    }
    const [byId, byWords] = await Promise.all([
      call(path("items", asked)).then(([item]) => [item]).catch((error) => none(error, ["unknown_item", "bad_id", "not_found"])),
      send("POST", "/v1/search", { text: asked, limit: PAGE }).then(([found]) => found.items).catch((error) => none(error, ["no_content", "nothing_read"])),
    ]);
    const found = [...byId, ...byWords.filter((item) => item.item_id !== byId[0]?.item_id)];
    said.textContent = t("items.found", { count: found.length });
    list.replaceChildren(...found.map((item) => row({ available: true, ...item })));
  }

  const search = form([field(t("items.search"), words), submit(t("search.submit")), button("quiet", t("items.add"), () => edit(null))], find);
  search.className = "bar-form";
  search.setAttribute("role", "search");
  view.replaceChildren(search, said, list, more);
  await find();
}

function none(error, codes) {
  if (codes.includes(error.code)) return [];
  throw error;
}

function row(item) {
  const element = make("li");
  element.dataset.item = item.item_id;
  draw(element, item);
  return element;
}

function draw(element, item) {
  const text = make("div", "text");
  text.append(make("div", "title", name(item)), make("div", "kinds", [item.item_id, ...(item.categories || [])].join(" · ")));
  const state = make("span", item.available ? "chip" : "chip warn", t(item.available ? "items.shown" : "items.hidden"));
  const toggle = button("quiet", t(item.available ? "items.hide" : "items.show"), () => setAvailable(element, item, !item.available));
  toggle.setAttribute("aria-label", t(item.available ? "items.hideOne" : "items.showOne", { item: name(item) }));
  const change = button("quiet", t("items.edit"), () => edit(item.item_id, element).catch((error) => toast(error.message)));
  change.setAttribute("aria-label", t("items.editOne", { item: name(item) }));
  const does = make("div", "does");
  does.append(state, toggle, change);
  element.replaceChildren(face({ ...item, categories: item.categories || [], image: picture(item) }), text, does);
}

// The list of all items says of a file that it is stored, and not where it is read.
const picture = (item) => (item.image === "stored" ? `/media/${encodeURIComponent(item.item_id)}` : item.image);

async function setAvailable(element, item, available) {
  try {
    await send("PATCH", path("items", item.item_id), { available });
  } catch (error) {
    toast(error.message);
    return;
  }
  draw(element, { ...item, available });
  element.querySelector("button").focus();
  toast(t(available ? "items.isShown" : "items.isHidden", { item: name(item) }),
    { text: t("items.undo"), run: () => setAvailable(element, { ...item, available }, !available) });
}

async function base64(file) {
  const data = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let at = 0; at < data.length; at += 32768) text += String.fromCharCode(...data.subarray(at, at + 32768));
  return btoa(text);
}

// The form of an item: of a new one without an id. element: its row, drawn anew after a change.
async function edit(id, element) {
  const stored = id === null ? { fields: newFields() } : (await call(path("items", id)))[0];
  const dialog = $("item");
  const key = input({ required: true, maxLength: 512, value: id ?? "", disabled: id !== null });
  const controls = Object.entries(stored.fields).map(([column, value]) => {
    const control = controlOf(column, value);
    return { column, value, control, before: stateOf(control) };
  });

  async function save() {
    const changed = controls.filter(({ control, before }) => stateOf(control) !== before);
    const sent = {};
    for (const { column, value, control } of changed) sent[column] = await valueOf(column, value, control);
    if (id === null || changed.length) {
      const [answer] = await send(id === null ? "PUT" : "PATCH", path("items", key.value.trim()), sent);
      toast(t(answer.new ? "items.added" : "items.saved", { item: answer.item_id }));
      const [item] = await call(path("items", answer.item_id));
      if (element) draw(element, item);
      else document.querySelector("#view ul.rows")?.prepend(row(item));
    }
    dialog.close();
  }

  const head = make("div", "head");
  const title = make("h2", "", id === null ? t("items.add") : t("items.editOne", { item: name(stored) }));
  title.id = "item-title";
  head.append(title, button("quiet", t("console.close"), () => dialog.close()));
  const status = stored.status && stored.status !== "live" ? [hint(t("items.status", { status: stored.status }))] : [];
  const failed = (stored.failed || []).map(({ part, reason }) => make("p", "problem", `${part}: ${reason}`));
  dialog.replaceChildren(head, ...status, ...failed, form([
    field(t("items.id"), key),
    ...controls.map(({ column, control }) => field(labels[column] ? t(labels[column]) : column, control)),
    submit(t(id === null ? "items.put" : "items.save")),
  ], save));
  dialog.showModal();
}

const newFields = () => ({ title: null, description: null, categories: null, price: null, published_at: null, available: true, group_id: null, image: null });
const labels = { title: "items.title", description: "items.description", categories: "items.categories", price: "items.price",
  published_at: "items.published", available: "items.available", group_id: "items.group", image: "items.picture", audio: "items.sound", video: "items.video" };

function controlOf(column, value) {
  if (MEDIA.includes(column)) return input({ type: "file", accept: `${column}/*` });
  if (column === "available" || typeof value === "boolean") return input({ type: "checkbox", checked: value !== false });
  if (column === "price" || typeof value === "number") return input({ type: "number", step: "any", value: value ?? "" });
  if (column === "description") return Object.assign(make("textarea"), { rows: 4, value: value ?? "" });
  return input({ value: Array.isArray(value) ? value.join(", ") : value ?? "" });
}

// Another text once a control is changed: a field that nobody touches is not sent.
const stateOf = (control) => (control.type === "checkbox" ? `${control.checked}` : control.value);

// The value of a changed control. value: the one before.
async function valueOf(column, value, control) {
  if (control.type === "file") return base64(control.files[0]);
  if (control.type === "checkbox") return control.checked;
  const text = control.value.trim();
  if (!text) return null;
  if (control.type === "number") return Number(text);
  return Array.isArray(value) || column === "categories" ? text.split(",").map((one) => one.trim()).filter(Boolean) : text;
}
