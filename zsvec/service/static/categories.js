// Categories: add, move and remove photos. The page is loaded from the service again after each change.

import { isChanging, makeChange } from "./change.js";
import { dragPictures } from "./drag.js";
import { byFolder, takeFiles } from "./files.js";
import { compare, openFolders, photos, rowsToAdd } from "./folders.js";
import { inLines, open, sayProblem } from "./page.js";
import "./combobox.js";

const MOST_PHOTOS = 50_000; // in the folders of one drop
const get = (id) => document.getElementById(id); // looked up at each use, because changes replace the content of the page

// Moving and removing

function selected() {
  return [...document.querySelectorAll(".select:checked")].map((box) => box.parentElement.querySelector("[data-reference]"));
}

// Returns all selected pictures if the picture is selected, or else the picture alone.
function together(picture) {
  const chosen = selected();
  return chosen.includes(picture) ? chosen : [picture];
}

function change(pictures, action, doing, fields = []) {
  const references = inLines("reference", pictures.map(({ dataset }) => `${dataset.hash}:${dataset.category}`));
  const progress = () => [`${doing} ${photos(pictures.length)} …`, null];
  return makeChange([{ path: `/references/${action}`, fields: [...references, ...fields], progress }]);
}

const move = (pictures, category) => change(pictures, "move", "Moving", [["category", category]]);

let opened = [];
function openPictures(pictures) {
  const dialog = get("reference-dialog");
  opened = pictures;
  const [first] = pictures;
  const one = pictures.length === 1;
  get("reference-title").textContent = one ? `A photo of “${first.dataset.category}”` : photos(pictures.length);
  const shown = dialog.querySelector(".of-reference");
  shown.hidden = get("reference-similar").hidden = !one;
  get("reference-similar").href = `/similar/${first.dataset.hash}?category=${encodeURIComponent(first.dataset.category)}`;
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
  get("move-target").dataset.except = first.dataset.category;
  open(dialog);
}

function showSelection() {
  const bar = document.querySelector(".selection");
  if (!bar) return;
  const number = selected().length;
  bar.hidden = !number;
  get("selected").textContent = number ? `${photos(number)} selected` : "";
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

// Adds photos to categories as one change. Each row has a path, fields and files. Returns whether all were added.
async function add(rows, limits) {
  const files = rows.flatMap((row) => row.files);
  const bytes = Math.max(files.reduce((sum, file) => sum + file.size, 0), 1);
  let before = 0;
  const requests = rows.flatMap(({ path, fields = [], files: own }) =>
    (own.length ? [...parts(own, limits)] : [[]]).map((part, index) => {
      const [start, size] = [before, part.reduce((sum, file) => sum + file.size, 0)];
      before += size;
      const progress = (share) => {
        const done = (start + share * size) / bytes;
        const text = share < 1 ? `Sending ${photos(files.length)}: ${Math.floor(100 * done)} %` : `Looking at ${photos(part.length)} …`;
        return files.length ? [text, done] : ["Adding …", null];
      };
      const more = index ? [["adds", "yes"]] : []; // to the category that the first part has made
      return { path, fields: [...fields, ...more, ...part.map((file) => ["images", file])], progress };
    }),
  );
  for (const { fields } of requests.slice(0, -1)) fields.push(["more", "yes"]);
  return makeChange(requests);
}

let chosen = []; // photos for the new category
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

// Disables a form while its change is made, then closes the dialog of the form, if any.
async function submit(form, changing) {
  const buttons = form.querySelectorAll("fieldset, button:not([data-closes])");
  for (const button of buttons) button.disabled = true;
  const done = await changing;
  for (const button of buttons) button.disabled = false;
  if (done) form.closest("dialog")?.close();
  return done;
}

async function addCategory(form) {
  const fields = [...new FormData(form)].filter(([name]) => name === "name" || name === "texts");
  if (!(await submit(form, add([{ path: "/categories", fields, files: chosen }], form.dataset)))) return;
  form.reset();
  chosen = [];
  showChosen();
}

async function addFolders(form) {
  const rows = rowsToAdd();
  if (!rows.length) return sayProblem("There is nothing to add.", "The categories have these photos already.");
  get("folders-note").textContent = ""; // the comparison stops
  if (!(await submit(form, add(rows, form.dataset)))) compare();
}

function takePhotos(files, at) {
  const [content, dialog] = [get("content"), get("add-dialog")];
  const card = at?.closest?.("[data-takes-files]");
  if (!get("reference-dialog")) return; // the key may only read
  if (isChanging()) return sayProblem("Photos are being added.", "Wait until they are added, or cancel.");
  if (card && !dialog.open) return add([{ path: `${card.dataset.takesFiles}/references`, files }], get("add-form").dataset);
  if (content.dataset.page) return add([{ path: `${content.dataset.page}/references`, files }], content.dataset);
  chosen = [...chosen, ...files];
  showChosen();
  if (!dialog.open) open(dialog);
}

// On the page Categories, each folder becomes a category. Elsewhere, photos are added to one category.
function takeFolders(found, at) {
  if (!get("reference-dialog")) return; // the key may only read
  const folders = byFolder(found);
  const several = [...folders.keys()].filter(Boolean).length > 1;
  const card = at?.closest?.("[data-drop]")?.dataset.drop;
  if (get("folders-dialog") && !get("add-dialog").open) {
    if (isChanging()) return sayProblem("Photos are being added.", "Wait until they are added, or cancel.");
    const rows = card && !several ? new Map([[card, [...folders.values()].flat()]]) : folders;
    openFolders(rows, get("folders-form").dataset);
  } else if (several) sayProblem("These are several folders.", "To make a category of each, drop them on the page Categories. Here, drop one folder.");
  else takePhotos([...folders.values()].flat(), at);
}
takeFiles(takePhotos, { most: MOST_PHOTOS, takeFolders });
dragPictures({
  begin: () => document.querySelector(".targets")?.removeAttribute("hidden"),
  drop: (picture, category) => move(together(picture), category),
  end: () => document.querySelector(".targets")?.setAttribute("hidden", ""),
});
document.addEventListener("click", (event) => {
  const picture = event.target.closest("[data-reference]");
  if (picture) openPictures(together(picture));
  if (event.target.closest("[data-opens-selection]")) openPictures(selected());
  const selects = event.target.closest("[data-selects]");
  if (selects) {
    for (const box of document.querySelectorAll(".select")) box.checked = selects.dataset.selects === "all";
    showSelection();
  }
  if (event.target.closest("[data-removes-references]")) submit(get("move-form"), change(opened, "remove", "Removing"));
  const leaves = event.target.closest("[data-leaves]");
  if (leaves) {
    chosen.splice(Number(leaves.dataset.leaves), 1);
    showChosen();
  }
});
document.addEventListener("change", (event) => event.target.matches(".select") && showSelection());
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.id === "add-form") addCategory(form);
  else if (form.id === "folders-form") addFolders(form);
  else if (form.id === "move-form") submit(form, move(opened, form.elements.category.value));
  else if (form.dataset.changes) {
    const request = { path: form.getAttribute("action"), fields: [...new FormData(form)], progress: () => [form.dataset.changes, null] };
    submit(form, makeChange([request]));
  } else return;
  event.preventDefault();
});
