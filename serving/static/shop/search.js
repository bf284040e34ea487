// Search by words, a picture, a sound or a video, and by a mixture of them; between the query and the taste of the user.

import { call } from "../lib/api.js";
import { $, make, toast } from "../lib/dom.js";
import { icon } from "../lib/icons.js";
import { replaceCards } from "../lib/moves.js";
import { all, either, t } from "../lib/strings.js";
import { card } from "./cards.js";
import { state } from "./state.js";
import { empty, form } from "./texts.js";

const KINDS = ["image", "audio", "video"];
let searchBy = [];
let file = null;
let newest = 0;
let shown = { items: [], request: null, cursor: null };

// Offer what the served bundle can be searched by.
export function offerSearch(about) {
  searchBy = about.search ? about.search_by : [];
  $("ask").hidden = !about.search;
  const kinds = KINDS.filter((kind) => searchBy.includes(kind));
  $("add").hidden = !kinds.length;
  $("file").accept = kinds.map((kind) => `${kind}/*`).join();
  const media = either(kinds.map((kind) => t(`media.${kind}`)));
  $("add-what").textContent = t("search.add", { media });
  $("words").placeholder = kinds.length ? t("search.wordsOr", { media }) : t("search.words");
  const hears = searchBy.includes("audio") && navigator.mediaDevices && window.MediaRecorder;
  $("record").hidden = !hears;
  if (!$("record").querySelector("svg")) $("record").prepend(icon("microphone"));
  recording(false);
}

function hold(given) {
  const kind = given && given.type.split("/")[0];
  if (given && !KINDS.includes(kind)) return toast(t("search.noMedia", { file: given.name }));
  if (given && !searchBy.includes(kind)) return toast(t("search.notBy", { file: given.name, media: t(`media.${kind}One`) }));
  URL.revokeObjectURL($("preview").src);
  file = given;
  $("file").value = "";
  $("held").hidden = !file;
  $("preview").hidden = !(file && kind === "image");
  if (!file) {
    newest++; // drops the response of a search that is running
    $("ask").classList.remove("busy");
    $("preview").removeAttribute("src");
    return;
  }
  $("held-name").textContent = file.name;
  if (!$("preview").hidden) $("preview").src = URL.createObjectURL(file);
  ask();
}

function body(words, cursor) {
  const fields = new FormData();
  fields.append("limit", "24");
  if (words) fields.append("text", words);
  if (file) fields.append(file.type.split("/")[0], file);
  const weight = Number($("weight").value) / 100;
  if (weight && state.positives) {
    fields.append("user_id", state.user);
    fields.append("weight", weight);
  }
  if (state.filter) fields.append("filter", JSON.stringify(state.filter));
  if (cursor) fields.append("cursor", cursor);
  return fields;
}

// Search again: by other words or another file, or because filter or user have changed.
export async function ask() {
  const words = $("words").value.trim();
  if (!words && !file) return;
  const request = ++newest;
  const queried = file;
  $("ask").classList.add("busy");
  try {
    const [slate, millis] = await call("/v1/search", { method: "POST", body: body(words) });
    if (request !== newest) return;
    const failed = slate.query.failed.map((part) => {
      const chip = make("span", "warn", t("search.notRead", { part: part.part }));
      chip.title = part.reason;
      return chip;
    });
    const filtered = state.filter ? [make("span", "", t("filters.active"))] : [];
    const notes = slate.degraded.map((reason) => make("span", "warn", t("state.degraded", { reason })));
    $("found-state").replaceChildren(...failed, ...notes, ...filtered, make("span", "", t("state.millis", { millis: millis.toFixed(0) })));
    $("found-title").textContent = t("search.found", { query: all([words && `“${words}”`, queried && queried.name].filter(Boolean)) });
    shown = { items: slate.items, request: slate.request_id, cursor: slate.cursor };
    fill(slate.items.map((item) => card(item, slate.request_id)));
    $("found").hidden = false;
  } catch (error) {
    if (request === newest) toast(error.message);
  } finally {
    if (request === newest) $("ask").classList.remove("busy");
  }
}

function fill(cards) {
  form($("finds"), shown.items);
  replaceCards($("finds"), cards.length ? cards : [empty(t("search.nothing"))]);
  $("finds-more").hidden = !shown.cursor;
}

async function more() {
  try {
    const [slate] = await call("/v1/search", { method: "POST", body: body($("words").value.trim(), shown.cursor) });
    shown = { ...shown, items: [...shown.items, ...slate.items], cursor: slate.cursor };
    $("finds").append(...slate.items.map((item) => card(item, slate.request_id)));
    $("finds-more").hidden = !shown.cursor;
  } catch (error) {
    toast(error.message);
  }
}

// The taste of a user counts where there is one.
export const offerTaste = () => { $("mix").hidden = !state.positives; };

export const isSearching = () => !$("found").hidden;

// A sound from the microphone, until the button is pressed again, at most some seconds.
const LONGEST = 15_000;
let recorder = null;

function recording(on) {
  $("record").setAttribute("aria-pressed", on);
  $("record").lastElementChild.textContent = t(on ? "search.stop" : "search.record");
}

async function record() {
  if (recorder) return recorder.stop();
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    const chunks = [];
    recorder = new MediaRecorder(stream);
    recorder.addEventListener("dataavailable", (given) => chunks.push(given.data));
    recorder.addEventListener("stop", () => {
      for (const track of stream.getTracks()) track.stop();
      const type = recorder.mimeType.split(";")[0].replace("video/", "audio/");
      recorder = null;
      recording(false);
      hold(new File(chunks, t("search.recorded"), { type }));
    });
    recorder.start();
    recording(true);
    setTimeout(() => recorder && recorder.stop(), LONGEST);
  } catch (error) {
    toast(t("search.noMicrophone", { reason: error.message }));
  }
}

function clear() {
  $("found").hidden = true;
  $("words").value = "";
  hold(null);
}

$("ask").addEventListener("submit", (submitted) => { submitted.preventDefault(); ask(); });
const showShare = () => { $("share").textContent = t("search.taste", { share: $("weight").value }); };
showShare();
$("weight").addEventListener("input", showShare);
$("weight").addEventListener("change", ask);
$("clear").addEventListener("click", () => { clear(); $("words").focus(); });
$("let-go").addEventListener("click", () => { hold(null); $("words").focus(); });
$("file").addEventListener("change", () => { if ($("file").files.length) hold($("file").files[0]); });
$("record").addEventListener("click", record);
$("finds-more").addEventListener("click", more);
for (const moved of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(moved, (dragged) => {
    if ($("ask").hidden || !dragged.dataTransfer.types.includes("Files")) return;
    dragged.preventDefault(); // otherwise the browser opens the file
    $("ask").classList.toggle("over", moved === "dragover");
    if (moved === "drop" && dragged.dataTransfer.files.length) hold(dragged.dataTransfer.files[0]);
  });
}
