// The figures of the served bundle with their intervals, beside those of the bundle before it, from /v1/state.

import { call } from "../lib/api.js";
import { make } from "../lib/dom.js";
import { has, t } from "../lib/strings.js";
import { hint, nothing, number, part, source, table, time } from "./parts.js";

const PATH = "/v1/state";

export async function bundle(view) {
  const [{ now, bundles: { served, before } }] = await call(PATH);
  if (!served) {
    view.replaceChildren(hint(t("bundle.none")));
    return;
  }
  view.replaceChildren(
    table(t("bundle.which"), [t("bundle.which"), t("bundle.served"), t("bundle.before")], facts(now, served, before)),
    ...served.tables.map((one) => evaluation(one, before?.tables.find((other) => other.placement === one.placement))),
  );
  if (!served.tables.length) view.append(hint(t("bundle.notEvaluated")));
}

function facts(now, served, before) {
  const row = (name, value) => [name, ...[["served", served], ["before", before]].map(([which, one]) => (one && value(one) ? source(value(one), PATH, `bundles.${which}`) : nothing))];
  return [
    row(t("bundle.fingerprint"), (one) => one.bundle),
    row(t("bundle.configuration"), (one) => one.configuration),
    row(t("bundle.code"), (one) => one.code_version),
    row(t("bundle.until"), (one) => one.trained_until && time(one.trained_until, now)),
    row(t("bundle.written"), (one) => one.written_at && time(one.written_at, now)),
    row(t("bundle.published"), (one) => one.published && time(one.published.at, now)),
  ];
}

const interval = (figure) => (figure.low === null || figure.low === undefined ? "" : ` [${number(figure.low)}, ${number(figure.high)}]`);
const text = (figure) => (figure ? `${number(figure.mean)}${interval(figure)}` : nothing);

function evaluation(own, other) {
  const comparable = other && own.splits.join() === other.splits.join();
  const rows = own.figures.map((figure) => {
    const former = other?.figures.find((one) => one.name === figure.name);
    const label = has(`figure.${figure.name}`) ? t(`figure.${figure.name}`) : figure.name;
    return [label, source(text(figure), PATH, "bundles.served.tables"), former ? source(text(former), PATH, "bundles.before.tables") : nothing,
      comparable && former ? change(figure, former) : nothing];
  });
  const said = t("bundle.events", { users: number(own.users), events: number(own.events), note: own.note });
  const caption = t("bundle.placement", { placement: own.placement });
  return part(
    caption, hint(said),
    table(caption, [t("bundle.figure"), t("bundle.served"), t("bundle.before"), t("bundle.change")], rows),
    ...(other && !comparable ? [hint(t("bundle.otherSplit"))] : []),
  );
}

// The difference, and whether the intervals are apart.
function change(figure, former) {
  if (figure.mean === null || former.mean === null) return nothing;
  const difference = figure.mean - former.mean;
  const signed = `${difference > 0 ? "+" : difference < 0 ? "−" : "±"}${number(Math.abs(difference))}`;
  const box = make("span", "", signed);
  if (figure.low !== null && former.low !== null && (figure.low > former.high || figure.high < former.low)) {
    box.append(" ", make("span", "chip", t("bundle.apart")));
  }
  return box;
}
