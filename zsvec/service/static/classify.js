// Classify: sends each photo in a separate request, a few at a time. The service stores no photo; the page has the files
// until it is left, and the list after that.

import { makeChange } from "./change.js";
import "./combobox.js";
import { busy, loadPart, open, problemIn, rendered, sayProblem, send } from "./page.js";
import { takeFiles } from "./files.js";
import { forget, forgetAll, keep, kept } from "./kept.js";
import { cutPart, showPart } from "./part.js";
import { given, toggle as toggleName } from "./several.js";
import { csv } from "./spreadsheet.js";

const AT_ONCE = 3;
const ATTEMPTS = 5;
const MOST = 2000; // photos in the list
const MOST_OF_ONE = 64; // photos of one thing
const SIDE = 192; // pixels of a thumbnail
const COLUMNS = ["source", "label", "nearest", "probability", "unknown", "novelty", "novelty_basis", "distance", "error"]; // as `zsvec classify --csv`
const VERDICTS = ["sure", "unsure", "unknown"];
const results = document.getElementById("results");
const list = document.getElementById("answers");
const filters = document.getElementById("filters");
const names = document.getElementById("category-names");
const heard = document.getElementById("heard");
const blank = document.getElementById("answer-row");
const one = document.getElementById("combined");
const showsOne = document.getElementById("shows-one");
const items = new Map(); // row: { file, … }
const digits = (number) => number.toLocaleString("en");
const photos = (number) => (number === 1 ? "1 photo" : `${digits(number)} photos`);

// Requests

const waiting = [];
let running = 0;
let done = 0;
let total = 0;

function ask(row, first = false) {
  if (waiting.includes(row)) return;
  total += 1;
  row.querySelector(".body").ariaBusy = "true";
  if (first) waiting.unshift(row);
  else waiting.push(row);
  next();
}

function next() {
  while (running < AT_ONCE && waiting.length) {
    running += 1;
    const row = waiting.shift();
    look(row).finally(() => {
      running -= 1;
      done += 1;
      next();
    });
  }
  busy("classify", running ? `Looking at ${total === 1 ? "the photo" : `${Math.min(done + 1, total)} of ${photos(total)}`} …` : null, total > 1 ? done / total : null);
  if (running) return;
  if (total > 1) heard.textContent = totals();
  done = total = 0;
}

async function look(row) {
  const item = items.get(row);
  if (!item) return; // removed from the list meanwhile
  const words = row.querySelector(".waiting");
  const say = (text) => words && (words.textContent = text);
  const copy = item.small ?? (await small(item.file));
  if (!items.has(row)) return;
  if (copy !== item.small) showSmall(row, item, copy);
  for (let attempt = 1; ; attempt += 1) {
    const form = new FormData();
    form.append("images", item.file, item.file.name);
    const answer = await send("/classify", form, { quiet: true, sending: (share) => say(share < 1 ? "Sending …" : "Looking at it …") });
    if (answer.status === 401) location.assign("/login");
    if (answer.status === 429 && attempt < ATTEMPTS) {
      say("Waiting: others are first …");
      await new Promise((resolve) => setTimeout(resolve, 1000 * attempt * Number(answer.getResponseHeader("Retry-After") ?? 1)));
      continue;
    }
    if (!items.has(row)) return;
    const said = answer.status === 200 ? rendered(answer.responseText) : null;
    if (said?.matches(".said")) show(row, item, said);
    else failed(row, item, answer);
    return;
  }
}

// Returns a small copy, so that the browser need not hold the decoded photo; null for a format that it cannot show.
async function small(file) {
  try {
    const photo = await createImageBitmap(file);
    const scale = Math.min(1, SIDE / Math.max(photo.width, photo.height));
    const canvas = new OffscreenCanvas(Math.ceil(photo.width * scale), Math.ceil(photo.height * scale));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.fillStyle = "white"; // JPEG has no transparency
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(photo, 0, 0, canvas.width, canvas.height);
    photo.close();
    return await canvas.convertToBlob({ type: "image/jpeg", quality: 0.8 });
  } catch {
    return null;
  }
}

// Rows

function showSmall(row, item, copy) {
  item.small = copy;
  const image = row.querySelector("img");
  if (copy) image.src = URL.createObjectURL(copy);
  else row.querySelector(".thumb").classList.add("absent");
}

function newRow(item) {
  const row = blank.content.cloneNode(true).firstElementChild;
  row.querySelector("img").alt = `Your photo ${item.name}`;
  row.querySelector(".file").textContent = item.name;
  items.set(row, item);
  return row;
}

