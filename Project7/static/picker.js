// A plane of the colours that exist at one lightness, to click on or to walk over with the arrow keys.

import { chromaThatFits, fromHex, inGamut, labToRgb, rgbToLab, toHex } from "./color.js";

const SIDE = 144; // cells of the plane
const STEP = 2; // Lab units of an arrow key

// canvas: gets a tab stop. choose(hex): is called when a colour is chosen.
export function makePicker(canvas, choose) {
  const context = canvas.getContext("2d");
  let [L, a, b, reach] = [50, 0, 0, 100];
  let middle = [0, 0]; // of the plane, in Lab units
  canvas.width = canvas.height = SIDE;

  const toCell = (ca, cb) => [ca - middle[0], middle[1] - cb].map((v) => ((v / reach + 1) / 2) * (SIDE - 1));
  const toUnits = (x, y) => {
    const [right, down] = [x, y].map((cell) => ((2 * cell) / (SIDE - 1) - 1) * reach);
    return [middle[0] + right, middle[1] - down];
  };

  function draw() {
    const image = context.createImageData(SIDE, SIDE);
    for (let y = 0; y < SIDE; y++) {
      for (let x = 0; x < SIDE; x++) {
        const [ca, cb] = toUnits(x, y);
        if (inGamut(L, ca, cb)) image.data.set([...labToRgb(L, ca, cb), 255], 4 * (y * SIDE + x));
      }
    }
    context.putImageData(image, 0, 0);
    context.beginPath();
    context.arc(...toCell(a, b), 5, 0, 2 * Math.PI);
    context.lineWidth = 2;
    context.strokeStyle = L > 55 ? "#000" : "#fff";
    context.stroke();
  }
  const hex = () => toHex(labToRgb(L, a, b));
  function move(na, nb) {
    const share = chromaThatFits(L, na, nb);
    [a, b] = [na * share, nb * share];
    draw();
    canvas.setAttribute("aria-valuetext", hex());
  }
  function at(event) {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    move(...toUnits(((event.clientX - left) / width) * (SIDE - 1), ((event.clientY - top) / height) * (SIDE - 1)));
  }
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    at(event);
  });
  canvas.addEventListener("pointermove", (event) => canvas.hasPointerCapture(event.pointerId) && at(event));
  canvas.addEventListener("pointerup", () => choose(hex()));
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, STEP], ArrowDown: [0, -STEP] }[event.key];
    if (steps) move(a + steps[0], b + steps[1]);
    else if (event.key === "Enter" || event.key === " ") choose(hex());
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  return {
    // Shows the colours of a lightness, with one of them marked.
    show(lightness, color) {
      L = Math.min(99, Math.max(1, lightness));
      const edge = Array.from({ length: 72 }, (_, n) => {
        const [ua, ub] = [130 * Math.cos((n * Math.PI) / 36), 130 * Math.sin((n * Math.PI) / 36)];
        const share = chromaThatFits(L, ua, ub);
        return [ua * share, ub * share];
      });
      const ends = [0, 1].map((i) => [Math.min(...edge.map((p) => p[i])), Math.max(...edge.map((p) => p[i]))]);
      middle = ends.map(([low, high]) => (low + high) / 2);
      reach = 1.06 * Math.max(5, ...ends.map(([low, high]) => (high - low) / 2));
      const [, ca, cb] = color ? rgbToLab(fromHex(color)) : [0, 0, 0];
      move(ca, cb);
    },
  };
}
