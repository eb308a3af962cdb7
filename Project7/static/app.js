// The page: what is open, what is wanted of it, and what is shown.

import { makeAlbum } from "./album.js";
import * as api from "./api.js";
import { mix } from "./brush.js";
import { LIGHTNESS, toHex } from "./color.js";
import { decode } from "./fields.js";
import { makeHistory } from "./history.js";
import { refill, settle, walk } from "./lists.js";
import { makeMarks } from "./marks.js";
import { grayLevels, makePainter, paint } from "./paint.js";
import { makePicker } from "./picker.js";
import { makeView } from "./view.js";

const $ = (id) => document.getElementById(id);
const ANSWERS = 6; // in the strip
const THUMBNAIL = 76; // CSS pixels of its height
const KEPT = 12; // sets of answers
const STROKE = 40; // points of a stroke at most
const VARIETY = 0.3; // of a classification model, whose answers are one without it
const DOUBT = 30; // Lab units that are shown in full strength
const DABS = 400; // points of a brush stroke at most
const STROKES = 100; // of the brush at most
const FINEST = 4096; // pixels of the long side that are shown at most

let models = [];
let limits = {}; // of the server
let photo = null; // {id, name, width, height, gray: ImageBitmap, scale, side, thumb}
let state = null; // {model, seed, seeds, hints, strokes, saturation, warmth, levels ...}; replaced, never changed
let fields = new Map(); // seed -> fields, of the present model and hints
let shown = null; // the fields in the large pane
let painter = null;
let source = null; // seed of the answer on the brush
let painting = null; // the points of a brush stroke that is being drawn
let second = null; // {painter, fields, model} of the pane beside it
let running = null; // AbortController of the answers
let asking = null; // of a suggestion
let pending = null; // a hint without a colour yet
let selected = null; // id of a hint
let cursor = null; // place of the keyboard's cross
let dropping = false; // the next click takes a colour from the photo
let nextId = 1;
const cache = new Map();

// -- messages --------------------------------------------------------------------------------------------------------

let hushed = 0;
function say(text, seconds = 6) {
  clearTimeout(hushed);
  $("said").textContent = text;
  $("said").classList.toggle("shown", Boolean(text));
  if (text) hushed = setTimeout(() => say(""), seconds * 1000);
}
const fail = (error) => error.name !== "AbortError" && say(error.message, 10);

// -- opening ---------------------------------------------------------------------------------------------------------

let opening = 0;
async function open(getPhoto, name) {
  const mine = ++opening;
  try {
    say("Opening …", 60);
    const opened = await getPhoto();
    const levels = opened.made?.levels ?? "off";
    const side = shownSide();
    const gray = await lightness(opened.id, levels, side);
    if (mine !== opening) return void api.closePhoto(opened.id); // another one has been chosen since
    running?.abort();
    if (photo && !album.busy) api.closePhoto(photo.id);
    say(opened.notes.join("; "));
    $("faded").hidden = !opened.faded;
    show({ ...opened, name, gray, side, auto: levels === "auto" });
    start(opened.made);
  } catch (error) {
    fail(error);
  }
}

// Pixels of the long side that the screen can show of a whole photo; zooming in asks for more.
const shownSide = () => Math.min(FINEST, 256 * Math.ceil((devicePixelRatio * Math.max(innerWidth, innerHeight)) / 256));

async function lightness(id, levels, side) {
  return createImageBitmap(await api.gray(id, levels, side), { colorSpaceConversion: "none" });
}

function openFile(file) {
  if (file.size > limits.bytes) {
    return say(`${file.name} has ${Math.round(file.size / 1e6)} MB, and ${Math.floor(limits.bytes / 1e6)} are the most.`, 10);
  }
  return open(() => api.openPhoto(file), file.name ?? "photo");
}
const openSample = () => open(api.openSample, "sample");

function show(opened) {
  lay(opened);
  $("welcome").hidden = true;
  $("work").hidden = false;
  $("save").inert = false;
  $("work").style.setProperty("--aspect", opened.width / opened.height);
  view.fit(opened.width, opened.height);
  cache.clear();
  history.clear();
  unselect();
}

