// Elements. Values from the API are inserted as text, never as markup.

export const $ = (id) => document.getElementById(id);

export function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined && text !== null) element.textContent = text;
  return element;
}

export function button(className, text, clicked) {
  const element = make("button", className, text);
  element.type = "button";
  element.addEventListener("click", clicked);
  return element;
}

export function link(text, href, className) {
  const element = make("a", className, text);
  element.href = href;
  return element;
}

// A message for some seconds, in front of an open dialog. action: {text, run} of a button in it.
let timer;
export function toast(text, action) {
  const open = [...document.querySelectorAll("dialog[open]")].pop();
  const box = $("toast") || make("p");
  box.id = "toast";
  box.setAttribute("role", "alert");
  (open || document.body).append(box); // an open dialog covers all that is outside of it
  if (open) open.addEventListener("close", () => document.body.append(box), { once: true });
  box.replaceChildren(make("span", "", text));
  if (action) box.append(button("", action.text, () => { hide(); action.run(); }));
  const hide = () => { box.hidden = true; };
  const later = () => { clearTimeout(timer); timer = setTimeout(hide, action ? 8000 : 4000); };
  box.onpointerenter = () => clearTimeout(timer); // who reads it, or reaches for its button, has time
  box.onpointerleave = box.onfocusout = later;
  box.onfocusin = () => clearTimeout(timer);
  box.hidden = false;
  later();
}

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
