// How fresh log, store and bundle are, and what the last runs did, from /v1/state.

import { call } from "../lib/api.js";
import { button, make, toast } from "../lib/dom.js";
import { t } from "../lib/strings.js";
import { bytes, hint, nothing, number, part, seconds, source, table, time } from "./parts.js";

const PATH = "/v1/state";

export async function freshness(view) {
  const [state] = await call(PATH);
  const again = button("quiet", t("fresh.again"), () => freshness(view).catch((error) => toast(error.message)));
  view.replaceChildren(
    again,
    part(t("fresh.problems"), problems(state)),
    part(t("fresh.runs"), runs(state)),
    part(t("fresh.log"), log(state)),
    part(t("fresh.store"), store(state)),
  );
}

function problems({ problems: found }) {
  const entries = Object.entries(found);
  if (!entries.length) return hint(t("fresh.noProblem"));
  return table(t("fresh.problems"), [t("fresh.component"), t("fresh.problem")], entries.map(([name, text]) => [name, source(text, "/readyz", "notes")]));
}

const heads = () => [t("fresh.what"), t("fresh.when"), t("fresh.result")];

function runs({ now, bundles: { served, training, nightly }, store: kept }) {
  const refresh = kept?.refresh;
  const from = (at, find) => (at ? source(time(at, now), PATH, find) : nothing);
  return table(t("fresh.runs"), heads(), [
    [t("fresh.events"), from(served?.trained_until, "bundles.served"), served ? source(served.bundle, PATH, "bundles.served") : nothing],
    [t("fresh.published"), from(served?.published?.at, "bundles.served.published"),
      served?.published ? t("fresh.by", { by: served.published.by, why: served.published.why || nothing }) : t("fresh.unknown")],
    [t("fresh.training"), from(training?.at, "bundles.training"),
      training ? t(training.current ? "fresh.trainedCurrent" : "fresh.trainedOther", { bundle: training.bundle }) : t("fresh.unknown")],
    [t("fresh.nightly"), from(nightly?.ended || nightly?.started, "bundles.nightly"), nightly ? `${nightly.status}: ${nightly.reason}` : t("fresh.noNight")],
    [t("fresh.refresh"), from(refresh?.at, "store.refresh"),
      refresh ? t("fresh.refreshed", { users: number(refresh.users), events: number(refresh.table_events + refresh.log_events), seconds: seconds(refresh.seconds) }) : t("fresh.unknown")],
  ]);
}

function log({ now, log: found }) {
  if (!found) return hint(t("fresh.noLog"));
  const from = (content) => source(content, PATH, "log");
  const streams = found.streams.map((of) => [
    of.stream, from(of.newest ? time(of.newest, now) : nothing),
    from(`${of.exact ? "" : "≈ "}${number(of.records)}`), from(bytes(of.bytes)),
  ]);
  const readers = found.readers.map((of) => [of.name, from(seconds(of.seconds)), from(bytes(of.behind))]);
  const box = make("div");
  if (found.fault) box.append(make("p", "note", found.fault));
  box.append(table(t("fresh.log"), [t("fresh.stream"), t("fresh.newest"), t("fresh.records"), t("fresh.size")], streams));
  if (readers.length) box.append(table(t("fresh.readers"), [t("fresh.reader"), t("fresh.advanced"), t("fresh.behind")], readers));
  return box;
}

function store({ now, store: found }) {
  if (!found) return hint(t("fresh.noStore"));
  const from = (content) => source(content, PATH, "store");
  const rows = [
    [t("fresh.status"), from(t(`status.${found.status}`))],
    [t("fresh.latest"), from(found.latest ? time(found.latest, now) : nothing)],
    [t("fresh.lag"), source(seconds(found.lag_seconds), "/metrics", "recsys_store_lag_seconds")],
    [t("fresh.lagBytes"), source(found.lag_bytes === null ? nothing : bytes(found.lag_bytes), "/metrics", "recsys_store_lag_bytes")],
    [t("fresh.memory"), from(found.memory_limit ? t("now.of", { ready: bytes(found.memory), all: bytes(found.memory_limit) }) : bytes(found.memory))],
  ];
  if (found.warning) rows.push([t("fresh.warning"), from(found.warning)]);
  return table(t("fresh.store"), [t("fresh.what"), t("fresh.value")], rows);
}