// The lightness that colour is laid onto.
function lay(opened) {
  const { gray } = opened;
  const height = Math.round(THUMBNAIL * Math.min(2, devicePixelRatio));
  const width = Math.max(1, Math.min(3 * height, Math.round((height * gray.width) / gray.height)));
  const thumb = { width, height, levels: grayLevels(gray, width, height) };
  photo = { ...opened, scale: gray.width / opened.width, thumb };
  painter?.close();
  painter = makePainter(fresh($("pane-a").querySelector(".picture")), gray);
  shown = null;
}

// A canvas keeps the kind and the loss of its context: each photo gets a new one.
function fresh(canvas) {
  const copy = canvas.cloneNode();
  canvas.replaceWith(copy);
  return copy;
}

function start(made) {
  const known = made && models.some((model) => model.name === made.model);
  if (made && !known) say(`This picture was made by ${made.model || "another model"}, which is not here.`);
  const seed = made?.seed ?? 0;
  state = {
    model: known ? made.model : $("model").value,
    seed,
    seeds: Array.from({ length: ANSWERS }, (_, n) => seed + n),
    hints: (made?.hints ?? []).map(({ x, y, color }) => ({ id: nextId++, points: [[x, y]], color })),
    strokes: made?.strokes ?? [],
    saturation: made?.saturation ?? 1,
    warmth: made?.warmth ?? 0,
    levels: made?.levels ?? "off",
    options: made?.options ?? {},
    view: made ? { denoise: made.denoise, working_size: made.working_size } : {},
  };
  $("mark").checked = made?.mark ?? false;
  history.push(state, made ? "As it was saved" : "First answer");
  refresh();
}

// -- state -----------------------------------------------------------------------------------------------------------

function change(changes, words) {
  state = { ...state, ...changes };
  history.push(state, words);
  refresh();
}

const history = makeHistory($("history"), (earlier) => {
  state = earlier;
  unselect();
  refresh();
});

const modelOf = (name) => models.find((model) => model.name === name) ?? models[0];
const tone = () => ({ saturation: state.saturation, warmth: state.warmth });

function asked(extra = {}) {
  const { model, hints, options, levels, view: seen } = state;
  const kind = modelOf(model).method;
  const points = hints.flatMap(({ points: places, color }) => places.map(([x, y]) => ({ x, y, color })));
  const own = kind === "classification" ? { variety: VARIETY } : {};
  const kept = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== null));
  const given = kind === photo.made?.method ? kept : {};  // of a picture that goes on
  return { model, hints: points, levels, ...seen, ...own, ...given, ...extra };
}

// -- answers ---------------------------------------------------------------------------------------------------------

const single = () => modelOf(state.model).answers === 1;
const brushed = () => (single() ? [] : state.strokes);
let turn = 0;

async function refresh() {
  const mine = ++turn;
  controls();
  const seeds = single() ? [state.seed] : state.seeds;
  const { hints, options, levels, view: seen } = state;
  const key = JSON.stringify([state.model, hints.map(({ points, color }) => [points, color]), options, levels, seen]);
  if (!cache.has(key)) cache.set(key, new Map());
  fields = cache.get(key);
  while (cache.size > KEPT) cache.delete(cache.keys().next().value);
  running?.abort();
  running = null;
  strip(seeds);
  if (mixing()) sources();
  doubt();
  if (photo.auto !== (levels === "auto")) {
    progress(0.01);
    await relay(levels);
    if (mine !== turn) return undefined;
  }
  beside();
  if (fields.has(state.seed)) display(fields.get(state.seed), true);
  const needed = [...new Set([state.seed, ...brushed().map((stroke) => stroke.seed), ...seeds])];
  const missing = needed.filter((seed) => !fields.has(seed)).slice(0, 16);
  if (!missing.length) return progress(null);
  await answer(missing, needed.length);
  return undefined;
}

// The answers that are missing, as they come; `count` are needed in all.
async function answer(order, count) {
  running = new AbortController();
  const mine = running;
  const target = fields;
  progress(0.03);
  try {
    await api.answers(photo.id, asked({ seeds: order }), mine.signal, (kind, value) => {
      if (mine.signal.aborted) return;
      const first = order[0] === state.seed && !target.has(state.seed);
      if (kind === "step") progress(Math.min(1, (target.size + value.step / value.steps) / count));
      if (kind === "answer") {
        target.set(value.seed, decode(value));
        tile(value.seed);
        const painted = brushed().some((stroke) => stroke.seed === value.seed);
        if (target.has(state.seed) && (painted || value.seed === state.seed)) display(target.get(state.seed), true);
      } else if (first && value.data) display(decode(value), false);
    });
  } catch (error) {
    fail(error);
  } finally {
    if (running === mine) progress(null);
  }
}

