// Other photos that get the hints of the open one: one after the other, each kept as the file that is to be saved.

import * as api from "./api.js";
import { refill } from "./lists.js";

const HEIGHT = 84; // pixels of a small picture

// list: gets a tile per photo. hear: {changed(), open(file)}; a tile that is done opens its picture.
export function makeAlbum(list, hear) {
  let entries = [];
  let running = null; // AbortController of the work

  function tile(entry) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const { name, file, error, small } = entry;
    button.title = error ? `${name}: ${error}` : file ? `${name}, ${entry.count} hints: open it` : `${name} waits`;
    button.setAttribute("aria-label", button.title);
    button.classList.toggle("waits", !file && !error);
    button.classList.toggle("failed", Boolean(error));
    button.disabled = !file && !error;
    if (small) button.append(small);
    else if (error) button.textContent = "!";
    button.addEventListener("click", () => hear.open(entry));
    item.append(button);
    return item;
  }
  function draw() {
    refill(list, entries.map(tile));
    hear.changed();
  }

  async function colour(entry, source, asked, how) {
    const opened = await api.openPhoto(entry.original);
    try {
      const { hints } = await api.carried(opened.id, source, asked);
      const blob = await api.exported(opened.id, { ...asked, ...how, hints });
      entry.count = hints.length;
      entry.file = new File([blob], `${entry.name.replace(/\.[^.]*$/, "") || "photo"}-colour.png`, { type: "image/png" });
      entry.small = await smaller(blob);
    } finally {
      api.closePhoto(opened.id);
    }
  }

  return {
    // Colours files with the hints in `asked`, which are of the open photo `source`. how: more for the pictures.
    async add(files, source, asked, how) {
      running?.abort();
      running = new AbortController();
      const { signal } = running;
      const added = files.map((original) => ({ original, name: original.name }));
      entries = [...entries.filter(({ file }) => file), ...added];
      draw();
      for (const entry of added) {
        try {
          await colour(entry, source, asked, how);
        } catch (error) {
          entry.error = error.message;
        }
        if (signal.aborted) return;
        draw();
      }
      running = null;
    },
    close() {
      running?.abort();
      running = null;
      entries = [];
      draw();
    },
    get busy() {
      return running !== null;
    },
    get files() {
      return entries.map(({ file }) => file).filter(Boolean);
    },
    get size() {
      return entries.length;
    },
  };
}

async function smaller(blob) {
  const image = await createImageBitmap(blob, { resizeHeight: HEIGHT, resizeQuality: "high" });
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height];
  canvas.getContext("2d").drawImage(image, 0, 0);
  image.close();
  return canvas;
}
