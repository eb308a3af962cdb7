// Chroma laid onto lightness as painting.py does it: on the graphics card, and in plain JavaScript for small pictures.

import { LIGHTNESS, labToRgb } from "./color.js";
import { lines } from "./fields.js";

const VERTEX = `#version 300 es
in vec2 place;
void main() { gl_Position = vec4(place, 0.0, 1.0); }`;

const FRAGMENT = `#version 300 es
precision highp float;
precision highp sampler2D;
uniform sampler2D gray, chroma, change;  // (W, H) levels; (W, h) k and c of a and b; k and c of L's change
uniform float divider;                   // left of it the picture stays gray
uniform bool lifted;                     // L changes
out vec4 color;
const float DELTA = 6.0 / 29.0;

float toLinear(float v) { return v > 0.04045 ? pow((v + 0.055) / 1.055, 2.4) : v / 12.92; }
float toSrgb(float v) { return v > 0.0031308 ? 1.055 * pow(v, 1.0 / 2.4) - 0.055 : v * 12.92; }
float unroot(float f) { return f > DELTA ? f * f * f : 3.0 * DELTA * DELTA * (f - 4.0 / 29.0); }
float lightness(float y) {
  float f = y > DELTA * DELTA * DELTA ? pow(y, 1.0 / 3.0) : y / (3.0 * DELTA * DELTA) + 4.0 / 29.0;
  return 116.0 * f - 16.0;
}
vec3 linear(float L, vec2 ab) {
  float y = (L + 16.0) / 116.0;
  float X = unroot(y + ab.x / 500.0), Y = unroot(y), Z = unroot(y - ab.y / 200.0);
  return vec3(3.0799803733825684 * X - 1.537151575088501 * Y - 0.5428212881088257 * Z,
              -0.9212477803230286 * X + 1.8759900331497192 * Y + 0.045247338712215424 * Z,
              0.052890460938215256 * X - 0.20404133200645447 * Y + 1.1512320041656494 * Z);
}
bool fits(vec3 rgb) { return all(greaterThanEqual(rgb, vec3(-2e-5))) && all(lessThanEqual(rgb, vec3(1.0 + 2e-5))); }
float weight(float d) {  // Keys' cubic with a = -0.75, as PyTorch's bicubic
  d = abs(d);
  return d <= 1.0 ? (1.25 * d - 2.25) * d * d + 1.0 : d < 2.0 ? ((-0.75 * d + 3.75) * d - 6.0) * d + 3.0 : 0.0;
}
void main() {
  ivec2 full = textureSize(gray, 0);
  int rows = textureSize(chroma, 0).y;
  ivec2 here = ivec2(gl_FragCoord.x, float(full.y) - gl_FragCoord.y);
  float level = texelFetch(gray, here, 0).r;
  if (gl_FragCoord.x < divider) { color = vec4(vec3(level), 1.0); return; }
  float at = (float(here.y) + 0.5) * float(rows) / float(full.y) - 0.5;
  int first = int(floor(at)) - 1;
  vec4 lines = vec4(0.0);
  vec2 lift = vec2(0.0);
  for (int row = first; row < first + 4; row++) {
    ivec2 tap = ivec2(here.x, clamp(row, 0, rows - 1));
    float w = weight(at - float(row));
    lines += w * texelFetch(chroma, tap, 0);
    if (lifted) lift += w * texelFetch(change, tap, 0).rg;
  }
  float L = lightness(toLinear(level)), l = L / 50.0 - 1.0;
  vec2 ab = lines.xy * l + lines.zw;
  L = clamp(L + lift.x * l + lift.y, 0.0, 100.0);
  vec3 rgb = linear(L, ab);
  if (!fits(rgb)) {
    float low = 0.0, high = 1.0;
    for (int n = 0; n < 10; n++) {
      float middle = (low + high) / 2.0;
      if (fits(linear(L, ab * middle))) low = middle; else high = middle;
    }
    rgb = linear(L, ab * low);
  }
  color = vec4(toSrgb(rgb.r), toSrgb(rgb.g), toSrgb(rgb.b), 1.0);
}`;

// A painter of one photo onto one canvas. gray: an ImageBitmap.
export function makePainter(canvas, gray) {
  canvas.width = gray.width;
  canvas.height = gray.height;
  const gl = canvas.getContext("webgl2", { preserveDrawingBuffer: true, alpha: false, antialias: false });
  return gl ? onCard(gl, gray) : onProcessor(canvas, gray);
}