// The photo's lightness again, of other levels or finer.
async function relay(levels, side = photo.side) {
  const { id } = photo;
  photo.side = side;
  try {
    const gray = await lightness(id, levels, side);
    if (photo.id === id && state.levels === levels) lay({ ...photo, gray, auto: levels === "auto" });
  } catch (error) {
    fail(error);
  }
}

// More of the photo's pixels, where the zoom shows more than there are.
async function sharpen() {
  const there = Math.max(photo.width, photo.height) > photo.side && photo.side < FINEST;
  if (!there || view.zoom * devicePixelRatio <= 1.1 * photo.scale) return;
  const [{ id }, before] = [photo, shown];
  await relay(state.levels, FINEST);
  if (photo.id !== id) return;
  shown ??= before;
  redraw();
  if ($("two").getAttribute("aria-pressed") === "true") beside();
}

function progress(share) {
  const bar = document.querySelector(".progress");
  bar.hidden = share === null;
  bar.firstElementChild.style.width = `${100 * (share ?? 0)}%`;
  if (share !== null) bar.setAttribute("aria-valuenow", Math.round(100 * share));
  document.body.dataset.busy = share === null ? "" : "yes";
}

let frame = 0;
function display(found, whole) {
  shown = found;
  redraw();
  sharpen();
  if (whole) history.picture(thumbnail(mixed(found)));
}

// Once a frame, however many estimates have come in.
function redraw() {
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(() => {
    if (shown) painter.draw(mixed(shown), tone(), divide());
    if (second?.fields) second.painter.draw(second.fields, tone());
  });
}

// An answer with the strokes of others over it, that which is being drawn too.
function mixed(found) {
  const drawn = painting ? [{ seed: source, radius: radius(), points: painting }] : [];
  return mix(found, [...brushed(), ...drawn], (seed) => fields.get(seed), photo);
}

function thumbnail(found) {
  const { width, height, levels } = photo.thumb;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(paint(levels, width, height, found, tone()), 0, 0);
  return canvas;
}

// -- the strip -------------------------------------------------------------------------------------------------------

function strip(seeds) {
  const tiles = seeds.map((seed) => {
    const button = document.createElement("button");
    button.className = "answer waits";
    button.dataset.seed = seed;
    button.setAttribute("role", "radio");
    button.setAttribute("aria-label", `Answer of seed ${seed}`);
    button.title = `Seed ${seed}`;
    const label = document.createElement("span");
    label.textContent = seed;
    const before = $("strip").querySelector(`[data-seed="${seed}"] canvas`);
    if (before) button.append(before);
    button.append(label);
    button.addEventListener("click", () => choose(seed));
    return button;
  });
  refill($("strip"), tiles);
  for (const seed of seeds) if (fields.has(seed)) tile(seed);
  mark();
}

function tile(seed) {
  const button = $("strip").querySelector(`[data-seed="${seed}"]`);
  if (!button) return;
  button.querySelector("canvas")?.remove();
  button.prepend(thumbnail(fields.get(seed)));
  button.classList.remove("waits");
  if (mixing()) sources();
}

const mark = () => settle($("strip"), (button) => Number(button.dataset.seed) === state.seed);

function choose(seed) {
  if (seed !== state.seed) change({ seed }, `Seed ${seed}`);
}

for (const group of ["strip", "tools", "sources"]) walk($(group));

$("others").addEventListener("click", () => {
  const seeds = state.seeds.map((_, n) => Math.max(...state.seeds) + 1 + n);
  change({ seeds, seed: seeds[0] }, "Other answers");
});

// -- the pane --------------------------------------------------------------------------------------------------------

