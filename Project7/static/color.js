// sRGB <-> CIE Lab, and what a screen can show: the numbers of color.py, for single colours and for arrays.

const DELTA = 6 / 29;
const TO_RGB = [
  [3.0799803733825684, -1.537151575088501, -0.5428212881088257],
  [-0.9212477803230286, 1.8759900331497192, 0.045247338712215424],
  [0.052890460938215256, -0.20404133200645447, 1.1512320041656494],
];
const TO_XYZ = [
  [0.4339463710784912, 0.3762138783931732, 0.18982502818107605],
  [0.21267099678516388, 0.7151600122451782, 0.0721689984202385],
  [0.01775667443871498, 0.10946887731552124, 0.8727046251296997],
];
const STEPS = 10; // of the bisection that brings a colour into sRGB
const TOLERANCE = 2e-5;

const toLinear = (v) => (v > 0.04045 ? ((v + 0.055) / 1.055) ** 2.4 : v / 12.92);
const toSrgb = (v) => (v > 0.0031308 ? 1.055 * v ** (1 / 2.4) - 0.055 : v * 12.92);
const inverse = (f) => (f > DELTA ? f * f * f : 3 * DELTA * DELTA * (f - 4 / 29));
const root = (v) => (v > DELTA ** 3 ? Math.cbrt(v) : v / (3 * DELTA * DELTA) + 4 / 29);
const byte = (v) => Math.round(Math.min(1, Math.max(0, v)) * 255);

// L of each gray level.
export const LIGHTNESS = Float32Array.from({ length: 256 }, (_, v) => 116 * root(toLinear(v / 255)) - 16);

export function labToLinear(L, a, b) {
  const y = (L + 16) / 116;
  const xyz = [inverse(y + a / 500), inverse(y), inverse(y - b / 200)];
  return TO_RGB.map((row) => row[0] * xyz[0] + row[1] * xyz[1] + row[2] * xyz[2]);
}

const fits = (linear) => linear.every((v) => v >= -TOLERANCE && v <= 1 + TOLERANCE);

export const inGamut = (L, a, b) => fits(labToLinear(L, a, b));

// The share of its chroma at which a colour can be shown, at its lightness.
export function chromaThatFits(L, a, b) {
  if (inGamut(L, a, b)) return 1;
  let [low, high] = [0, 1];
  for (let n = 0; n < STEPS; n++) {
    const middle = (low + high) / 2;
    if (inGamut(L, a * middle, b * middle)) low = middle;
    else high = middle;
  }
  return low;
}

export function labToRgb(L, a, b) {
  const share = chromaThatFits(L, a, b);
  return labToLinear(L, a * share, b * share).map((v) => byte(toSrgb(v)));
}

export function rgbToLab([r, g, b]) {
  const linear = [r, g, b].map((v) => toLinear(v / 255));
  const [x, y, z] = TO_XYZ.map((row) => root(row[0] * linear[0] + row[1] * linear[1] + row[2] * linear[2]));
  return [116 * y - 16, 500 * (x - y), 200 * (y - z)];
}

export const toHex = (rgb) => `#${rgb.map((v) => v.toString(16).padStart(2, "0")).join("")}`;
export const fromHex = (hex) => [1, 3, 5].map((n) => parseInt(hex.slice(n, n + 2), 16));
