// Categories: add, move and remove pictures. The page is loaded from the service again after each change.

import { dragPictures } from "./drag.js";
import { takeFiles } from "./files.js";
import { busy, finish, open, rendered, sayProblem, send } from "./page.js";

const get = (id) => document.getElementById(id); // looked up at each use, because changes replace the content of the page
const images = (number) => (number === 1 ? "1 picture" : `${number} pictures`);

// Moving and removing

function selected() {
  return [...document.querySelectorAll(".select:checked")].map((box) => box.parentElement.querySelector("[data-reference]"));
}

// Returns all selected pictures if the picture is selected, or else the picture alone.
function together(picture) {
  const chosen = selected();
  return chosen.includes(picture) ? chosen : [picture];
}

let changing = false;
async function change(pictures, action, doing, fields = {}) {
  if (changing) return false; // a second click
  changing = true;
  const form = new FormData();
  for (const picture of pictures) form.append("reference", `${picture.dataset.hash}:${picture.dataset.category}`);
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  busy(form, `${doing} ${images(pictures.length)} …`);
  const done = await send(`/references/${action}`, form);
  busy(form, null);
  changing = false;
  return done;
}

const move = (pictures, category) => change(pictures, "move", "Moving", { category });

let opened = [];
function openPictures(pictures) {
  const dialog = get("reference-dialog");
  opened = pictures;
  const [first] = pictures;
  const one = pictures.length === 1;
  get("reference-title").textContent = one ? `A picture of “${first.dataset.category}”` : images(pictures.length);
  const shown = dialog.querySelector(".of-reference");
  shown.hidden = !one;
  if (one) {
    shown.querySelector(".thumb").classList.remove("absent");
    get("reference-picture").src = first.querySelector("img").src;
    const facts = [["From", first.dataset.source], ["Added", first.dataset.added], ["By", first.dataset.by]];
    get("reference-facts").replaceChildren(
      ...facts.filter(([, value]) => value).flatMap(([name, value]) => [["dt", name], ["dd", value]]).map(([tag, text]) => {
        const element = document.createElement(tag);
        element.textContent = text;
        return element;
      }),
    );
  }
  get("move-form").reset();
  open(dialog);
}

function showSelection() {
  const bar = document.querySelector(".selection");
  if (!bar) return;
  const number = selected().length;
  bar.hidden = !number;
  get("selected").textContent = number ? `${images(number)} selected` : "";
}

// Adding

// Splits files into requests within the limits of the service.
function* parts(files, { mostImages, mostBytes }) {
  let part = [];
  let size = 0;
  for (const file of files) {
    const full = part.length >= Number(mostImages) || size + file.size > 0.9 * Number(mostBytes);
    if (part.length && full) {
      yield part;
      part = [];
      size = 0;
    }
    part.push(file);
    size += file.size;
  }
  if (part.length) yield part;
}

// Adds files to a category, or makes a category of them, as one change. Returns whether all were added.
let adding = null; // what cancels
async function add(path, files, limits, fields = []) {
  const all = [...parts(files, limits)];
  const bytes = Math.max(files.reduce((sum, file) => sum + file.size, 0), 1);
  const name = fields.find(([field]) => field === "name")?.[1].trim();
  const signal = (adding = new AbortController()).signal;
  const cancel = () => adding.abort();
  signal.addEventListener("abort", () => busy(signal, "Cancelling …"));
  let change = null;
  let soFar = null;
  let request = null;
  let before = 0;
  for (const part of all.length ? all : [[]]) {
    const form = new FormData();
    for (const [field, value] of change ? [["change", change], ["so_far", soFar]] : fields) form.append(field, value);
    for (const file of part) form.append("images", file, file.name);
    const size = part.reduce((sum, file) => sum + file.size, 0);
    const sending = (share) => {
      const done = (before + share * size) / bytes;
      const text = share < 1 ? `Sending ${images(files.length)}: ${Math.floor(100 * done)} %` : `Looking at ${images(part.length)} …`;
      if (!signal.aborted) busy(signal, files.length ? text : "Adding …", files.length ? done : null, cancel);
    };
    sending(0);
    request = await send(change && name ? `/categories/${encodeURIComponent(name)}/references` : path, form, { sending, quiet: true, signal });
    if (request.status !== 200) break;
    before += size;
    const toast = rendered(request.responseText);
    change ??= toast.querySelector("[name=change]")?.value ?? null;
    soFar = toast.dataset.soFar;
    if (signal.aborted) break;
  }
  const done = request.status === 200 && !signal.aborted;
  if (!done && change) {
    const form = new FormData();
    form.append("change", change);
    const undone = await send("/undo", form, { quiet: true });
    if (signal.aborted && undone.status !== 200) request = undone;
  }
  busy(signal, null);
  adding = null;
  if (signal.aborted && (request.status === 200 || request.status === 0)) sayProblem("Cancelled.", "Nothing was added.");
  else finish(request);
  return done;
}