function show(row, item, said) {
  const more = said.querySelector("template");
  item.more = more?.innerHTML ?? "";
  more?.remove();
  const { verdict, label, headline, prediction } = said.dataset;
  const before = said.querySelector(".before");
  if (before && item.before) {
    before.textContent = item.before === headline ? "The answer is the same as before." : `Before: ${item.before}. Now: ${headline}.`;
    before.hidden = false;
  }
  Object.assign(item, { verdict, label, headline, prediction: JSON.parse(prediction), before: null });
  delete said.dataset.prediction;
  put(row, item, said);
  const { key, name, size, lastModified, small } = item;
  keep({ key, name, size, lastModified, small, verdict, label, headline, prediction: item.prediction, more: item.more, html: said.outerHTML });
}

function put(row, item, said) {
  const body = row.querySelector(".body");
  const focused = body.contains(document.activeElement);
  row.dataset.verdict = item.verdict;
  body.replaceChildren(said);
  body.ariaBusy = "false";
  if (focused) body.querySelector("button")?.focus({ preventScroll: true });
  if (total === 1) heard.textContent = `${item.name}: ${item.headline}`;
  refresh();
}

function failed(row, item, answer) {
  const said = document.createElement("div");
  said.className = "said";
  said.append(problemIn(answer).querySelector("p"));
  const again = document.createElement("button");
  again.type = "button";
  again.className = "slim";
  again.dataset.asksAgain = "";
  again.textContent = "Try again";
  said.append(again);
  Object.assign(item, { verdict: "unread", label: "", headline: said.firstChild.textContent, prediction: null });
  put(row, item, said);
}

function take(row) {
  URL.revokeObjectURL(row.querySelector("img").src);
  forget(items.get(row).key);
  items.delete(row);
  row.remove();
}

// Shows the list from before the page was left. Its files are not there any more.
async function restore() {
  for (const item of (await kept()).slice(0, MOST)) {
    const row = newRow(item);
    showSmall(row, item, item.small);
    list.append(row);
    put(row, item, rendered(item.html));
  }
  const key = items.get(list.firstChild)?.key[0]; // the same for photos that were added at once
  last = [...list.children].filter((row) => items.get(row).key[0] === key);
}

function add(files, _, said) {
  if (files.length > MOST) said.push(`The list has room for ${photos(MOST)}. Choose the others later.`);
  const mark = ({ name, size, lastModified }) => `${size} ${lastModified} ${name}`;
  const there = new Map([...items].map(([row, item]) => [mark(item), row]));
  const now = Date.now();
  const rows = files.slice(0, MOST).map((file, i) => {
    const { name, size, lastModified } = file;
    const row = there.get(mark(file)) ?? newRow({ key: [-now, i], name, size, lastModified }); // by key, as in the list
    items.get(row).file = file;
    return row;
  });
  list.prepend(...rows.filter((row) => !row.isConnected));
  const left = [...list.children].slice(MOST);
  for (const row of left) take(row);
  if (left.length) said.push(`${photos(left.length)} left the list, which has room for ${digits(MOST)}.`);
  for (const row of rows) ask(row);
  last = rows;
  one.hidden = true;
  showNoOne();
  refresh();
}

// One answer for the photos that were added last

let last = []; // rows
let combined = []; // predictions of the shown answer

// Asks whether the photos show one thing, once all are answered. A shown answer follows corrections of its photos.
function offerOne() {
  const rows = last.filter((row) => items.has(row));
  if (rows.some((row) => row.querySelector(".body").ariaBusy !== "false")) return;
  const seen = rows.filter((row) => items.get(row).prediction?.ranking?.length);
  one.hidden = seen.length < 2 || seen.length > MOST_OF_ONE || "several" in list.dataset;
  one.querySelector(".check span").textContent = `These ${photos(seen.length)} show one thing`;
  const predictions = seen.map((row) => items.get(row).prediction);
  const same = predictions.length === combined.length && predictions.every((prediction, i) => prediction === combined[i]);
  if (one.hidden || !showsOne.checked || same) return;
  combined = predictions;
  combine(seen);
}

async function combine(rows) {
  const predictions = combined;
  const answer = await send("/classify/combined", new Blob([JSON.stringify({ predictions })], { type: "application/json" }), { quiet: true });
  if (answer.status === 401) location.assign("/login");
  if (predictions !== combined) return; // of other photos meanwhile
  const said = answer.status === 200 ? rendered(answer.responseText) : problemIn(answer).querySelector("p");
  const card = blank.content.cloneNode(true).firstElementChild;
  card.dataset.verdict = said.dataset.verdict ?? "";
  card.querySelector(".thumb").replaceChildren(...rows.slice(0, 4).map((row) => row.querySelector("img").cloneNode()));
  card.querySelector(".file").textContent = `${photos(rows.length)} of one thing`;
  card.querySelector(".body").replaceChildren(said);
  card.querySelector(".body").ariaBusy = "false";
  const shown = one.querySelector(".answers");
  const focused = shown.contains(document.activeElement);
  shown.replaceChildren(card);
  if (focused) card.querySelector("button")?.focus({ preventScroll: true });
  heard.textContent = `${photos(rows.length)} of one thing: ${said.dataset.headline ?? said.textContent}`;
}

