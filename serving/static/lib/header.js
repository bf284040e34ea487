// What every page begins with: the name, and the way to the other pages.

import { link, make } from "./dom.js";
import { t } from "./strings.js";

const pages = { shop: "/", map: "/map", console: "/console", docs: "/docs" };

// Put it at the beginning of <header>. current: the key of this page.
export function header(current) {
  const icon = make("img");
  Object.assign(icon, { src: "/static/icon.svg", alt: "", width: 26, height: 26 });
  const brand = make("a", "brand", "recsys");
  brand.href = "/";
  brand.prepend(icon);
  const nav = make("nav");
  nav.setAttribute("aria-label", t("nav.label"));
  for (const [key, href] of Object.entries(pages)) {
    const to = link(t(`nav.${key}`), href);
    if (key === current) to.setAttribute("aria-current", "page");
    nav.append(to);
  }
  document.querySelector("header .bar").prepend(brand, nav);
}
