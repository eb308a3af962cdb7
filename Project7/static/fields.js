// What the server gives of an answer, and how it becomes lines of chroma over lightness (guided_filter.py).

const SCALE = 128; // steps of a Lab unit
const EPS = 0.05; // variance of L, in [-1, 1], below which a window counts as flat

// The JSON of an answer -> {width, height, flat, channels: Float32Array[]} in Lab units; see OpenPhoto.fields.
export function decode({ width, height, flat, channels, data }) {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const size = width * height;
  const found = Array.from({ length: 7 }, (_, c) => {
    const values = new Float32Array(size);
    if (c < channels) for (let n = 0; n < size; n++) values[n] = view.getInt16(2 * (c * size + n), true) / SCALE;
    return values;
  });
  return { width, height, flat, channels: found };
}

// a and b, of the strength and the warmth that are wanted.
function toned({ channels }, { saturation, warmth }) {
  const [, , a, b, hintA, hintB, share] = channels;
  return [
    a.map((v, n) => saturation * v + hintA[n]),
    b.map((v, n) => saturation * v + warmth * (1 - share[n]) + hintB[n]),
  ];
}

// Six values a pixel, such that a = k[0] L + c[0], b = k[1] L + c[1], change of L = k[2] L + c[2], with L in [-1, 1].
export function lines(fields, tone) {
  const { width, height, flat, channels } = fields;
  const L = channels[0].map((v) => v / 50 - 1);
  const meanL = box(L, width, height);
  const meanLL = box(L.map((v) => v * v), width, height);
  return [...toned(fields, tone), channels[1]].map((x) => {
    if (flat) return { k: new Float32Array(x.length), c: x };
    const meanX = box(x, width, height);
    const meanLX = box(x.map((v, n) => v * L[n]), width, height);
    const slope = x.map((_, n) => (meanLX[n] - meanL[n] * meanX[n]) / (meanLL[n] - meanL[n] * meanL[n] + EPS));
    const k = box(slope, width, height);
    return { k, c: x.map((v, n) => v - k[n] * L[n]) };
  });
}

// The mean over 3 x 3 pixels, counting only what lies inside.
function box(x, width, height) {
  const out = new Float32Array(x.length);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      let sum = 0;
      let count = 0;
      for (let r = Math.max(0, row - 1); r <= Math.min(height - 1, row + 1); r++) {
        for (let c = Math.max(0, column - 1); c <= Math.min(width - 1, column + 1); c++, count++) sum += x[r * width + c];
      }
      out[row * width + column] = sum / count;
    }
  }
  return out;
}
