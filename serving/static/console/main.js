// The console: one view at a time, named by the hash of the URL. It needs a key of the role admin where there are keys.

import { call, start } from "../lib/api.js";
import { $, button, link, make } from "../lib/dom.js";
import { header } from "../lib/header.js";
import { t } from "../lib/strings.js";
import { now } from "./now.js";
import { freshness } from "./freshness.js";
import { bundle } from "./bundle.js";
import { experiments } from "./experiments.js";
import { items } from "./items.js";
import { rules } from "./rules.js";
import { users } from "./users.js";
import { number } from "./parts.js";

const views = { now, freshness, bundle, experiments, items, rules, users };
let end = () => {};
let newest = 0;

const chosen = () => (Object.hasOwn(views, location.hash.slice(1)) ? location.hash.slice(1) : "now");

async function showStatus() {
  try {
    const [about] = await call("/v1/about");
    $("status").replaceChildren(
      make("span", "", t("console.bundle", { bundle: about.bundle })),
      make("span", "", t("console.items", { items: number(about.items) })),
    );
  } catch (error) {
    $("status").replaceChildren(make("span", "warn", error.message));
  }
}

async function show() {
  const request = ++newest;
  const name = chosen();
  for (const to of $("views").children) {
    if (to.hash === `#${name}`) to.setAttribute("aria-current", "page");
    else to.removeAttribute("aria-current");
  }
  end();
  end = () => {};
  $("refused").hidden = true;
  const view = make("div", name);
  $("view").replaceChildren(view);
  try {
    const ended = await views[name](view);
    if (request === newest) end = ended || end;
    else if (ended) ended();
  } catch (error) {
    if (request === newest) refuse(error);
  }
}

// Why a view cannot be shown. A key whose role is too small can be given up for another.
function refuse(error) {
  if (error.status === 401) return; // the page asks for a key already
  $("refused").replaceChildren(make("span", "", error.message));
  if (error.code === "role_too_small") {
    $("refused").append(" ", button("quiet", t("console.otherKey"), () => {
      sessionStorage.removeItem("key");
      location.reload();
    }));
  }
  $("refused").hidden = false;
}

header("console");
$("views").replaceChildren(...Object.keys(views).map((name) => link(t(`views.${name}`), `#${name}`)));
addEventListener("hashchange", () => { if (location.hash !== "#view") show(); });
start(() => Promise.all([showStatus(), show()]));
