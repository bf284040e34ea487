// The calls of the API by Swagger UI, from /openapi.json, and the codes of errors. Nothing is loaded from another host.

import { call } from "../lib/api.js";
import { $, make } from "../lib/dom.js";
import { header } from "../lib/header.js";
import { t, translate } from "../lib/strings.js";

translate();
header("docs");

const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", theme);
theme();

// A call that is tried takes the key of this tab, unless it was given one there.
function withKey(request) {
  const key = sessionStorage.getItem("key");
  if (key && !request.headers.Authorization && !request.headers["X-API-Key"]) request.headers.Authorization = `Bearer ${key}`;
  return request;
}

const [api] = await call("/openapi.json");
$("about").textContent = api.info.description;
const titles = Object.entries(api.components.schemas.Problem.properties.code["x-titles"]);
const head = make("tr");
head.append(make("th", "", t("docs.code")), make("th", "", t("docs.meaning")));
$("codes").append(head, ...titles.map(([code, title]) => {
  const row = make("tr");
  row.id = code;
  const name = make("td");
  name.append(make("code", "", code));
  row.append(name, make("td", "", title));
  return row;
}));

// What Swagger UI shows: the calls, and the way to give a key. The page has a heading and a main part of its own.
const layout = ({ React: { createElement: element } }) => ({
  components: {
    Calls: ({ getComponent: part }) => element(
      "div", { className: "swagger-ui" },
      element(part("SvgAssets")),
      element(part("AuthorizeBtnContainer", true)),
      element(part("operations", true)),
    ),
  },
});

// Give the fields that Swagger UI leaves without a name one, and let the keyboard scroll what scrolls.
function label() {
  for (const field of document.querySelectorAll("#calls :is(textarea, select):not([aria-label])")) {
    field.setAttribute("aria-label", field.closest("[data-param-name]")?.dataset.paramName || t("docs.body"));
  }
  for (const code of document.querySelectorAll("#calls pre:not([tabindex])")) code.tabIndex = 0;
  for (const part of document.querySelectorAll("#calls [role=region]")) part.removeAttribute("role"); // several have one name
}
new MutationObserver(label).observe($("calls"), { childList: true, subtree: true });

const shown = () => {
  if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
};
window.SwaggerUIBundle({
  spec: api,
  domNode: $("calls"),
  plugins: [layout],
  layout: "Calls",
  docExpansion: "list",
  tryItOutEnabled: true,
  displayRequestDuration: true,
  syntaxHighlight: false, // its colours have too little contrast
  requestInterceptor: withKey,
  onComplete: shown, // an error's type is a link to its code here
});
