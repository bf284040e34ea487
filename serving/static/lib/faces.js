// The picture of an item, or a tile with its initials where it has none.

import { show } from "./api.js";
import { make } from "./dom.js";

export const name = (item) => item.title || item.item_id;

function initials(text) {
  const words = text.match(/[\p{L}\p{N}]+/gu) || ["·"];
  const significant = words.filter((word) => /^\p{L}/u.test(word) && !/^(the|a|an|of|and)$/i.test(word));
  return (significant.length ? significant : words).slice(0, 2).map((word) => [...word][0].toUpperCase()).join("");
}

// A colour's angle that a text always gets.
export function hue(text) {
  let sum = 7;
  for (const letter of text) sum = (sum * 31 + letter.codePointAt(0)) % 3600;
  return sum % 360;
}

function tile(item) {
  const face = make("div", "face tile", initials(name(item)));
  face.setAttribute("aria-hidden", "true");
  face.style.setProperty("--hue", hue(item.categories.join() + name(item).slice(0, 2)));
  return face;
}

export function face(item) {
  if (!item.image) return tile(item);
  const picture = make("img", "face");
  picture.alt = "";
  picture.loading = "lazy";
  const failed = () => picture.replaceWith(tile(item));
  picture.addEventListener("error", failed, { once: true });
  picture.addEventListener("load", () => { // a picture of another form is not cut
    picture.classList.toggle("whole", Math.abs(picture.naturalWidth / picture.naturalHeight - 0.72) > 0.15);
  });
  show(picture, item.image).catch(failed);
  return picture;
}