const view = makeView($("pane-a"), $("pane-a").querySelector(".holder"), {
  changed() {
    marks?.draw();
    line();
    $("zoom-level").textContent = view.whole ? "Fit" : `${Math.round(100 * view.zoom)} %`;
    if (shown) sharpen();
  },
  movesOnly: () => $("tool-move").getAttribute("aria-checked") === "true" && !dropping,
  gesture: {
    tap(x, y) {
      if (!view.contains(x, y)) unselect();
      else if (dropping) take(x, y);
      else if (mixing()) dab(x, y);
      else ask([[x, y]]);
    },
    begin: (x, y) => (mixing() ? brushTo(x, y) : stroke([[x, y]])),
    move: (x, y) => (mixing() ? brushTo(x, y) : pending && stroke([...pending.points, [x, y]])),
    end: () => (mixing() ? lift() : pending && ask(thinned(pending.points))),
    cancel() {
      painting = null;
      redraw();
      unselect();
    },
  },
});
const viewB = makeView($("pane-b"), $("pane-b").querySelector(".holder"), { movesOnly: () => true });
[view.twins, viewB.twins] = [[viewB], [view]];

const marks = makeMarks($("pane-a").querySelector(".marks"), view, {
  select: (id) => select(id),
  moved(id, dx, dy) {
    const inside = ([x, y]) => [
      Math.min(photo.width - 0.01, Math.max(0, x + dx)),
      Math.min(photo.height - 0.01, Math.max(0, y + dy)),
    ];
    const move = (hint) => (hint.id === id ? { ...hint, points: hint.points.map(inside) } : hint);
    if (pending?.id === id) return ask(pending.points.map(inside));
    selected = id;
    change({ hints: state.hints.map(move) }, "Hint moved");
    suggestions();
  },
  remove: (id) => remove(id),
});

function stroke(points) {
  const inside = points.filter(([x, y]) => view.contains(x, y));
  if (!inside.length) return;
  pending = { id: pending?.id ?? nextId++, points: inside, color: null };
  selected = pending.id;
  drawMarks();
}

// Points a good step apart, and not too many.
function thinned(points) {
  const step = Math.min(photo.width, photo.height) / 60;
  const kept = [points[0]];
  for (const [x, y] of points) {
    const [lastX, lastY] = kept.at(-1);
    if (Math.hypot(x - lastX, y - lastY) >= step) kept.push([x, y]);
  }
  const every = Math.ceil(kept.length / STROKE);
  return kept.filter((_, n) => n % every === 0);
}

function drawMarks() {
  marks.show({ hints: pending ? [...state.hints, pending] : state.hints, selected, cursor });
}

function line() {
  const input = $("pane-a").querySelector(".divider");
  const [left] = view.toPane(0, 0);
  const [right] = view.toPane(view.width, 0);
  input.style.left = `${left - 18}px`;
  input.style.width = `${right - left + 36}px`;
  $("pane-a").querySelector(".line").style.left = `${left + (input.value / 1000) * (right - left)}px`;
}

const comparing = () => $("compare").getAttribute("aria-pressed") === "true";
let held = false;
const divide = () => (held ? 1 : comparing() ? $("pane-a").querySelector(".divider").value / 1000 : 0);

function split() {
  for (const part of [".divider", ".line"]) $("pane-a").querySelector(part).hidden = !comparing();
  line();
  if (shown) painter.split(divide());
}
$("pane-a").querySelector(".divider").addEventListener("input", split);
$("compare").addEventListener("click", () => {
  press($("compare"));
  split();
});
function hold(down) {
  if (held === down) return;
  held = down;
  if (shown) painter.split(divide());
}
$("hold").addEventListener("pointerdown", () => hold(true));
for (const kind of ["pointerup", "pointerleave", "pointercancel"]) $("hold").addEventListener(kind, () => hold(false));
$("hold").addEventListener("keydown", (event) => [" ", "Enter"].includes(event.key) && hold(true));
for (const kind of ["keyup", "blur"]) $("hold").addEventListener(kind, () => hold(false));
addEventListener("blur", () => hold(false));

const press = (button, on = button.getAttribute("aria-pressed") !== "true") => button.setAttribute("aria-pressed", on);

const TOOLS = ["hint", "mix", "move"];
function tool(name) {
  settle($("tools"), (button) => button.id === `tool-${name}`);
  $("pane-a").classList.toggle("moves", name === "move");
  $("pane-a").classList.toggle("mixes", name === "mix");
  $("mix").hidden = name !== "mix";
  $("colour").hidden = name === "mix";
  unselect();
  if (name === "mix") {
    sources();
    $("mix").scrollIntoView({ block: "nearest" }); // on a phone it lies below the photo
  }
}
for (const one of TOOLS) $(`tool-${one}`).addEventListener("click", () => tool(one));
settle($("tools"), (button) => button === $("tool-hint"));
$("zoom-in").addEventListener("click", () => view.zoomTo(view.zoom * 1.5));
$("zoom-out").addEventListener("click", () => view.zoomTo(view.zoom / 1.5));
$("zoom").addEventListener("click", () => (view.whole ? view.zoomTo(1) : view.fit()));

