// Figures from /metrics, the text format of Prometheus: what has happened between two readings of it.

const LINE = /^(\w+)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

// Series of a text: "name{labels}" -> {name, labels, value}.
export function parse(text) {
  const series = new Map();
  for (const line of text.split("\n")) {
    const found = LINE.exec(line);
    if (!found || line.startsWith("#")) continue;
    const labels = Object.fromEntries([...(found[2] || "").matchAll(LABEL)].map(([, name, value]) => [name, value]));
    series.set(line.slice(0, line.lastIndexOf(" ")), { name: found[1], labels, value: Number(found[3].replace("+Inf", "Infinity")) });
  }
  return series;
}

// What counters have gained since an earlier reading; since the start of the service without one.
export function gained(series, before) {
  return [...series].map(([key, one]) => ({ ...one, value: one.value - (before?.get(key)?.value || 0) }));
}

const meets = (labels, where) => Object.entries(where).every(([name, value]) => labels[name] === value);

// The sum over the series of a name whose labels are these.
export function total(list, name, where = {}) {
  return list.reduce((sum, one) => (one.name === name && meets(one.labels, where) ? sum + one.value : sum), 0);
}

// The values of a label -> the sum over its series, without those that are 0.
export function by(list, name, label, where = {}) {
  const sums = new Map();
  for (const one of list) {
    if (one.name === name && meets(one.labels, where)) sums.set(one.labels[label], (sums.get(one.labels[label]) || 0) + one.value);
  }
  return [...sums].filter(([, value]) => value);
}

// The value below which a share of the observations lies, by the buckets of a histogram; null without observations.
// Within a bucket they are taken to be spread evenly; beyond the last bound it is that bound, and `beyond` is true.
export function quantile(list, name, at, where = {}) {
  const counts = by(list, `${name}_bucket`, "le", where).map(([bound, count]) => [Number(bound.replace("+Inf", "Infinity")), count]).sort((a, b) => a[0] - b[0]);
  const all = counts.length ? counts[counts.length - 1][1] : 0;
  if (!(all > 0)) return null;
  let [low, under] = [0, 0];
  for (const [bound, count] of counts) {
    if (count >= at * all) {
      if (bound === Infinity) return { value: low, beyond: true };
      return { value: low + ((bound - low) * (at * all - under)) / (count - under), beyond: false };
    }
    [low, under] = [bound, count];
  }
  return null;
}
