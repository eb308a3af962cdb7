// Lists that are drawn anew: what has the focus keeps it, and arrow keys walk over those of which one is chosen.

const button = (child) => (child?.matches("button") ? child : child?.querySelector("button"));

// New children for a list; the focus stays at its place in it.
export function refill(list, children) {
  const place = [...list.children].findIndex((child) => child.contains(document.activeElement));
  list.replaceChildren(...children);
  if (place >= 0) button(list.children[Math.min(place, list.children.length - 1)])?.focus();
}

const WAYS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };

// Arrow keys choose the next button of a radio group by a click; only the chosen one is a tab stop (`settle`).
export function walk(group) {
  group.addEventListener("keydown", (event) => {
    const buttons = [...group.children].filter((child) => !child.disabled);
    const place = buttons.indexOf(document.activeElement);
    if (!(event.key in WAYS) || place < 0) return;
    const next = (place + WAYS[event.key] + buttons.length) % buttons.length;
    const at = [...group.children].indexOf(buttons[next]);
    buttons[next].click();
    group.children[at].focus();
    event.preventDefault();
  });
}

// Marks one of the buttons of a radio group.
export function settle(group, isChosen) {
  for (const one of group.children) {
    const chosen = isChosen(one);
    one.setAttribute("aria-checked", chosen);
    one.tabIndex = chosen ? 0 : -1;
  }
}