// -- hints -----------------------------------------------------------------------------------------------------------

const picker = makePicker($("picker"), (color) => paintHint(color));
const theHint = () => (pending?.id === selected ? pending : state.hints.find((hint) => hint.id === selected));

function ask(points) {
  pending = { id: pending?.id ?? nextId++, points, color: null };
  select(pending.id);
  $("hint").scrollIntoView({ block: "nearest" }); // on a phone it lies below the photo
}

function select(id) {
  if (pending && pending.id !== id) pending = null;
  selected = id;
  $("no-hint").hidden = true;
  $("hint").hidden = false;
  drawMarks();
  suggestions();
}

function unselect() {
  asking?.abort();
  [pending, selected] = [null, null];
  press($("dropper"), (dropping = false));
  $("pane-a").classList.remove("drops");
  $("no-hint").hidden = false;
  $("hint").hidden = true;
  if (state) drawMarks();
}

// [r, g, b] of a canvas or a picture.
function pixel(image, column, row) {
  const one = new OffscreenCanvas(1, 1).getContext("2d");
  one.drawImage(image, column, row, 1, 1, 0, 0, 1, 1);
  return [...one.getImageData(0, 0, 1, 1).data].slice(0, 3);
}

function lightnessAt([x, y]) {
  const [column, row] = [Math.floor(x * photo.scale), Math.floor(y * photo.scale)];
  const inside = [Math.min(photo.gray.width - 1, column), Math.min(photo.gray.height - 1, row)];
  return LIGHTNESS[pixel(photo.gray, ...inside)[0]];
}

async function suggestions() {
  const hint = theHint();
  if (!hint) return;
  const [x, y] = hint.points[Math.floor(hint.points.length / 2)];
  picker.show(lightnessAt([x, y]), hint.color);
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking;
  $("hint-about").textContent = "Looking …";
  try {
    const { colors } = await api.suggest(photo.id, asked({ x, y }), signal);
    if (signal.aborted) return;
    $("hint-about").textContent = "Likely here";
    refill(
      $("swatches"),
      colors.map(({ color, share }) => {
        const button = document.createElement("button");
        button.style.setProperty("--color", color);
        button.title = `${color}, ${Math.round(100 * share)} %`;
        button.setAttribute("aria-label", button.title);
        button.setAttribute("aria-pressed", color === hint.color);
        button.addEventListener("click", () => paintHint(color));
        return button;
      }),
    );
  } catch (error) {
    fail(error);
  }
}

function paintHint(color) {
  const hint = theHint();
  if (!hint || hint.color === color) return;
  const painted = { ...hint, color };
  const hints = hint === pending ? [...state.hints, painted] : state.hints.map((h) => (h.id === hint.id ? painted : h));
  pending = null;
  change({ hints }, `Hint ${color}`);
  for (const button of $("swatches").children) button.setAttribute("aria-pressed", button.style.getPropertyValue("--color") === color);
  picker.show(lightnessAt(hint.points[0]), color);
}

function remove(id) {
  const was = state.hints.some((hint) => hint.id === id);
  unselect();
  if (was) change({ hints: state.hints.filter((hint) => hint.id !== id) }, "Hint removed");
  $("pane-a").focus();
}

// The colour that the picture has at a place, for the hint that is selected.
function take(x, y) {
  const canvas = $("pane-a").querySelector(".picture");
  const color = toHex(pixel(canvas, Math.floor(x * photo.scale), Math.floor(y * photo.scale)));
  press($("dropper"), (dropping = false));
  $("pane-a").classList.remove("drops");
  paintHint(color);
}

$("gray").addEventListener("click", () => paintHint("#808080"));
$("remove").addEventListener("click", () => remove(selected));
$("dropper").addEventListener("click", () => {
  dropping = !dropping;
  press($("dropper"), dropping);
  $("pane-a").classList.toggle("drops", dropping);
  if (dropping) say("Click where the colour is.", 4);
});
$("best").addEventListener("click", async () => {
  try {
    const { best } = await api.ambiguity(photo.id, asked());
    ask([[best.x, best.y]]);
  } catch (error) {
    fail(error);
  }
});

