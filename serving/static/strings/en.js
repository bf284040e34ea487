// All texts of the pages in English. {names} are values; {one, other} are forms for numbers, chosen by `count`.

export default {
  "nav.label": "Pages",
  "nav.shop": "Shop",
  "nav.map": "Map",
  "nav.console": "Console",
  "nav.docs": "API",

  "key.label": "API key",
  "key.use": "Use",
  "api.status": "the service responded with status {status}",
};
