// Categories: add, move and remove pictures. The page is loaded from the service again after each change.

import { dragPictures } from "./drag.js";
import { takeFiles } from "./files.js";
import { busy, open, send } from "./page.js";

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

async function sendFiles(path, files, done, total, fields = []) {
  const form = new FormData();
  for (const [name, value] of fields) form.append(name, value);
  for (const file of files) form.append("images", file, file.name);
  const which = total > files.length ? `${done + 1} to ${done + files.length} of ${images(total)}` : images(total);
  busy(form, total ? `Adding ${which} …` : "Adding …");
  const sending = (share) => busy(form, share < 1 ? `Sending ${which}: ${Math.floor(100 * share)} %` : `Looking at ${which} …`);
  const ok = await send(path, form, { sending: total ? sending : undefined });
  busy(form, null);
  return ok;
}

async function addTo(path, files, limits) {
  let done = 0;
  for (const part of parts(files, limits)) {
    if (!(await sendFiles(`${path}/references`, part, done, files.length))) return;
    done += part.length;
  }
}

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
  const name = fields.find(([field]) => field === "name")[1].trim();
  const button = form.querySelector(".primary");
  button.disabled = true;
  const [first = [], ...rest] = parts(chosen, form.dataset);
  const ok = await sendFiles("/categories", first, 0, chosen.length, fields);
  button.disabled = false;
  if (!ok) return;
  get("add-dialog").close();
  form.reset();
  chosen = [];
  showChosen();
  const left = rest.flat();
  if (left.length) await addTo(`/categories/${encodeURIComponent(name)}`, left, form.dataset);
}

takeFiles((files, at) => {
  const [content, adding] = [get("content"), get("add-dialog")];
  const card = at?.closest?.("[data-takes-files]");
  if (!get("reference-dialog")) return; // the key may only read
  if (card && !adding.open) return addTo(card.dataset.takesFiles, files, get("add-form").dataset);
  if (content.dataset.page) return addTo(content.dataset.page, files, content.dataset);
  chosen = [...chosen, ...files];
  showChosen();
  if (!adding.open) open(adding);
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