$("reference").addEventListener("click", () => $("reference-file").click());
$("reference-file").addEventListener("change", async () => {
  const [file] = $("reference-file").files;
  $("reference-file").value = "";
  if (!file) return;
  say("Looking for what is alike …", 120);
  try {
    const { hints } = await api.reference(photo.id, file, state.model);
    const added = hints.map(({ x, y, color }) => ({ id: nextId++, points: [[x, y]], color }));
    say(added.length ? `${added.length} hints; each can be moved or removed.` : "Nothing in it is alike enough.");
    if (added.length) change({ hints: [...state.hints, ...added] }, "Colours of another photo");
  } catch (error) {
    fail(error);
  }
});

// -- other photos in these colours -----------------------------------------------------------------------------------

const album = makeAlbum($("album-list"), {
  changed() {
    $("album").hidden = !album.size;
    $("album-save").disabled = !album.files.length;
  },
  open: ({ file, error }) => (file ? openFile(file) : say(error, 10)),
});
$("all").addEventListener("click", () => $("all-files").click());
$("all-files").addEventListener("change", () => {
  const files = [...$("all-files").files];
  $("all-files").value = "";
  if (files.length) album.add(files, photo.id, asked(), { seed: state.seed, ...tone(), mark: $("mark").checked });
});
$("album-close").addEventListener("click", () => album.close());
$("album-save").addEventListener("click", async () => {
  for (const file of album.files) {
    download(file, file.name);
    await new Promise((done) => setTimeout(done, 400)); // browsers drop downloads that begin at once
  }
});

// -- mixing ----------------------------------------------------------------------------------------------------------

const mixing = () => $("tool-mix").getAttribute("aria-checked") === "true";
const tenth = (value) => Math.round(10 * value) / 10;
const radius = () => tenth(($("brush").value / 100) * Math.min(photo.width, photo.height));

// The answers that may be on the brush; that of the picture itself takes away what was painted.
function sources() {
  const there = [...new Set([state.seed, ...state.seeds])].filter((seed) => fields.has(seed));
  if (!there.includes(source)) source = there.find((seed) => seed !== state.seed) ?? state.seed;
  $("brush-value").textContent = `${$("brush").value} %`;
  refill(
    $("sources"),
    there.map((seed) => {
      const button = document.createElement("button");
      button.className = "answer";
      button.dataset.source = seed;
      button.setAttribute("role", "radio");
      button.title = seed === state.seed ? "Eraser: the picture without strokes" : `Colours of seed ${seed}`;
      button.setAttribute("aria-label", button.title);
      const label = document.createElement("span");
      label.textContent = seed === state.seed ? "Eraser" : seed;
      button.append(thumbnail(fields.get(seed)), label);
      button.addEventListener("click", () => {
        source = seed;
        loaded();
      });
      return button;
    }),
  );
  loaded();
}

const loaded = () => settle($("sources"), (button) => Number(button.dataset.source) === source);

function brushTo(x, y) {
  if (!fields.has(source)) return;
  const point = [tenth(x), tenth(y)];
  const last = painting?.at(-1);
  if (last && Math.hypot(x - last[0], y - last[1]) < radius() / 4) return;
  painting = [...(painting ?? []), point];
  redraw();
}

// The brush leaves the photo: the stroke is one step of the history.
function lift() {
  if (!painting) return;
  const every = Math.ceil(painting.length / DABS);
  const stroke = { seed: source, radius: radius(), points: painting.filter((_, n) => n % every === 0) };
  painting = null;
  if (state.strokes.length >= STROKES) say(`${STROKES} strokes are the most; undo some.`);
  else change({ strokes: [...state.strokes, stroke] }, source === state.seed ? "Eraser" : `Colours of seed ${source}`);
}

function dab(x, y) {
  brushTo(x, y);
  lift();
}

$("brush").addEventListener("input", () => ($("brush-value").textContent = `${$("brush").value} %`));
const ring = $("pane-a").querySelector(".brush");
$("pane-a").addEventListener("pointermove", (event) => {
  ring.hidden = !mixing() || event.pointerType === "touch";
  if (ring.hidden) return;
  const { left, top } = $("pane-a").getBoundingClientRect();
  const side = 2 * radius() * view.zoom;
  Object.assign(ring.style, { left: `${event.clientX - left}px`, top: `${event.clientY - top}px`, width: `${side}px`, height: `${side}px` });
});
$("pane-a").addEventListener("pointerleave", () => (ring.hidden = true));

