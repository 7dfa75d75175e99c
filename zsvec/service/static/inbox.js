// Inbox: keys, buttons and touch label the current image or all selected images. Labels are sent one after the other.
// Labelled images leave the list at once, and return if the request fails.

import "./combobox.js";
import { makeChange } from "./change.js";
import { idle, listKeys } from "./keys.js";
import { inLines, loadPart } from "./page.js";
import { chosen as chosenNames, clear, given, mark, toggle } from "./several.js";

const FEW = 8; // loads more images when fewer are left
const list = document.getElementById("images");
const panel = document.getElementById("panel");
const choices = document.getElementById("choices"); // absent if the key may only read
const other = document.getElementById("other");
const several = document.getElementById("several");
const names = document.querySelector("[data-several] [data-names]"); // absent if a photo has one category

const sent = new Set(); // hashes of images that are being labelled or dismissed
let current = null;
let waiting = 0;
let queue = Promise.resolve();
let loading = null;

const tiles = () => [...list.children];
const selected = () => tiles().filter((tile) => tile.ariaSelected === "true");
const chosen = () => (selected().length ? selected() : current ? [current] : []);
const photos = (number) => (number === 1 ? "1 photo" : `${number} photos`);

// Images

function choose(tile, { focus = false } = {}) {
  if (current) current.tabIndex = -1;
  if (names && tile !== current) clear(names); // they are of the photo before
  current = tile;
  if (tile) tile.tabIndex = 0;
  show();
  if (!tile || !focus) return;
  tile.focus({ preventScroll: true });
  tile.scrollIntoView({ block: "nearest" });
}

// Returns the likely categories of the chosen images, by the sum of their probabilities.
function likely(group) {
  const sums = new Map();
  for (const tile of group) {
    for (const [name, , share] of JSON.parse(tile.dataset.choices)) sums.set(name, (sums.get(name) ?? 0) + share);
  }
  const words = new Map(group.length === 1 ? JSON.parse(group[0].dataset.choices).map(([name, percent]) => [name, percent]) : []);
  return [...sums].sort((a, b) => b[1] - a[1]).map(([name]) => [name, words.get(name) ?? ""]);
}

function show() {
  const group = chosen();
  const many = selected().length;
  for (const tile of tiles()) tile.classList.toggle("current", tile === current);
  list.hidden = !list.children.length;
  panel.hidden = !group.length;
  document.querySelectorAll("[data-selects]").forEach((button) => (button.hidden = !several.ariaPressed.includes("true") && !many));
  if (!group.length) return;
  const text = document.getElementById("panel-text");
  const picture = document.getElementById("panel-picture");
  const [shown] = many ? [group.at(-1)] : group;
  picture.closest(".thumb").classList.remove("absent");
  const source = shown.querySelector("img").src;
  if (picture.src !== source) picture.src = source;
  panel.classList.toggle("many", many > 0);
  text.replaceChildren(shown.querySelector("template").content.cloneNode(true));
  if (many) {
    const title = document.createElement("h2");
    title.textContent = `${photos(many)} selected`;
    text.replaceChildren(title);
  }
  if (!choices) return;
  const found = likely(group);
  [...choices.elements].forEach((button, i) => {
    button.hidden = i >= found.length;
    button.value = found[i]?.[0] ?? "";
    button.querySelector(".name").textContent = found[i]?.[0] ?? "";
    button.querySelector(".figure").textContent = found[i]?.[1] ?? "";
  });
  if (names) mark(names);
}

function count(number) {
  waiting = number;
  document.getElementById("waiting").textContent = number === 1 ? "1 photo waits" : `${number} photos wait`;
}

// Loads more images, except shown and sent ones.
function load() {
  loading ??= more().then((loaded) => {
    loading = null;
    if (loaded && !list.children.length && !sent.size) nothing();
  });
}

// Returns whether they were loaded.
async function more() {
  const shown = [...tiles().map((tile) => tile.dataset.hash), ...sent].join(",");
  const before = list.children.length;
  if (!(await loadPart(`/inbox/next?shown=${shown}`, { source: list, target: list, swap: "beforeend" }))) return false;
  for (const tile of tiles()) if (sent.has(tile.dataset.hash)) tile.remove();
  count(Math.max(parseInt(document.getElementById("waiting").textContent) - sent.size, list.children.length));
  if (!current?.isConnected) choose(list.firstElementChild, { focus: before === 0 && idle() });
  else show();
  return true;
}

function nothing() {
  document.getElementById("inbox").hidden = true;
  const end = document.getElementById("nothing");
  end.hidden = false;
  end.querySelector("[tabindex]").focus();
}

// Labels

function act(path, fields, doing) {
  const group = chosen();
  if (!group.length || !choices) return;
  const inList = list.contains(document.activeElement) || panel.contains(document.activeElement) || idle();
  const places = tiles();
  const rest = places.filter((tile) => !group.includes(tile));
  const next = rest.find((tile) => places.indexOf(tile) > places.indexOf(group[0])) ?? rest.at(-1) ?? null;
  const hashes = group.map((tile) => tile.dataset.hash);
  for (const tile of group) {
    sent.add(tile.dataset.hash);
    tile.remove();
  }
  count(Math.max(waiting - group.length, 0));
  keys.anchorAt(null);
  choose(next, { focus: inList });
  queue = queue.then(async () => {
    const done = await makeChange([{ path, fields: [...inLines("hash", hashes), ...fields], progress: () => [doing, null] }]);
    for (const hash of hashes) sent.delete(hash);
    if (done) forget(hashes);
    else back(group);
    if (list.children.length < FEW) load();
  });
}

