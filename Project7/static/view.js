// A pane that shows a photo: zoom, pan, and gestures on the photo in its own pixels.

const MOST = 16; // CSS pixels to a pixel of the photo
const STILL = 5; // CSS pixels that a finger may tremble

// Makes a pane pan and zoom. `changed()` is called after each change; `gesture` gets {tap(x, y), begin(x, y),
// move(x, y), end()} with places in the photo. Panes in `twins` follow.
export function makeView(pane, holder, { changed = () => {}, gesture = {}, movesOnly = () => false } = {}) {
  const view = { width: 1, height: 1, zoom: 1, x: 0, y: 0, whole: true, twins: [] };
  const pointers = new Map();
  let stroke = null;
  let pinch = null;

  const rect = () => pane.getBoundingClientRect();
  view.toPhoto = (clientX, clientY) => {
    const { left, top } = rect();
    return [(clientX - left - view.x) / view.zoom, (clientY - top - view.y) / view.zoom];
  };
  view.toPane = (x, y) => [x * view.zoom + view.x, y * view.zoom + view.y];
  view.contains = (x, y) => x >= 0 && y >= 0 && x < view.width && y < view.height;

  function fitting() {
    const { width, height } = rect();
    return Math.min(width / view.width, height / view.height, 8) || 1;
  }
  function show() {
    const { width, height } = rect();
    const [w, h] = [view.width * view.zoom, view.height * view.zoom];
    view.x = w <= width ? (width - w) / 2 : Math.min(0, Math.max(width - w, view.x));
    view.y = h <= height ? (height - h) / 2 : Math.min(0, Math.max(height - h, view.y));
    holder.style.width = `${view.width}px`;
    holder.style.height = `${view.height}px`;
    holder.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.zoom})`;
    holder.classList.toggle("pixels", view.zoom > 2);
    changed(view);
  }
  function tell() {
    for (const twin of view.twins) twin.follow(view);
    show();
  }
  view.follow = (other) => {
    [view.zoom, view.x, view.y, view.whole] = [other.zoom, other.x, other.y, other.whole];
    show();
  };
  view.fit = (width = view.width, height = view.height) => {
    [view.width, view.height] = [width, height];
    view.zoom = fitting();
    view.whole = true;
    tell();
  };
  view.zoomTo = (zoom, clientX, clientY) => {
    const { left, top, width, height } = rect();
    const [px, py] = [(clientX ?? left + width / 2) - left, (clientY ?? top + height / 2) - top];
    const next = Math.min(Math.max(MOST, fitting()), Math.max(fitting(), zoom));
    view.x = px - ((px - view.x) * next) / view.zoom;
    view.y = py - ((py - view.y) * next) / view.zoom;
    view.zoom = next;
    view.whole = next === fitting();
    tell();
  };
  view.pan = (dx, dy) => {
    view.x += dx;
    view.y += dy;
    tell();
  };

  pane.addEventListener("wheel", (event) => {
    event.preventDefault();
    view.zoomTo(view.zoom * Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX, event.clientY);
  }, { passive: false });

  pane.addEventListener("pointerdown", (event) => {
    if (event.target.closest("button, input, select")) return;
    pane.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, event);
    if (pointers.size === 2) {
      if (stroke?.begun) gesture.cancel?.();
      stroke = null;
      pinch = spread();
    } else if (pointers.size === 1) {
      stroke = { from: event, moves: movesOnly() || event.button === 1, begun: false, last: event };
    }
  });
  pane.addEventListener("pointermove", (event) => {
    if (!pointers.has(event.pointerId)) return;
    pointers.set(event.pointerId, event);
    if (pinch && pointers.size === 2) {
      const now = spread();
      view.x += now.x - pinch.x;
      view.y += now.y - pinch.y;
      view.zoomTo((view.zoom * now.distance) / pinch.distance, now.x, now.y);
      pinch = now;
    } else if (stroke) {
      const far = Math.hypot(event.clientX - stroke.from.clientX, event.clientY - stroke.from.clientY) > STILL;
      if (!stroke.begun && !far) return;
      if (stroke.moves) view.pan(event.clientX - stroke.last.clientX, event.clientY - stroke.last.clientY);
      else if (stroke.begun) gesture.move?.(...view.toPhoto(event.clientX, event.clientY));
      else gesture.begin?.(...view.toPhoto(stroke.from.clientX, stroke.from.clientY));
      stroke.begun = true;
      stroke.last = event;
    }
  });
  function lift(event) {
    if (!pointers.delete(event.pointerId)) return;
    pinch = null;
    if (!stroke || pointers.size) return;
    if (stroke.begun && !stroke.moves) gesture.end?.();
    else if (!stroke.begun && event.type === "pointerup" && event.button === 0) {
      gesture.tap?.(...view.toPhoto(event.clientX, event.clientY));
    }
    stroke = null;
  }
  pane.addEventListener("pointerup", lift);
  pane.addEventListener("pointercancel", lift);

  function spread() {
    const [a, b] = [...pointers.values()];
    const [x, y] = [(a.clientX + b.clientX) / 2, (a.clientY + b.clientY) / 2];
    return { x, y, distance: Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY) || 1 };
  }

  new ResizeObserver(() => (view.whole ? view.fit() : show())).observe(pane);
  return view;
}