// -- mood ------------------------------------------------------------------------------------------------------------

function moodText() {
  $("saturation-value").textContent = `${Math.round(100 * $("saturation").value)} %`;
  const warmth = Number($("warmth").value);
  $("warmth-value").textContent = warmth > 0 ? `+${warmth}` : `${warmth}`.replace("-", "−");
}
for (const name of ["saturation", "warmth"]) {
  $(name).addEventListener("input", () => {
    state = { ...state, [name]: Number($(name).value) };
    moodText();
    redraw();
  });
  $(name).addEventListener("change", () => change({}, name === "warmth" ? "Warmth" : "Saturation"));
  $(name).parentElement.addEventListener("dblclick", () => {
    $(name).value = name === "warmth" ? 0 : 1;
    change({ [name]: Number($(name).value) }, name === "warmth" ? "Warmth" : "Saturation");
  });
}

$("levels").addEventListener("change", () => change({ levels: $("levels").value }, "Contrast"));

// -- doubt -----------------------------------------------------------------------------------------------------------

let doubting = null;
async function doubt() {
  const canvas = $("pane-a").querySelector(".unsure");
  doubting?.abort();
  if (!$("unsure").checked) {
    canvas.hidden = true;
    return marks.show({ best: null });
  }
  doubting = new AbortController();
  const { signal } = doubting;
  try {
    const { width, height, data, best } = await api.ambiguity(photo.id, asked(), signal);
    if (signal.aborted) return;
    [canvas.width, canvas.height] = [width, height];
    const image = new ImageData(width, height);
    const rgb = getComputedStyle(document.documentElement).getPropertyValue("--doubt").trim().split(" ").map(Number);
    const values = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
    values.forEach((v, n) => image.data.set([...rgb, 170 * Math.min(1, v / DOUBT) ** 1.5], 4 * n));
    canvas.getContext("2d").putImageData(image, 0, 0);
    canvas.hidden = false;
    marks.show({ best: [best.x, best.y] });
  } catch (error) {
    fail(error);
  }
}
$("unsure").addEventListener("change", doubt);

// -- two models ------------------------------------------------------------------------------------------------------

let besides = null;
async function beside() {
  const on = $("two").getAttribute("aria-pressed") === "true";
  $("pane-b").hidden = !on;
  const chip = $("pane-a").querySelector(".chip");
  chip.hidden = !on;
  chip.textContent = state.model;
  besides?.abort();
  if (!on) {
    second?.painter.close();
    second = null;
    return;
  }
  if (second?.gray !== photo.gray) {
    second?.painter.close();
    second = { gray: photo.gray, painter: makePainter(fresh($("pane-b").querySelector(".picture")), photo.gray) };
    [viewB.width, viewB.height] = [photo.width, photo.height];
    requestAnimationFrame(() => view.fit());
  }
  besides = new AbortController();
  const { signal } = besides;
  const model = $("model-b").value;
  const { hints, levels } = asked();
  try {
    await api.answers(photo.id, { model, hints, levels, seeds: [state.seed] }, signal, (kind, value) => {
      if (signal.aborted || !value.data) return;
      second.fields = decode(value);
      redraw();
    });
  } catch (error) {
    fail(error);
  }
}
$("two").addEventListener("click", () => {
  press($("two"));
  const other = models.find((model) => model.name !== state.model) ?? models[0];
  if ($("model-b").value === state.model) $("model-b").value = other.name;
  beside();
});
$("model-b").addEventListener("change", beside);

// -- the bar ---------------------------------------------------------------------------------------------------------

function controls() {
  $("model").value = state.model;
  $("saturation").value = state.saturation;
  $("warmth").value = state.warmth;
  $("levels").value = state.levels;
  moodText();
  $("tool-mix").disabled = single();
  $("all-row").hidden = !state.hints.length;
  if (single() && mixing()) tool("hint");
  $("undo").disabled = !history.canUndo;
  $("redo").disabled = !history.canRedo;
  $("others").hidden = modelOf(state.model).answers === 1;
  drawMarks();
}
$("model").addEventListener("change", () => state && change({ model: $("model").value }, `Model ${$("model").value}`));
$("undo").addEventListener("click", history.undo);
$("redo").addEventListener("click", history.redo);
$("open").addEventListener("click", () => $("file").click());
$("choose").addEventListener("click", () => $("file").click());
$("sample").addEventListener("click", openSample);
$("file").addEventListener("change", () => {
  if ($("file").files[0]) openFile($("file").files[0]);
  $("file").value = "";
});

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

