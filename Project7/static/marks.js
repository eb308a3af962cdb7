// The hints as they lie on the photo: a ring for a click, a line for a stroke. Rings can be dragged, moved and deleted.

const SVG = "http://www.w3.org/2000/svg";

// layer: an element over the pane. hear: {select(id), moved(id, dx, dy), remove(id)}, distances in the photo's pixels.
export function makeMarks(layer, view, hear) {
  let shown = { hints: [], selected: null, best: null, cursor: null };

  function draw() {
    const focused = layer.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    const lines = document.createElementNS(SVG, "svg");
    lines.setAttribute("aria-hidden", "true");
    const marks = shown.hints.map((hint, number) => {
      if (hint.points.length > 1) lines.append(...strokeLines(hint));
      return mark(hint, number);
    });
    layer.replaceChildren(lines, ...marks, ...spot(shown.best, "best"), ...spot(shown.cursor, "cursor"));
    if (focused) layer.querySelector(`[data-id="${focused}"]`)?.focus();
  }

  function strokeLines(hint) {
    const points = hint.points.map(([x, y]) => view.toPane(x, y).join(",")).join(" ");
    return ["outline", "stroke"].map((kind) => {
      const line = document.createElementNS(SVG, "polyline");
      line.setAttribute("points", points);
      line.setAttribute("class", kind);
      if (kind === "stroke") line.style.stroke = hint.color ?? "transparent";
      return line;
    });
  }

  function spot(place, kind) {
    if (!place) return [];
    const found = document.createElement("span");
    found.className = kind;
    put(found, place);
    return [found];
  }

  function put(element, [x, y]) {
    const [left, top] = view.toPane(x, y);
    element.style.left = `${left}px`;
    element.style.top = `${top}px`;
  }

  function mark(hint, number) {
    const button = document.createElement("button");
    button.className = "mark";
    button.dataset.id = hint.id;
    button.classList.toggle("selected", hint.id === shown.selected);
    button.classList.toggle("open", !hint.color);
    button.style.setProperty("--color", hint.color ?? "transparent");
    button.setAttribute("aria-label", `Hint ${number + 1}, ${hint.color ?? "no colour yet"}; arrow keys move it, Delete removes it`);
    put(button, hint.points[0]);
    let from = null;
    let far = [0, 0];
    button.addEventListener("pointerdown", (event) => {
      event.stopPropagation();
      button.setPointerCapture(event.pointerId);
      from = [event.clientX, event.clientY];
      far = [0, 0];
    });
    button.addEventListener("pointermove", (event) => {
      if (!from) return;
      far = [(event.clientX - from[0]) / view.zoom, (event.clientY - from[1]) / view.zoom];
      put(button, [hint.points[0][0] + far[0], hint.points[0][1] + far[1]]);
    });
    button.addEventListener("pointerup", () => {
      from = null;
      if (Math.hypot(...far) * view.zoom > 4) hear.moved(hint.id, ...far);
      else hear.select(hint.id);
    });
    button.addEventListener("keydown", (event) => {
      const step = (event.shiftKey ? 10 : 1) * Math.max(1, Math.min(view.width, view.height) / 100);
      const way = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
      if (way) hear.moved(hint.id, ...way);
      else if (event.key === "Delete" || event.key === "Backspace") hear.remove(hint.id);
      else if (event.key === "Enter" || event.key === " ") hear.select(hint.id);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    return button;
  }

  return {
    show(changes) {
      shown = { ...shown, ...changes };
      draw();
    },
    draw,
  };
}