function showNoOne() {
  showsOne.checked = false;
  one.querySelector(".answers").replaceChildren();
  combined = [];
}

// Shows or hides a part of a row. Evidence is in the page only while it is open, because its photos are loaded then.
function toggle(row, button) {
  const opened = row.querySelector(".opened");
  if (!opened.firstChild) {
    const { more, prediction } = items.get(row);
    opened.innerHTML = more; // rendered by the service
    const names = opened.querySelector("[data-several] [data-names]"); // absent if a photo has one category
    if (names) for (const { label } of prediction.labels) toggleName(names, label);
  }
  const part = opened.querySelector(`[data-part="${button.dataset.shows}"]`);
  part.hidden = !part.hidden;
  button.ariaExpanded = String(!part.hidden);
  if (!part.hidden) part.querySelector("button, input")?.focus({ preventScroll: true });
  if (![...opened.children].some((one) => !one.hidden)) opened.replaceChildren();
}

// Shows a photo large; beside a reference, if one is given.
function enlarge(item, title, reference = null) {
  const dialog = document.getElementById("compare-dialog");
  const photo = document.getElementById("compare-photo");
  const copy = item.file ?? item.small;
  for (const thumb of dialog.querySelectorAll(".thumb")) thumb.classList.remove("absent");
  photo.src = copy ? URL.createObjectURL(copy) : "";
  document.getElementById("compare-title").textContent = title;
  document.getElementById("compare-other").hidden = document.getElementById("compare-like").hidden = !reference;
  window.htmx.trigger("#compare-similar", "htmx:abort"); // a late answer about the photo of before
  document.getElementById("compare-similar").replaceChildren();
  if (reference) {
    const { hash, category, page } = reference.dataset;
    document.getElementById("compare-reference").src = reference.querySelector("img").src;
    document.getElementById("compare-like").dataset.like = hash;
    const link = document.getElementById("compare-category");
    link.textContent = category;
    link.href = page;
  }
  dialog.addEventListener("close", () => URL.revokeObjectURL(photo.src), { once: true });
  open(dialog);
}

function showSimilar(hash) {
  document.getElementById("compare-title").textContent = "Similar photos";
  loadPart(`/similar/${hash}`, { source: "#compare-similar", target: "#compare-similar", swap: "innerHTML" });
}

// Totals, filters, downloads

const count = (verdict) => [...items.values()].filter((item) => item.verdict === verdict).length;

function totals() {
  const [unread, left] = [count("unread"), count(undefined)];
  const parts = VERDICTS.map((verdict) => `${digits(count(verdict))} ${verdict}`);
  if (unread) parts.push(`${digits(unread)} not read`);
  if (left) parts.push(`${digits(left)} waiting`);
  return `${photos(items.size)}: ${parts.join(", ")}`;
}

// Returns a function that tells whether a photo is shown.
function filter() {
  const { verdict, label } = Object.fromEntries(new FormData(filters));
  return (item) => item.stays || ((!verdict || item.verdict === verdict) && (!label || item.label === label));
}

let due = false;
function refresh() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    results.hidden = !items.size;
    document.getElementById("totals").textContent = totals();
    const unread = filters.querySelector("[value=unread]");
    unread.parentElement.hidden = !count("unread") && !unread.checked;
    const shown = filter();
    for (const [row, item] of items) row.hidden = !shown(item);
    offer(filters.elements.label);
    offerOne();
  });
}

// Offers the categories of the answers, with their numbers.
function offer(select) {
  const numbers = new Map();
  for (const { label } of items.values()) if (label) numbers.set(label, (numbers.get(label) ?? 0) + 1);
  for (const option of [...select.options].slice(1)) {
    if (!numbers.has(option.value) && !option.selected) option.remove();
    else option.text = `${option.value} (${numbers.get(option.value) ?? 0})`;
    numbers.delete(option.value);
  }
  for (const [label, number] of numbers) {
    const after = [...select.options].slice(1).find((option) => option.value.localeCompare(label) > 0);
    select.add(new Option(`${label} (${number})`, label), after ?? null);
  }
}

// Returns CSV; where a photo may have several categories, with a row for each of its labels.
function table(predictions) {
  if (!("several" in list.dataset)) return csv(COLUMNS, predictions);
  const rows = predictions.flatMap((one) => (one.labels?.length ? one.labels : [null]).map((given) => ({ ...one, labels: given?.label })));
  return csv([...COLUMNS, "labels"], rows);
}