for (const button of $("save").querySelectorAll("[data-kind]")) {
  button.addEventListener("click", async () => {
    $("save").open = false;
    say("Writing the picture at full size …", 120);
    try {
      const blob = await api.exported(photo.id, asked({ seed: state.seed, ...tone(), strokes: brushed(), mark: $("mark").checked, kind: button.dataset.kind }));
      download(blob, `${photo.name.replace(/\.[^.]*$/, "") || "photo"}-${{ full: "colour", side: "both", layer: "layer" }[button.dataset.kind]}.png`);
      say("Saved.", 3);
    } catch (error) {
      fail(error);
    }
  });
}
document.addEventListener("click", (event) => {
  if (!$("save").contains(event.target)) $("save").open = false;
});

// -- dropped, pasted, typed ------------------------------------------------------------------------------------------

const filesOf = (transfer) => [...(transfer?.files ?? [])];
let over = 0;
document.addEventListener("dragenter", (event) => {
  if (event.dataTransfer?.types.includes("Files")) document.body.classList.toggle("dragging", ++over > 0);
});
document.addEventListener("dragleave", () => document.body.classList.toggle("dragging", (over = Math.max(0, over - 1)) > 0));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.toggle("dragging", Boolean((over = 0)));
  const [file] = filesOf(event.dataTransfer);
  if (file) openFile(file);
  else say("That is no file; save the picture first, then drop it here.");
});
document.addEventListener("paste", (event) => {
  const [file] = filesOf(event.clipboardData);
  if (file) openFile(file);
});

$("pane-a").addEventListener("keydown", (event) => {
  if (event.target !== $("pane-a")) return;
  const step = (event.shiftKey ? 0.1 : 0.02) * Math.min(photo.width, photo.height);
  const way = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
  if (way) {
    const [x, y] = cursor ?? [photo.width / 2, photo.height / 2];
    const within = (v, size) => Math.min(size - 0.5, Math.max(0.5, v));
    cursor = cursor ? [within(x + way[0], photo.width), within(y + way[1], photo.height)] : [x, y];
    drawMarks();
  } else if (event.key === "Enter" && cursor) {
    if (dropping) take(...cursor);
    else if (mixing()) dab(...cursor);
    else {
      ask([cursor]);
      $("picker").focus();
    }
  } else if (event.key === "+" || event.key === "=") view.zoomTo(view.zoom * 1.5);
  else if (event.key === "-") view.zoomTo(view.zoom / 1.5);
  else return;
  event.preventDefault();
});
$("pane-a").addEventListener("blur", () => {
  cursor = null;
  if (state) drawMarks();
});

const typing = (target) => target.closest("input, select, textarea");
document.addEventListener("keydown", (event) => {
  if (!state) return;
  const key = event.key.toLowerCase();
  if ((event.ctrlKey || event.metaKey) && key === "z") {
    event.preventDefault();
    return event.shiftKey ? history.redo() : history.undo();
  }
  if (key === "escape") {
    if ($("save").open && $("save").contains(document.activeElement)) $("save").firstElementChild.focus();
    if ($("hint").contains(document.activeElement)) $("pane-a").focus();
    $("save").open = false;
    unselect();
  }
  if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return undefined;
  if (key === "b") hold(true);
  if (key === "c") tool("hint");
  if (key === "m") tool("move");
  if (key === "x" && !single()) tool("mix");
  return undefined;
});
document.addEventListener("keyup", (event) => event.key.toLowerCase() === "b" && hold(false));

// -- the start -------------------------------------------------------------------------------------------------------

try {
  ({ models, limits } = await api.listModels());
  if (!models.length) throw new Error("There are no models here yet; train one, or start with --models-dir.");
  for (const list of ["model", "model-b"]) $(list).replaceChildren(...models.map(({ name, about }) => Object.assign(new Option(name), { title: about })));
} catch (error) {
  fail(error);
}
