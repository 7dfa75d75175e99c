// Several categories of a photo, in a store that allows them (`data-several`). In an area with `data-names`, buttons and the
// field then choose categories. Chosen names without a button are chips beside the field; a click leaves them out. Enter in
// the empty field sends.

import { hide } from "./combobox.js";

const areaOf = (element) => element.closest("[data-several] [data-names]");
const chips = (area) => [...area.querySelectorAll(".chip")];
const fieldOf = (area) => area.querySelector("[data-category]");

// Returns the chosen categories, one a line.
export const chosen = (area) => chips(area).map(({ value }) => value).join("\n");

const choicesOf = (area) => [...area.querySelectorAll("button[value]:not(.chip, [hidden])")];

// Shows which categories are chosen.
export function mark(area) {
  const there = chips(area);
  const buttons = choicesOf(area);
  const names = buttons.map(({ value }) => value);
  for (const one of there) one.hidden = names.includes(one.value);
  for (const button of buttons) button.ariaPressed = String(there.some(({ value }) => value === button.value));
  fieldOf(area).required = !there.length;
}

// Chooses a category, or leaves it out.
export function toggle(area, name) {
  const there = chips(area).find(({ value }) => value === name);
  if (there) there.remove();
  else fieldOf(area).before(chip(name));
  mark(area);
}

export function clear(area) {
  for (const one of chips(area)) one.remove();
  mark(area);
}

function chip(name) {
  const said = `${name}: leave it out`;
  const made = Object.assign(document.createElement("button"), { type: "button", className: "slim chip", value: name, title: said, ariaLabel: said });
  const text = document.createElement("bdi");
  text.textContent = name;
  made.append(text, "×");
  return made;
}

// Chooses the category in a field.
function take(field) {
  const name = field.value.trim();
  const area = areaOf(field);
  if (!chips(area).some(({ value }) => value === name)) toggle(area, name);
  field.value = "";
  hide();
  field.dispatchEvent(new Event("input", { bubbles: true }));
}

// Returns the categories that a submitted form gives to a photo, one a line; empty if a button only chose one of several.
export function given({ target, submitter }) {
  const area = areaOf(target);
  const name = submitter?.value || new FormData(target).get("category")?.trim();
  if (!area) return name;
  if (!submitter?.value) {
    if (name) take(fieldOf(area));
    return chosen(area);
  }
  toggle(area, name);
  return "";
}

const isField = (element) => element.matches?.("[data-category]") && areaOf(element);
document.addEventListener("keydown", (event) => {
  if (event.isComposing || !isField(event.target)) return;
  const area = areaOf(event.target);
  if (event.target.value.trim()) {
    if (event.key !== "Enter") return;
    take(event.target);
  } else {
    const choice = choicesOf(area)[event.key - 1]; // a digit in the empty field, as beside it
    if (!choice || event.ctrlKey || event.metaKey || event.altKey) return;
    toggle(area, choice.value);
  }
  event.preventDefault();
});
// A chosen suggestion, which no user has typed.
document.addEventListener("input", (event) => {
  if (!event.isTrusted && isField(event.target) && event.target.value) take(event.target);
});
document.addEventListener("click", (event) => {
  const leaves = event.target.closest(".chip");
  if (!leaves) return;
  const area = areaOf(leaves);
  toggle(area, leaves.value);
  fieldOf(area).focus();
});
