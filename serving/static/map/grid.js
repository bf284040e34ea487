// The nearest point to a place, by a grid of cells.

const CELLS = 256; // along each side

// points: Float32Array (2 n) from 0 to 1. Returns nearest(x, y, reach): the number of a point, -1 for none within reach.
export function nearestPoint(points) {
  const n = points.length / 2;
  const cellOf = (value) => Math.min(CELLS - 1, Math.max(0, Math.floor(value * CELLS)));
  const start = new Uint32Array(CELLS * CELLS + 1); // the points of cell c are order[start[c] .. start[c + 1]]
  const cells = new Uint32Array(n);
  for (let i = 0; i < n; i++) {
    cells[i] = cellOf(points[2 * i + 1]) * CELLS + cellOf(points[2 * i]);
    start[cells[i] + 1]++;
  }
  for (let c = 0; c < CELLS * CELLS; c++) start[c + 1] += start[c];
  const order = new Uint32Array(n);
  const next = start.slice();
  for (let i = 0; i < n; i++) order[next[cells[i]]++] = i;
  return (x, y, reach) => {
    let best = -1;
    let least = reach * reach;
    for (let row = cellOf(y - reach); row <= cellOf(y + reach); row++) {
      for (let at = start[row * CELLS + cellOf(x - reach)]; at < start[row * CELLS + cellOf(x + reach) + 1]; at++) {
        const i = order[at];
        const far = (points[2 * i] - x) ** 2 + (points[2 * i + 1] - y) ** 2;
        if (far <= least) [best, least] = [i, far];
      }
    }
    return best;
  };
}
