// Like, Dislike, Not interested: each posts one event, and can be undone.

import { call, path, send } from "../lib/api.js";
import { $, button, toast } from "../lib/dom.js";
import { name } from "../lib/faces.js";
import { icon } from "../lib/icons.js";
import { t } from "../lib/strings.js";
import { shop, state } from "./state.js";

// Event ids that this tab has posted, by user and item: what can be undone.
const posted = new Map(JSON.parse(sessionStorage.getItem("posted") || "[]"));
const keyOf = (item) => JSON.stringify([state.user, item.item_id]);
export const postedId = (item) => posted.get(keyOf(item));

function remember(item, id) {
  if (id) posted.set(keyOf(item), id);
  else posted.delete(keyOf(item));
  sessionStorage.setItem("posted", JSON.stringify([...posted].slice(-500)));
}

export const meaning = ({ event, value }) => event + (value === null ? "" : ` ${value}`);

// The buttons for the reactions that the served bundle can tell apart. where: {request_id, position} of a shown list.
export function reactionButtons(item, where, withText) {
  return Object.entries(state.about.reactions).filter(([, reaction]) => reaction).map(([kind, reaction]) => {
    const says = t("react.says", { reaction: t(`react.${kind}`), event: meaning(reaction) });
    const press = button(`react ${kind}`, "", () => react(item, kind, reaction, where, press));
    press.append(icon(kind));
    press.title = says;
    if (withText) press.append(says);
    else press.setAttribute("aria-label", t("react.label", { says, item: name(item) }));
    return press;
  });
}

async function react(item, kind, reaction, where, press) {
  const id = `page-${[...crypto.getRandomValues(new Uint32Array(4))].map((part) => part.toString(36)).join("")}`;
  const byKeyboard = press.matches(":focus-visible");
  press.classList.add("pressed");
  try {
    const event = { user_id: state.user, item_id: item.item_id, ...reaction, event_id: id, ...where };
    await send("POST", "/v1/events", event);
    remember(item, id);
    const fresh = await shop.changed();
    toast(t("react.done", { reaction: t(`react.${kind}Done`), item: name(item), event: meaning(reaction), changed: t("react.changed", { count: fresh }) }),
      { text: t("react.undo"), run: () => undo(item) });
    if (byKeyboard) $("toast").querySelector("button").focus(); // the button that had the focus is gone with its card
  } catch (error) {
    press.classList.remove("pressed");
    toast(error.message);
  }
}

export async function undo(item) {
  try {
    await call(path("users", state.user, "events", postedId(item)), { method: "DELETE" });
    remember(item, null);
    await shop.changed();
    toast(t("react.undone", { item: name(item) }));
    if (document.activeElement === document.body) $("picks").focus({ preventScroll: true });
  } catch (error) {
    toast(error.message);
  }
}
