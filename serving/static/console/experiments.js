// The experiments that run, and the shares of their variants, from /v1/about.

import { call } from "../lib/api.js";
import { t } from "../lib/strings.js";
import { hint, nothing, part, share, source, table } from "./parts.js";

const PATH = "/v1/about";

export async function experiments(view) {
  const [about] = await call(PATH);
  const from = (content, at, find) => source(content, PATH, `experiments.${at}${find}`);
  view.replaceChildren(...about.experiments.map((experiment, at) => part(
    experiment.name,
    hint(t("exper.facts", {
      share: share(experiment.share),
      placements: experiment.placements.join(", ") || t("exper.everywhere"),
      layer: experiment.layer ?? nothing,
    })),
    table(experiment.name, [t("exper.variant"), t("exper.share"), t("exper.rules"), t("exper.bundle"), t("exper.served")],
      Object.entries(experiment.variants).map(([name, variant]) => [
        name,
        from(share(variant.share), at, `.variants.${name}`),
        variant.rules || nothing,
        variant.bundle || nothing,
        from(t(variant.served ? "exper.yes" : "exper.no"), at, `.variants.${name}`),
      ])),
  )));
  if (!about.experiments.length) view.replaceChildren(hint(t("exper.none")));
}
