// Texts for people, in the language of the browser. A translation is one file more beside en.js, and its name here.

const languages = ["en"];
const language = navigator.languages.map((tag) => tag.split("-")[0]).find((tag) => languages.includes(tag)) || "en";
const { default: strings } = await import(`../strings/${language}.js`);
const plural = new Intl.PluralRules(language);

// The text of a key, with values in its {places}. A text with forms for numbers is chosen by `values.count`.
export function t(key, values = {}) {
  let text = strings[key];
  if (text === undefined) throw new Error(`no text has the key ${key}`);
  if (typeof text === "object") text = text[plural.select(values.count)] ?? text.other;
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

export const has = (key) => key in strings;

// Alternatives as one text, e.g. "a picture or a sound".
export const either = (words) => new Intl.ListFormat(language, { type: "disjunction" }).format(words);
export const all = (words) => new Intl.ListFormat(language).format(words);

// Fill the elements of a document: data-t is its text; data-t-label, data-t-placeholder, data-t-title, data-t-alt attributes.
const attributes = { tLabel: "aria-label", tPlaceholder: "placeholder", tTitle: "title", tAlt: "alt" };
export function translate(root = document) {
  document.documentElement.lang = language;
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const [name, attribute] of Object.entries(attributes)) {
    const selector = `[data-${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}]`;
    for (const element of root.querySelectorAll(selector)) element.setAttribute(attribute, t(element.dataset[name]));
  }
}
