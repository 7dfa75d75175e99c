// Keys of a list of photos, on the pages Inbox and Audit: arrows, Home and End move, Shift, Space and Ctrl+A select, Escape
// selects none, digits choose, Delete removes, Enter or any letter goes to the field for a name.

const MOVES = ["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "Home", "End"];

// Returns whether no control has the focus.
export const idle = () => [document.body, document.getElementById("main"), null].includes(document.activeElement);

// Returns the item that a key moves to. Up and down go to the nearest item of another row.
function target(items, item, key) {
  const at = items.indexOf(item);
  if (key === "Home") return items[0];
  if (key === "End") return items.at(-1);
  if (key === "ArrowRight") return items[Math.min(at + 1, items.length - 1)];
  if (key === "ArrowLeft") return items[Math.max(at - 1, 0)];
  const from = item.getBoundingClientRect();
  const down = key === "ArrowDown";
  const far = (box) => 1000 * Math.abs(box.top - from.top) + Math.abs(box.left - from.left);
  return items
    .map((one) => [one, one.getBoundingClientRect()])
    .filter(([, box]) => (down ? box.top >= from.bottom - 1 : box.bottom <= from.top + 1))
    .reduce((best, one) => (best && far(best[1]) <= far(one[1]) ? best : one), null)?.[0] ?? item;
}

// Handles the keys of a list.
//   items()        the items, in order
//   current()      the item that keys act on; null for none
//   go(item)       makes an item the current one, and gives it the focus
//   isSelected(item), select(item, on)
//   selected()     is called once the selection has changed
//   area(element)  whether the keys work while this element has the focus
//   choose(number), remove()
//   send()         sends what is chosen, and returns whether there was anything; optional
//   field          where to type a name; without it, the keys move only
// Returns functions that select for the pointer.
export function listKeys(list) {
  let anchor = null; // start of a range
  const selectTo = (end) => {
    const items = list.items();
    const [first, last] = [items.indexOf(anchor ?? list.current()), items.indexOf(end)].sort((a, b) => a - b);
    items.forEach((item, i) => list.select(item, i >= first && i <= last));
    list.selected();
  };
  const selectAll = (on) => {
    for (const item of list.items()) list.select(item, on);
    anchor = null;
    list.selected();
  };
  const toggle = (item) => {
    list.select(item, !list.isSelected(item));
    anchor = item;
    list.selected();
  };

  // No letter is a command, since a name may begin with any letter.
  function pressed(event, item) {
    const { key } = event;
    const command = event.ctrlKey || event.metaKey;
    if (MOVES.includes(key) && !command && !event.altKey) {
      const to = item ? target(list.items(), item, key) : list.items()[0];
      if (!to) return;
      if (event.shiftKey && list.field && item) {
        anchor ??= item;
        selectTo(to);
      } else anchor = null;
      list.go(to);
    } else if (!list.field) return;
    else if (key.toLowerCase() === "a" && command) selectAll(true);
    else if (command || event.altKey) return;
    else if (key === "Escape") selectAll(false);
    else if ([" ", "Enter"].includes(key) && document.activeElement.matches("button, a, summary, input")) return;
    else if (!item) return;
    else if (key === " ") toggle(item);
    else if (/^[1-9]$/.test(key)) list.choose(Number(key));
    else if (key === "Delete") list.remove();
    else if (key === "Enter" && list.send?.()) return event.preventDefault();
    else if (key === "Enter" || key.length === 1) {
      const { form } = list.field;
      const { hidden } = form;
      form.hidden = false;
      if (!list.field.checkVisibility()) return (form.hidden = hidden);
      list.field.focus();
      if (key !== "Enter") return (list.field.value = ""); // the browser types the letter into the field
    } else return;
    event.preventDefault();
  }

  document.addEventListener("keydown", (event) => {
    const active = document.activeElement;
    if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
    if (active === list.field && event.key === "Escape") {
      list.field.form.reset();
      list.go(list.current());
    } else if (!active?.matches("input:not([type=checkbox]), textarea, select") && (idle() || list.area(active))) pressed(event, list.current());
  });
  return { selectTo, selectAll, toggle, anchorAt: (item) => (anchor = item) };
}
