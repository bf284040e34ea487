// What the service does now, from /metrics: the last minute by readings 5 seconds apart.

import { call } from "../lib/api.js";
import { make } from "../lib/dom.js";
import { t } from "../lib/strings.js";
import { by, gained, parse, quantile, total } from "./metrics.js";
import { hint, nothing, number, part, seconds, source, table, tile } from "./parts.js";

const EVERY = 5000; // milliseconds
const KEPT = 13;
const PATH = "/metrics";
const ROUTES = 12; // the busiest ones

export async function now(view) {
  let readings = [];
  const read = async () => {
    const [text] = await call(PATH);
    const reading = { at: performance.now(), series: parse(text) };
    const last = readings[readings.length - 1];
    if (last && requests(reading) < requests(last)) readings = []; // the service has restarted
    readings = [...readings, reading].slice(-KEPT);
    draw(view, readings);
  };
  await read();
  const timer = setInterval(() => {
    if (!document.hidden) read().catch((error) => view.replaceChildren(hint(error.message)));
  }, EVERY);
  return () => clearInterval(timer);
}

const requests = ({ series }) => total([...series.values()], "recsys_requests_total");
const ms = (found) => (found === null ? nothing : t(found.beyond ? "now.beyond" : "now.ms", { ms: number(found.value * 1000) }));

function draw(view, readings) {
  const [first, last] = [readings[0], readings[readings.length - 1]];
  const live = readings.length > 1;
  const list = gained(last.series, live ? first.series : null);
  const values = [...last.series.values()];
  const passed = (last.at - first.at) / 1000;
  const rate = (name, where) => (live ? number(total(list, name, where) / passed) : nothing);
  const count = (name, where) => number(total(list, name, where));
  const figures = make("dl", "figures");
  figures.append(
    tile(t("now.requests"), source(rate("recsys_requests_total"), PATH, "recsys_requests_total"), t("now.perSecond")),
    tile(t("now.lists"), source(rate("recsys_answers_total"), PATH, "recsys_answers_total"), t("now.perSecond")),
    tile(t("now.popular"), source(count("recsys_answers_total", { source: "popular" }), PATH, "recsys_answers_total"), t("now.popularHint")),
    tile(t("now.degraded"), source(count("recsys_answers_total", { degraded: "true" }), PATH, "recsys_degraded_answers_total"), components(list)),
    tile(t("now.shed"), source(count("recsys_shed_requests_total"), PATH, "recsys_shed_requests_total"), reasons(list)),
    tile(t("now.refused"), source(count("recsys_refused_requests_total"), PATH, "recsys_refused_requests_total"), t("now.refusedHint")),
    tile(t("now.waiting"), source(number(total(values, "recsys_waiting_requests")), PATH, "recsys_waiting_requests"), t("now.waitingHint")),
    tile(t("now.ready"), source(t("now.of", { ready: number(total(values, "recsys_ready_processes")), all: number(total(values, "recsys_processes")) }), PATH, "recsys_ready_processes"), t("now.readyHint")),
  );
  const focused = view.contains(document.activeElement) ? [...view.querySelectorAll("a, [tabindex]")].indexOf(document.activeElement) : -1;
  view.replaceChildren(
    hint(live ? t("now.window", { seconds: seconds(Math.round(passed)) }) : t("now.sinceStart")),
    figures,
    part(t("now.stages"), stages(list)),
    part(t("now.routes"), routes(list, live ? passed : null)),
  );
  if (focused >= 0) view.querySelectorAll("a, [tabindex]")[focused]?.focus({ preventScroll: true });
}

const named = (pairs) => pairs.sort((a, b) => b[1] - a[1]).map(([name, count]) => `${name} ${number(count)}`).join(", ");
const components = (list) => named(by(list, "recsys_degraded_answers_total", "component")) || t("now.degradedHint");
const reasons = (list) => named(by(list, "recsys_shed_requests_total", "reason")) || t("now.shedHint");

function stages(list) {
  const name = "recsys_stage_seconds";
  const rows = by(list, `${name}_count`, "stage").map(([stage, count]) => [
    stage,
    source(number(count), PATH, name),
    ...[0.5, 0.99].map((at) => source(ms(quantile(list, name, at, { stage })), PATH, `${name}_bucket`)),
  ]);
  if (!rows.length) return hint(t("now.noLists"));
  return table(t("now.stages"), [t("now.stage"), t("now.count"), t("now.median"), t("now.slow")], rows);
}

function routes(list, passed) {
  const name = "recsys_request_seconds";
  const busiest = by(list, `${name}_count`, "route").sort((a, b) => b[1] - a[1]).slice(0, ROUTES);
  const rows = busiest.map(([route, count]) => [
    make("code", "", route),
    source(passed ? number(count / passed) : number(count), PATH, "recsys_requests_total"),
    ...[0.5, 0.99].map((at) => source(ms(quantile(list, name, at, { route })), PATH, `${name}_bucket`)),
  ]);
  return table(t("now.routes"), [t("now.route"), passed ? t("now.rate") : t("now.count"), t("now.median"), t("now.slow")], rows);
}
