// Points on a canvas, pixel by pixel. Without a graphics card this is ten times as fast as WebGL, for 100,000 points.
// A library for scatter plots (regl-scatterplot) makes code at run time, which the page's policy forbids.

// A colour as the number that its pixel has in memory.
export const pixelOf = (rgb) => new Uint32Array(new Uint8Array([...rgb, 255]).buffer)[0];

// The pixels of a disc around a pixel, as [dx, dy].
function disc(size) {
  const reach = (size - 1) / 2;
  const all = [];
  for (let dy = 0; dy < size; dy++) {
    for (let dx = 0; dx < size; dx++) {
      if (Math.hypot(dx - reach, dy - reach) <= size / 2) all.push([dx - Math.floor(reach), dy - Math.floor(reach)]);
    }
  }
  return all;
}

// Returns draw(points, colours, order, ground, view). points: Float32Array (2 n); colours: Uint32Array (n), as pixelOf
// gives them; order: Uint32Array, the points from the lowest to the uppermost; view: as in main.js.
export function pointPainter(canvas) {
  const pen = canvas.getContext("2d", { alpha: false });
  let image = null;
  return (points, colours, order, ground, { x, y, zoom, ratio }) => {
    const { width, height } = canvas;
    if (!image || image.width !== width || image.height !== height) image = pen.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    pixels.fill(ground);
    const scale = zoom * ratio; // pixels of the canvas for a unit
    const [left, top] = [width / 2 - x * scale, height / 2 - y * scale];
    const size = Math.round(Math.min(13, Math.max(2, (zoom / Math.sqrt(order.length)) * 0.35)) * ratio);
    const offsets = Int32Array.from(disc(size), ([dx, dy]) => dy * width + dx);
    const edge = Math.ceil(size / 2);
    for (let n = 0; n < order.length; n++) {
      const i = order[n];
      const across = (points[2 * i] * scale + left) | 0;
      const down = (points[2 * i + 1] * scale + top) | 0;
      if (across < edge || across >= width - edge || down < edge || down >= height - edge) continue;
      const at = down * width + across;
      for (let k = 0; k < offsets.length; k++) pixels[at + offsets[k]] = colours[i];
    }
    pen.putImageData(image, 0, 0);
  };
}
