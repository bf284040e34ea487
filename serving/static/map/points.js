// Points on a canvas by WebGL: any number of them is one call for each frame.
// A library for scatter plots (regl-scatterplot) makes code at run time, which the page's policy forbids.

const VERTEX = `
attribute vec2 place;   // 0..1
attribute vec4 colour;
uniform vec2 scale, shift;
uniform float size;
varying vec4 tint;
void main() {
  gl_Position = vec4(place * scale + shift, 0.0, 1.0);
  gl_PointSize = size;
  tint = colour;
}`;
const FRAGMENT = `
precision mediump float;
varying vec4 tint;
void main() {
  if (distance(gl_PointCoord, vec2(0.5)) > 0.5) discard;
  gl_FragColor = tint;
}`;

function shader(gl, kind, source) {
  const made = gl.createShader(kind);
  gl.shaderSource(made, source);
  gl.compileShader(made);
  return made;
}

// Returns {place(points), colour(rgba), ground(rgb), draw(view)}; null where the browser has no WebGL.
// points: Float32Array (2 n); rgba: Uint8Array (4 n); rgb: behind the points; view: as in main.js.
export function pointPainter(canvas) {
  const gl = canvas.getContext("webgl", { antialias: false, alpha: false });
  if (!gl) return null;
  const program = gl.createProgram();
  gl.attachShader(program, shader(gl, gl.VERTEX_SHADER, VERTEX));
  gl.attachShader(program, shader(gl, gl.FRAGMENT_SHADER, FRAGMENT));
  gl.linkProgram(program);
  gl.useProgram(program);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
  const uniform = (name) => gl.getUniformLocation(program, name);
  const [scale, shift, size] = ["scale", "shift", "size"].map(uniform);

  const attribute = (name, width, kind, normalized) => {
    const buffer = gl.createBuffer();
    const at = gl.getAttribLocation(program, name);
    return (values) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
      gl.enableVertexAttribArray(at);
      gl.vertexAttribPointer(at, width, kind, normalized, 0, 0);
      return values.length / width;
    };
  };
  const placed = attribute("place", 2, gl.FLOAT, false);
  let count = 0;
  return {
    place: (points) => { count = placed(points); },
    colour: attribute("colour", 4, gl.UNSIGNED_BYTE, true),
    ground: (rgb) => gl.clearColor(...rgb.map((part) => part / 255), 1),
    draw: ({ x, y, zoom, width, height, ratio }) => {
      gl.viewport(0, 0, canvas.width, canvas.height);
      gl.clear(gl.COLOR_BUFFER_BIT);
      // screen = (place - (x, y)) * zoom + middle, in pixels; WebGL counts from -1 to 1, and upwards
      gl.uniform2f(scale, (2 * zoom) / width, (-2 * zoom) / height);
      gl.uniform2f(shift, (-2 * x * zoom) / width, (2 * y * zoom) / height);
      gl.uniform1f(size, Math.min(14, Math.max(2, (zoom / Math.sqrt(count)) * 0.35)) * ratio);
      gl.drawArrays(gl.POINTS, 0, count);
    },
  };
}
