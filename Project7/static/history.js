// What was done, to go back and forth in: states that are never changed, each with a small picture.

import { refill } from "./lists.js";

const LONGEST = 40;

export function makeHistory(list, apply) {
  let entries = [];
  let place = -1;

  function draw() {
    refill(
      list,
      entries.map((entry, number) => {
        const item = document.createElement("li");
        const button = document.createElement("button");
        button.setAttribute("aria-label", `Step ${number + 1}: ${entry.words}`);
        button.title = entry.words;
        if (number === place) button.setAttribute("aria-current", "step");
        if (entry.thumbnail) button.append(entry.thumbnail);
        button.addEventListener("click", () => go(number));
        item.append(button);
        return item;
      }),
    );
  }
  function go(number) {
    if (number < 0 || number >= entries.length || number === place) return;
    place = number;
    draw();
    apply(entries[place].state);
  }
  return {
    clear() {
      [entries, place] = [[], -1];
      draw();
    },
    push(state, words) {
      entries = [...entries.slice(0, place + 1), { state, words }].slice(-LONGEST);
      place = entries.length - 1;
      draw();
    },
    // The picture of the present state.
    picture(canvas) {
      if (place < 0) return;
      entries[place].thumbnail = canvas;
      draw();
    },
    undo: () => go(place - 1),
    redo: () => go(place + 1),
    get canUndo() {
      return place > 0;
    },
    get canRedo() {
      return place < entries.length - 1;
    },
  };
}