function back(group) {
  for (const tile of group) tile.ariaSelected = "false";
  list.prepend(...group);
  count(waiting + group.length);
  choose(group[0], { focus: idle() });
}

// Removes labelled and dismissed images from the groups.
function forget(hashes) {
  for (const hash of hashes) {
    const gone = document.querySelector(`#groups input[value="${hash}"]`);
    const group = gone?.closest("form.group");
    gone?.closest("li").remove();
    const left = group?.querySelectorAll("[name=hash]").length;
    if (!left) {
      group?.remove();
      continue;
    }
    group.dataset.total -= 1;
    const total = Number(group.dataset.total);
    group.querySelector("h3").textContent = total > left ? `${photos(total)}, of which the ${left} most typical are shown` : photos(left);
  }
}

// Labels the chosen images with one or several categories, one a line. Returns whether there was any.
function label(lines) {
  if (!lines) return false;
  const categories = lines.split("\n");
  categories.forEach(remember);
  if (names) clear(names);
  act("/inbox/label", [["category", lines]], `Labelling as “${categories.join("” and “")}” …`);
  return true;
}

function remember(name) {
  const there = document.getElementById("category-names");
  if (![...there.options].some((option) => option.value === name)) there.append(new Option("", name));
}

// Makes a category of the checked photos of a group.
function makeCategory(form) {
  const fields = [...new FormData(form)];
  const hashes = fields.filter(([field]) => field === "hash").map(([, hash]) => hash);
  const name = form.elements.category.value.trim();
  const button = form.querySelector(".strong");
  if (!name) return;
  button.disabled = true;
  queue = queue.then(async () => {
    const done = await makeChange([{ path: "/inbox/label", fields, progress: () => [`Making the category “${name}” …`, null] }]);
    button.disabled = false;
    if (!done) return;
    const gone = tiles().filter((tile) => hashes.includes(tile.dataset.hash));
    remember(name);
    form.remove();
    document.getElementById("groups-title").focus();
    count(Math.max(waiting - hashes.length, 0));
    for (const tile of gone) tile.remove();
    forget(hashes);
    if (!current?.isConnected) choose(list.firstElementChild);
    if (list.children.length < FEW) load();
  });
}

function dismiss() {
  act("/inbox/dismiss", [], "Dismissing …");
}

const keys = list && listKeys({
  items: tiles,
  current: () => current,
  go: (tile) => choose(tile, { focus: true }),
  isSelected: (tile) => tile.ariaSelected === "true",
  select: (tile, on) => (tile.ariaSelected = String(on)),
  selected: show,
  area: (element) => list.contains(element) || panel.contains(element),
  choose: (number) => {
    const button = choices.elements[number - 1];
    if (button && !button.hidden) button.click();
  },
  remove: dismiss,
  send: () => names !== null && label(chosenNames(names)),
  field: other?.elements.category,
});

if (list) {
  count(parseInt(document.getElementById("waiting").textContent));
  load();
  list.addEventListener("click", (event) => {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    if (event.shiftKey && choices) keys.selectTo(tile);
    else if (choices && (event.ctrlKey || event.metaKey || several.ariaPressed === "true")) keys.toggle(tile);
    if (!event.shiftKey) keys.anchorAt(tile);
    choose(tile, { focus: true });
  });
  list.addEventListener("focusin", (event) => {
    const tile = event.target.closest(".tile");
    if (tile && tile !== current) choose(tile);
  });
  several?.addEventListener("click", () => {
    const on = several.ariaPressed !== "true";
    several.ariaPressed = String(on);
    list.classList.toggle("selecting", on);
    if (!on) keys.selectAll(false);
    show();
  });
  document.addEventListener("click", (event) => {
    const selects = event.target.closest("[data-selects]");
    if (selects) keys.selectAll(selects.dataset.selects === "all");
    const fills = event.target.closest("[data-fills]");
    if (fills) {
      const field = fills.closest("form").elements.category;
      field.value = fills.textContent;
      field.focus();
    }
  });
  choices?.addEventListener("submit", (event) => {
    event.preventDefault();
    label(given(event));
  });
  other?.addEventListener("submit", (event) => {
    event.preventDefault();
    const categories = given(event);
    other.reset();
    named();
    current?.focus({ preventScroll: true });
    label(categories);
  });
  const named = () => {
    const name = other.elements.category.value.trim();
    const known = [...document.getElementById("category-names").options].some((option) => option.value === name);
    other.querySelector(".primary").textContent = name && !known ? "Make category" : "Label";
  };
  other?.addEventListener("input", named);
  document.getElementById("dismiss")?.addEventListener("click", dismiss);
  // A label or a dismissal was undone or redone.
  document.body.addEventListener("zsvec:changed", async (event) => {
    if (!event.detail.undone) return;
    await loading; // images from before the undo
    document.getElementById("nothing").hidden = true;
    document.getElementById("inbox").hidden = false;
    list.replaceChildren();
    choose(null);
    load();
    loadPart("/inbox/groups", { target: "#groups", swap: "innerHTML" });
  });
  document.getElementById("groups").addEventListener("submit", (event) => {
    event.preventDefault();
    makeCategory(event.target);
  });
}
