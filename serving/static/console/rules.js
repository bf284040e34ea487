// Rules and placements: read the rules, check a change, try it on a user, save it.

import { call, send } from "../lib/api.js";
import { button, link, make, toast } from "../lib/dom.js";
import { t } from "../lib/strings.js";
import { preview, slateList } from "./lists.js";
import { field, form, hint, input, part, select, source, submit, table } from "./parts.js";

const PATH = "/v1/rules";
const EXAMPLE = '{"rules": [{"name": "campaign", "pin": {"item": "4711", "position": 1}}]}';

export async function rules(view) {
  const [[stored, , response], [about]] = await Promise.all([call(PATH), call("/v1/about")]);
  let tag = response.headers.get("ETag");
  const text = Object.assign(make("textarea", "code"), { rows: 16, spellcheck: false });
  const said = make("p", "hint");
  said.setAttribute("role", "status");

  const fill = (body) => { text.value = JSON.stringify({ rules: body.rules }, null, 2); };
  const given = () => {
    try {
      return JSON.parse(text.value);
    } catch (error) {
      throw new Error(t("rules.noJson", { reason: error.message }));
    }
  };

  async function check() {
    said.textContent = "";
    const [checked] = await send("PUT", `${PATH}?dry_run=true`, given());
    said.textContent = t("rules.valid", { count: checked.rules.length });
  }

  async function save() {
    said.textContent = "";
    const [saved, , answer] = await send("PUT", PATH, given(), tag ? { "If-Match": tag } : {});
    tag = answer.headers.get("ETag");
    fill(saved);
    said.textContent = t("rules.saved");
    toast(t("rules.saved"));
  }

  const action = (className, key, run) => button(className, t(key), () => run().catch((error) => problem(error)));
  const problem = (error) => {
    said.replaceChildren(make("span", "problem", error.message));
    if (error.code === "rules_changed") said.append(" ", t("rules.readAgain"));
  };
  const buttons = make("p", "does");
  buttons.append(
    action("quiet", "rules.check", check),
    action("", "rules.save", save),
    action("quiet", "rules.read", async () => {
      const [body, , answer] = await call(PATH);
      tag = answer.headers.get("ETag");
      fill(body);
      said.textContent = t("rules.asStored");
    }),
  );
  fill(stored);
  const fault = stored.fault ? [make("p", "note", stored.fault)] : [];
  const file = tag ? [] : [make("p", "note", t("rules.noFile"))];
  const from = hint("");
  from.append(source(t("rules.source"), PATH), " · ", link(t("rules.form"), "/docs"), " · ", make("code", "", EXAMPLE));
  view.replaceChildren(
    part(t("rules.heading"), ...fault, ...file, from, field(t("rules.text"), text), buttons, said),
    part(t("rules.try"), trial(about, given)),
    part(t("rules.placements"), hint(t("rules.placementsHint")), placements(about)),
  );
}

// Two lists of a user side by side: by the rules in use, and by those of the text.
function trial(about, given) {
  const user = input({ required: true, maxLength: 512 });
  const place = select(Object.keys(about.placements).map((name) => [name, name]));
  const lists = make("div", "sides");
  const asking = form([field(t("rules.user"), user), field(t("rules.placement"), place), submit(t("rules.tryOn"))], async () => {
    const asked = { user_id: user.value, placement: place.value };
    const [now, then] = await Promise.all([preview(asked), preview({ ...asked, rules: given() })]);
    lists.replaceChildren(slateList(t("rules.changed"), then, now), slateList(t("rules.inUse"), now));
  });
  asking.className = "bar-form";
  const box = make("div");
  box.append(asking, lists);
  return box;
}

function placements(about) {
  const rows = Object.entries(about.placements).map(([name, settings]) => [
    name, ...["repeats"].map((key) => source(t(settings[key] ? "rules.repeats" : "rules.noRepeats"), "/v1/about", `placements.${name}`)),
  ]);
  return table(t("rules.placements"), [t("rules.placement"), t("rules.seen")], rows);
}