function download(kind) {
  const found = [...list.children].map((row) => items.get(row)).filter(filter());
  const predictions = found.map((item) => item.prediction).filter(Boolean);
  const [text, type] = kind === "csv" ? [table(predictions), "text/csv"] : [JSON.stringify(predictions, null, 1), "application/json"];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = `photos.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// Corrections

let corrections = Promise.resolve(); // one after the other

// Adds the photos of rows to a category.
async function teach(rows, name) {
  const taught = rows.map((row) => items.get(row));
  if (taught.some((item) => item.teaching)) return; // a second click
  if (!taught.every((item) => item.file)) return sayProblem("This browser has only a small copy of the photo.", "Choose the photo again to correct it.");
  for (const item of taught) item.teaching = true;
  const learned = await learn(taught.map((item) => item.file), name);
  for (const item of taught) item.teaching = false;
  if (!learned) return;
  for (const row of rows.filter((row) => items.has(row))) {
    const item = items.get(row);
    item.taught = item.stays = true;
    item.before = item.headline;
    ask(row, true);
  }
}

// Adds files to a category, or to several, one a line, as one change. Returns whether the change was made.
function learn(files, name) {
  const given = name.split("\n");
  const requests = files.map((file, i) => {
    const more = i + 1 < files.length && "yes";
    return { path: "/correct", fields: [["category", name], ["images", file], ["more", more]], progress: () => [`Learning that this is “${given.join("” and “")}” …`, files.length > 1 ? i / files.length : null] };
  });
  corrections = corrections.then(() => makeChange(requests)).then((learned) => {
    const known = [...names.options].map((option) => option.value);
    if (learned) names.append(...given.filter((one) => !known.includes(one)).map((one) => new Option("", one)));
    return learned;
  });
  return corrections;
}

function choosePart(item) {
  if (item.file) showPart(item.file);
  else sayProblem("This browser has only a small copy of the photo.", "Choose the photo again to look at a part of it.");
}

async function submitPart(event) {
  event.preventDefault();
  const dialog = event.target.closest("dialog");
  const name = new FormData(event.target).get("category")?.trim();
  const part = await cutPart();
  if (name === undefined) add([part], null, []);
  else if (!name || !(await learn([part], name))) return;
  event.target.reset();
  dialog.close();
}

if (list) {
  for (const form of document.querySelectorAll("#part-dialog form")) form.addEventListener("submit", submitPart);
  takeFiles(add, { most: MOST });
  list.addEventListener("submit", (event) => {
    event.preventDefault();
    const chosen = given(event);
    if (chosen) teach([event.target.closest(".answer")], chosen);
  });
  one.addEventListener("submit", (event) => {
    event.preventDefault();
    teach(last.filter((row) => combined.includes(items.get(row)?.prediction)), event.submitter.value);
  });
  showsOne.addEventListener("change", () => (showsOne.checked ? offerOne() : showNoOne()));
  list.addEventListener("click", (event) => {
    const row = event.target.closest(".answer");
    const shows = event.target.closest("[data-shows]");
    if (shows) toggle(row, shows);
    const compares = event.target.closest("[data-compares]");
    if (compares) enlarge(items.get(row), `Similarity ${compares.dataset.similarity}`, compares);
    if (event.target.closest("[data-like]")) enlarge(items.get(row), "Similar photos");
    if (event.target.closest("[data-cuts]")) choosePart(items.get(row));
    if (event.target.closest("[data-asks-again]")) ask(row, true);
    if (event.target.closest("[data-forgets]")) {
      (row.nextElementSibling ?? row.previousElementSibling)?.querySelector("button")?.focus();
      take(row);
    }
    refresh();
  });
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("change", () => {
    for (const item of items.values()) item.stays = false;
    refresh();
  });
  document.addEventListener("click", (event) => {
    const like = event.target.closest("[data-like]");
    if (like) showSimilar(like.dataset.like);
    const downloads = event.target.closest("[data-downloads]");
    if (downloads) download(downloads.dataset.downloads);
    if (event.target.closest("[data-clears]")) {
      waiting.length = 0;
      for (const row of [...items.keys()]) take(row);
      forgetAll();
      refresh();
    }
  });
  // A correction was undone or redone.
  document.body.addEventListener("zsvec:changed", (event) => {
    if (!event.detail.undone) return;
    for (const [row, item] of items) {
      if (!item.taught) continue;
      item.before = item.headline;
      ask(row);
    }
  });
  restore();
  addEventListener("beforeunload", (event) => running && event.preventDefault());
}
