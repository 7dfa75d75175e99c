// Fields for the name of a category that suggest categories with a photo (macro category_field), as in
// https://www.w3.org/WAI/ARIA/apg/patterns/combobox/examples/combobox-autocomplete-list/

const MOST = 50; // suggestions

const all = () => [...(document.getElementById("category-names")?.options ?? [])];
const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase().trim();
const plains = new WeakMap();
const plainOf = (option) => plains.get(option) ?? plains.set(option, plain(option.value)).get(option);

// Return the option of the category with a name, and of one with a name that may differ in case and accents.
export const known = (name) => all().find(({ value }) => value === name.normalize("NFC").trim());
export const alike = (name) => known(name) ?? all().find((option) => plainOf(option) === plain(name));

const list = Object.assign(document.createElement("ul"), { id: "suggestions", className: "suggestions", role: "listbox", ariaLabel: "Categories" });
list.popover = "manual"; // above dialogs
let [field, active] = [null, -1]; // the field whose suggestions are shown, and the marked suggestion

function suggested(input, text) {
  const wanted = plain(text);
  const others = all().filter(({ value }) => value !== input.dataset.except);
  const at = new Map(others.map((option) => [option, plainOf(option).indexOf(wanted)]));
  return [...others.filter((option) => at.get(option) === 0), ...others.filter((option) => at.get(option) > 0)].slice(0, MOST);
}

function suggestion({ value, dataset }, index) {
  const item = document.getElementById("suggestion").content.cloneNode(true).firstElementChild;
  item.id = `suggestion-${index}`;
  item.dataset.value = value;
  item.querySelector("bdi").textContent = value;
  item.querySelector(".small").textContent = dataset.photos === "1" ? "1 photo" : dataset.photos ? `${dataset.photos} photos` : "";
  const image = item.querySelector("img");
  if (dataset.photos === "0") image.remove();
  else Object.assign(image, { loading: "lazy", src: `/categories/${encodeURIComponent(value)}/photo` });
  return item;
}

// While the user types, shows nothing for a new name or a complete one; otherwise, shows all categories for these.
function show(input, typing = false) {
  hide();
  let options = suggested(input, input.value);
  if (options.every(({ value }) => value === input.value.trim())) options = typing ? [] : suggested(input, "");
  if (!options.length) return;
  list.replaceChildren(...options.map(suggestion));
  field = input;
  input.after(list); // a modal dialog makes everything outside inert
  list.showPopover();
  input.ariaExpanded = "true";
  place();
}

export function hide() {
  list.remove();
  if (field) field.ariaExpanded = "false";
  field?.removeAttribute("aria-activedescendant");
  [field, active] = [null, -1];
}

function place() {
  if (!field) return;
  const box = field.getBoundingClientRect();
  const below = (visualViewport?.height ?? innerHeight) - box.bottom;
  const up = below < 180 && box.top > below;
  const [top, bottom] = up ? ["auto", `${innerHeight - box.top}px`] : [`${box.bottom}px`, "auto"];
  Object.assign(list.style, { left: `${box.left}px`, width: `${box.width}px`, top, bottom, maxHeight: `${Math.min(320, (up ? box.top : below) - 8)}px` });
}

function step(by) {
  list.children[active]?.setAttribute("aria-selected", "false");
  active = (active + by + list.children.length) % list.children.length;
  list.children[active].ariaSelected = "true";
  list.children[active].scrollIntoView({ block: "nearest" });
  field.setAttribute("aria-activedescendant", list.children[active].id);
}

function choose(item) {
  const input = field;
  input.value = item.dataset.value;
  hide();
  input.dispatchEvent(new Event("input", { bubbles: true }));
}

// Says below the field whether the category is new, and refuses a name that cannot be meant.
function check(input) {
  const name = input.value.trim();
  const there = known(name);
  const near = alike(name)?.value;
  let problem = "";
  if (name && name === input.dataset.except) problem = `This is “${name}” already. Choose another category.`;
  else if (name && !there && input.dataset.category === "existing") problem = `There is no category “${name}”.${near ? ` Do you mean “${near}”?` : ""}`;
  input.setCustomValidity(problem);
  const said = document.getElementById(input.getAttribute("aria-describedby"));
  if (said) said.textContent = problem || (there || !name ? "" : `New category: ${name}${near ? `. There is also “${near}”.` : ""}`);
  said?.classList.toggle("error", problem !== "");
}

const isField = (element) => element instanceof HTMLInputElement && "category" in element.dataset;
document.addEventListener("input", (event) => {
  if (!isField(event.target)) return;
  check(event.target);
  if (event.isTrusted) show(event.target, true);
});
// Once the fields are reset, which is after the event.
document.addEventListener("reset", (event) => setTimeout(() => [...event.target.elements].filter(isField).forEach(check)));
document.addEventListener("focusin", (event) => isField(event.target) && check(event.target));
document.addEventListener("focusout", hide);
document.addEventListener("mousedown", (event) => list.contains(event.target) && event.preventDefault()); // keeps the focus
document.addEventListener("click", (event) => {
  const item = event.target.closest(".suggestions li");
  if (item) choose(item);
  else if (isField(event.target)) show(event.target);
});
document.addEventListener("scroll", (event) => event.target !== list && place(), true);
addEventListener("resize", place);
document.addEventListener("keydown", (event) => {
  if (!isField(event.target) || event.isComposing) return;
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    if (!field) show(event.target);
    if (field) step(event.key === "ArrowDown" || active < 0 ? 1 : -1);
  } else if (event.key === "Escape" && field) hide();
  else if (event.key === "Enter" && active >= 0) choose(list.children[active]);
  else return;
  event.preventDefault();
  event.stopImmediatePropagation(); // Escape would close the dialog
}, true);
