// Users: what is known of one, what they get and why, why not an item, and the erasure of a person.

import { call, path } from "../lib/api.js";
import { make } from "../lib/dom.js";
import { name } from "../lib/faces.js";
import { t } from "../lib/strings.js";
import { preview, slateList } from "./lists.js";
import { field, form, hint, input, nothing, number, part, select, source, submit, table, tile, time } from "./parts.js";

const EVENTS = 50;

export async function users(view) {
  const [[about], [recent]] = await Promise.all([call("/v1/about"), call("/v1/users?limit=20")]);
  const id = input({ required: true, maxLength: 512 });
  const known = make("datalist");
  known.id = "recent-users";
  known.append(...recent.users.map((user) => Object.assign(make("option"), { value: user })));
  id.setAttribute("list", known.id);
  const found = make("div", "stack");
  const asking = form([field(t("users.id"), id), known, submit(t("users.show"))], () => show(found, id.value, about));
  asking.className = "bar-form";
  view.replaceChildren(asking, found);
}

async function show(found, user, about) {
  const [[facts], [history]] = await Promise.all([call(path("users", user)), call(`${path("users", user, "history")}?limit=${EVENTS}`)]);
  const from = path("users", user);
  const figures = make("dl", "figures");
  figures.append(
    tile(t("users.status"), source(facts.status ? t(`userstatus.${facts.status}`) : nothing, from), facts.degraded.join(", ")),
    tile(t("users.events"), source(number(facts.events), from)),
    tile(t("users.positives"), source(number(facts.positives), from)),
    tile(t("users.seen"), source(number(facts.seen), from)),
    tile(t("users.last"), source(time(facts.last_event, new Date()), from), facts.likes?.length ? t("users.likes", { categories: facts.likes.join(", ") }) : ""),
  );
  found.replaceChildren(
    figures,
    part(t("users.why"), lists(user, about)),
    part(t("users.whyNot"), whyNot(user, about)),
    part(t("users.history"), events(user, history)),
    part(t("users.erase"), erasure(user)),
  );
}

function events(user, history) {
  if (!history.events.length) return hint(t("users.noEvents"));
  const rows = history.events.map((event) => [
    name(event), event.item_id, event.value === null ? event.event : `${event.event} ${number(event.value)}`,
    source(time(event.timestamp, new Date()), path("users", user, "history")),
  ]);
  const box = make("div");
  box.append(hint(t("users.newest", { count: history.events.length, total: number(history.total) })),
    table(t("users.history"), [t("users.title"), t("users.item"), t("users.event"), t("users.when")], rows));
  return box;
}

const placements = (about) => select(Object.keys(about.placements).map((place) => [place, place]));

function lists(user, about) {
  const place = placements(about);
  const variants = about.experiments.flatMap(({ name: of, variants: found }) => Object.keys(found).map((variant) => [`${of}:${variant}`, `${of}:${variant}`]));
  const variant = select([["", t("users.control")], ...variants]);
  const list = make("div", "sides");
  const fields = [field(t("rules.placement"), place), ...(variants.length ? [field(t("users.variant"), variant)] : []), submit(t("users.preview"))];
  const asking = form(fields, async () => {
    const slate = await preview({ user_id: user, placement: place.value, variant: variant.value });
    list.replaceChildren(slateList(t("users.gets", { user }), slate));
  });
  asking.className = "bar-form";
  const box = make("div");
  box.append(hint(t("users.notCounted")), asking, list);
  return box;
}

function whyNot(user, about) {
  const item = input({ required: true, maxLength: 512 });
  const place = placements(about);
  const said = make("p", "hint");
  said.setAttribute("role", "status");
  const asking = form([field(t("users.item"), item), field(t("rules.placement"), place), submit(t("users.ask"))], async () => {
    said.textContent = "";
    const asked = `${path("users", user, "why-not")}?item_id=${encodeURIComponent(item.value)}&placement=${encodeURIComponent(place.value)}`;
    const [answer] = await call(asked);
    said.replaceChildren(make("span", "chip", answer.stage), " ", source(answer.detail, asked));
  });
  asking.className = "bar-form";
  const box = make("div");
  box.append(asking, said);
  return box;
}

// A person is erased when their id was typed once more.
function erasure(user) {
  const typed = input({ required: true, maxLength: 512 });
  const erase = submit(t("users.erase"));
  erase.classList.add("danger");
  erase.disabled = true;
  typed.addEventListener("input", () => { erase.disabled = typed.value !== user; });
  const said = make("div");
  said.setAttribute("role", "status");
  const asking = form([field(t("users.type", { user }), typed), erase], async () => {
    const [report] = await call(path("users", user), { method: "DELETE" });
    typed.value = "";
    erase.disabled = true;
    said.replaceChildren(
      table(t("users.erased", { user }), [t("users.place"), t("users.removed"), t("users.left")],
        report.places.map((place) => [place.name, number(place.erased), number(place.left)])),
      ...report.notes.map((note) => hint(note)),
    );
    said.prepend(make("p", report.status === "erased" ? "" : "note", t(report.status === "erased" ? "users.erased" : "users.incomplete", { user })));
  });
  asking.className = "bar-form";
  const box = make("div");
  box.append(hint(t("users.eraseHint")), asking, said);
  return box;
}
