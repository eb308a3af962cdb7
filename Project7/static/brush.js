// One answer painted into another along strokes with a soft edge: the arithmetic of brush.py, on the fields of answers.

const MIXED = [1, 2, 3]; // channels of OpenPhoto.fields that differ between answers
const masks = new WeakMap(); // stroke -> {key, mask}

// Float32Array of how much a stroke {radius, points} over a photo {width, height} covers each cell of a w x h grid.
export function coverage(stroke, photo, w, h) {
  const key = `${w} x ${h}`;
  if (masks.get(stroke)?.key === key) return masks.get(stroke).mask;
  const { radius, points } = stroke;
  const [stepX, stepY] = [photo.width / w, photo.height / h];
  const nearest = new Float64Array(w * h).fill(Infinity); // squared distances
  const cell = (place, step, size) => Math.min(size, Math.max(0, Math.floor(place / step)));
  for (let n = 0; n < Math.max(1, points.length - 1); n++) {
    const [[x0, y0], [x1, y1]] = [points[n], points[n + 1] ?? points[n]];
    const [dx, dy] = [x1 - x0, y1 - y0];
    const length = Math.max(dx * dx + dy * dy, 1e-12);
    const [top, bottom] = [cell(Math.min(y0, y1) - radius, stepY, h), cell(Math.max(y0, y1) + radius + stepY, stepY, h)];
    const [left, right] = [cell(Math.min(x0, x1) - radius, stepX, w), cell(Math.max(x0, x1) + radius + stepX, stepX, w)];
    for (let row = top; row < bottom; row++) {
      for (let column = left; column < right; column++) {
        const [x, y] = [(column + 0.5) * stepX - x0, (row + 0.5) * stepY - y0];
        const along = Math.min(1, Math.max(0, (x * dx + y * dy) / length));
        const square = (x - along * dx) ** 2 + (y - along * dy) ** 2;
        if (square < nearest[row * w + column]) nearest[row * w + column] = square;
      }
    }
  }
  const mask = Float32Array.from(nearest, (square) => {
    const inside = Math.min(1, Math.max(0, 2 - (2 * Math.sqrt(square)) / radius));
    return inside * inside * (3 - 2 * inside);
  });
  masks.set(stroke, { key, mask });
  return mask;
}

// The fields of an answer with strokes of other answers over it. of(seed): the fields of an answer, if they are there.
export function mix(fields, strokes, of, photo) {
  const channels = [...fields.channels];
  for (const stroke of strokes) {
    const other = of(stroke.seed);
    if (!other) continue;
    const mask = coverage(stroke, photo, fields.width, fields.height);
    for (const c of MIXED) channels[c] = channels[c].map((v, n) => v + mask[n] * (other.channels[c][n] - v));
  }
  return { ...fields, channels };
}