function onCard(gl, gray) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  gl.useProgram(program);
  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, -1, 3, -1, -1, 3]), gl.STATIC_DRAW);
  gl.enableVertexAttribArray(0);
  gl.vertexAttribPointer(gl.getAttribLocation(program, "place"), 2, gl.FLOAT, false, 0, 0);
  const textures = ["gray", "chroma", "change"].map((name, unit) => {
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    for (const side of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, side, gl.NEAREST);
    for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, side, gl.CLAMP_TO_EDGE);
    gl.uniform1i(gl.getUniformLocation(program, name), unit);
    return gl.TEXTURE0 + unit;
  });
  const [divider, lifted] = ["divider", "lifted"].map((name) => gl.getUniformLocation(program, name));
  gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.activeTexture(textures[0]);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.R8, gl.RED, gl.UNSIGNED_BYTE, gray);
  gl.viewport(0, 0, gray.width, gray.height);

  // Fields become the channels of a texture, enlarged along their rows: the card has only the columns to do.
  function upload(unit, format, kind, channels, { width: w, height: h }) {
    const values = new Float32Array(channels.length * gray.width * h);
    channels.forEach((channel, n) => alongRows(channel, w, h, gray.width).forEach((v, at) => (values[channels.length * at + n] = v)));
    gl.activeTexture(textures[unit]);
    gl.texImage2D(gl.TEXTURE_2D, 0, format, gray.width, h, 0, kind, gl.FLOAT, values);
  }
  return {
    draw(fields, tone, share = 0) {
      const [a, b, L] = lines(fields, tone);
      const lifts = L.k.some(Boolean) || L.c.some(Boolean);
      gl.uniform1i(lifted, lifts);
      upload(1, gl.RGBA32F, gl.RGBA, [a.k, b.k, a.c, b.c], fields);
      if (lifts) upload(2, gl.RG32F, gl.RG, [L.k, L.c], fields);
      this.split(share);
    },
    split(share) {
      gl.uniform1f(divider, share * gray.width);
      gl.drawArrays(gl.TRIANGLES, 0, 3);
    },
    close() {
      gl.getExtension("WEBGL_lose_context")?.loseContext();
    },
  };
}

function onProcessor(canvas, gray) {
  const context = canvas.getContext("2d");
  const levels = grayLevels(gray, gray.width, gray.height);
  let picture = null;
  return {
    draw(fields, tone, share = 0) {
      picture = paint(levels, gray.width, gray.height, fields, tone);
      this.split(share);
    },
    split(share) {
      if (picture) context.putImageData(picture, 0, 0);
      const left = Math.round(share * gray.width);
      if (left) context.drawImage(gray, 0, 0, left, gray.height, 0, 0, left, gray.height);
    },
    close() {},
  };
}

// The gray levels of a picture at a size.
export function grayLevels(image, width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const levels = new Uint8ClampedArray(width * height);
  for (let n = 0; n < levels.length; n++) levels[n] = data[4 * n];
  return levels;
}

// The same as the card, for thumbnails and where there is no card.
export function paint(levels, width, height, fields, tone) {
  const [a, b, lift] = lines(fields, tone).map(({ k, c }) => ({
    k: enlarge(k, fields, width, height),
    c: enlarge(c, fields, width, height),
  }));
  const image = new ImageData(width, height);
  for (let n = 0; n < width * height; n++) {
    const level = LIGHTNESS[levels[n]];
    const l = level / 50 - 1;
    const L = Math.min(100, Math.max(0, level + lift.k[n] * l + lift.c[n]));
    const rgb = labToRgb(L, a.k[n] * l + a.c[n], b.k[n] * l + b.c[n]);
    for (let i = 0; i < 3; i++) image.data[4 * n + i] = rgb[i];
    image.data[4 * n + 3] = 255;
  }
  return image;
}

// Bicubic, first along the rows, then along the columns.
function enlarge(values, { width: w, height: h }, width, height) {
  const rows = alongRows(values, w, h, width);
  const down = taps(height, h);
  const out = new Float32Array(height * width);
  for (let y = 0; y < height; y++) {
    for (let n = 4 * y; n < 4 * y + 4; n++) {
      const [weight, from] = [down.weights[n], down.places[n] * width];
      for (let x = 0; x < width; x++) out[y * width + x] += weight * rows[from + x];
    }
  }
  return out;
}

function alongRows(values, w, h, width) {
  const across = taps(width, w);
  const rows = new Float32Array(h * width);
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < width; x++) {
      let sum = 0;
      for (let n = 4 * x; n < 4 * x + 4; n++) sum += across.weights[n] * values[y * w + across.places[n]];
      rows[y * width + x] = sum;
    }
  }
  return rows;
}

// For each place of a line: the four places of the smaller line that make it, and their weights.
function taps(large, small) {
  const keys = (d) => (d <= 1 ? (1.25 * d - 2.25) * d * d + 1 : d < 2 ? ((-0.75 * d + 3.75) * d - 6) * d + 3 : 0);
  const places = new Int32Array(4 * large);
  const weights = new Float32Array(4 * large);
  for (let n = 0; n < large; n++) {
    const at = ((n + 0.5) * small) / large - 0.5;
    const first = Math.floor(at) - 1;
    for (let m = 0; m < 4; m++) {
      places[4 * n + m] = Math.min(small - 1, Math.max(0, first + m));
      weights[4 * n + m] = keys(Math.abs(at - first - m));
    }
  }
  return { places, weights };
}