const addTo = (path, files, limits) => add(`${path}/references`, files, limits);

let chosen = []; // pictures for the new category
function showChosen() {
  get("add-pictures").replaceChildren(
    ...chosen.map((file, index) => {
      const item = document.createElement("li");
      item.className = "thumb";
      item.dataset.picture = "";
      const image = document.createElement("img");
      image.src = URL.createObjectURL(file);
      image.onload = () => URL.revokeObjectURL(image.src);
      image.alt = file.name;
      const leave = document.createElement("button");
      leave.type = "button";
      leave.dataset.leaves = index;
      leave.textContent = "×";
      leave.ariaLabel = `Leave out ${file.name}`;
      item.append(image, leave);
      return item;
    }),
  );
}

async function addCategory(form) {
  const fields = [...new FormData(form)].filter(([name]) => name === "name" || name === "texts");
  const button = form.querySelector(".primary");
  button.disabled = true;
  const added = await add("/categories", chosen, form.dataset, fields);
  button.disabled = false;
  if (!added) return;
  get("add-dialog").close();
  form.reset();
  chosen = [];
  showChosen();
}
get("add-dialog")?.addEventListener("close", () => adding?.abort());

takeFiles((files, at) => {
  const [content, dialog] = [get("content"), get("add-dialog")];
  const card = at?.closest?.("[data-takes-files]");
  if (!get("reference-dialog")) return; // the key may only read
  if (adding) return sayProblem("Pictures are being added.", "Wait until they are added, or cancel.");
  if (card && !dialog.open) return addTo(card.dataset.takesFiles, files, get("add-form").dataset);
  if (content.dataset.page) return addTo(content.dataset.page, files, content.dataset);
  chosen = [...chosen, ...files];
  showChosen();
  if (!dialog.open) open(dialog);
});
dragPictures({
  begin: () => document.querySelector(".targets")?.removeAttribute("hidden"),
  drop: (picture, category) => move(together(picture), category),
  end: () => document.querySelector(".targets")?.setAttribute("hidden", ""),
});
document.addEventListener("click", async (event) => {
  const picture = event.target.closest("[data-reference]");
  if (picture) openPictures(together(picture));
  if (event.target.closest("[data-opens-selection]")) openPictures(selected());
  const selects = event.target.closest("[data-selects]");
  if (selects) {
    for (const box of document.querySelectorAll(".select")) box.checked = selects.dataset.selects === "all";
    showSelection();
  }
  if (event.target.closest("[data-removes-references]") && (await change(opened, "remove", "Removing"))) get("reference-dialog").close();
  const leaves = event.target.closest("[data-leaves]");
  if (leaves) {
    chosen.splice(Number(leaves.dataset.leaves), 1);
    showChosen();
  }
});
document.addEventListener("change", (event) => event.target.matches(".select") && showSelection());
document.addEventListener("submit", async (event) => {
  if (event.target.id === "add-form") {
    event.preventDefault();
    await addCategory(event.target);
  }
  if (event.target.id === "move-form") {
    event.preventDefault();
    if (await move(opened, new FormData(event.target).get("category"))) get("reference-dialog").close();
  }
});
