// Calls of the service, with the key of this tab where the service asks for one.

import { $, make } from "./dom.js";
import { t, translate } from "./strings.js";

const keyHeaders = () => { // the key stays in this tab until it is closed
  const key = sessionStorage.getItem("key");
  return key ? { Authorization: `Bearer ${key}` } : {};
};

// [body, milliseconds]. Throws an Error with the detail of the problem; `status` and `code` of it are the answer's.
export async function call(path, options = {}) {
  const started = performance.now();
  const response = await fetch(path, { ...options, headers: { ...options.headers, ...keyHeaders() } });
  const text = await response.text();
  const isJson = /json/.test(response.headers.get("Content-Type"));
  const body = isJson && text ? JSON.parse(text) : text;
  if (response.status === 401) unlock();
  if (!response.ok) {
    const error = new Error((isJson && body.detail) || t("api.status", { status: response.status }));
    throw Object.assign(error, { status: response.status, code: isJson ? body.code : null, body });
  }
  return [body, performance.now() - started, response];
}

// The same with a body as JSON.
export const send = (method, path, body, headers = {}) =>
  call(path, { method, body: JSON.stringify(body), headers: { "Content-Type": "application/json", ...headers } });

export const path = (...parts) => `/v1/${parts.map(encodeURIComponent).join("/")}`;

// Give an element (img, audio, video) a file of the service: an element cannot send a key.
export async function show(element, url) {
  if (!url.startsWith("/") || !sessionStorage.getItem("key")) {
    element.src = url;
    return;
  }
  const response = await fetch(url, { headers: keyHeaders() });
  if (!response.ok) throw new Error(url);
  element.src = URL.createObjectURL(await response.blob());
  const done = element.tagName === "IMG" ? "load" : "emptied"; // a sound is read again when it is played
  element.addEventListener(done, () => URL.revokeObjectURL(element.src), { once: true });
}

let begin = () => {};

// Begin the page; begin it again when a key is given.
export function start(run) {
  begin = run;
  translate();
  return run();
}

function unlock() {
  if ($("unlock")) return;
  const form = make("form", "panel");
  form.id = "unlock";
  form.autocomplete = "off";
  const label = make("label", "", t("key.label"));
  label.htmlFor = "key";
  const key = make("input");
  Object.assign(key, { id: "key", type: "password", autocomplete: "off", maxLength: 512, spellcheck: false, required: true });
  form.append(label, key, make("button", "", t("key.use")));
  form.addEventListener("submit", (submitted) => {
    submitted.preventDefault();
    sessionStorage.setItem("key", key.value.replace(/[^\x21-\x7e]/g, ""));
    form.remove();
    begin();
  });
  document.querySelector("main").prepend(form);
}
