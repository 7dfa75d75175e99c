// The table of dropped folders, to be checked before anything is sent: each row becomes a category.

import { alike, known } from "./combobox.js";
import { open } from "./page.js";

const PREVIEWS = 3;
const HASHES = 1000; // in one question
const get = (id) => document.getElementById(id);
export const photos = (number) => (number === 1 ? "1 photo" : `${number.toLocaleString("en")} photos`);

let rows = []; // { row, files }
let holders = new Map(); // by file, the categories that have the photo; only of compared photos
let large = 0; // number of photos that are left out
let compared = 0; // number of comparisons so far

const nameOf = ({ row }) => row.querySelector("input").value.normalize("NFC").trim();
const sharedOf = (one) => one.files.filter((file) => holders.get(file)?.some((name) => name !== nameOf(one)));
const ownOf = (one) => one.files.filter((file) => holders.get(file)?.includes(nameOf(one)));

// Opens the table, or appends to the open one.
export function openFolders(folders, { mostBytes }) {
  const dialog = get("folders-dialog");
  const fits = (file) => file.size < 0.9 * Number(mostBytes);
  const added = [...folders].map(([name, files]) => {
    const row = get("folder-row").content.cloneNode(true).firstElementChild;
    const one = { row, files: files.filter(fits) };
    const input = row.querySelector("input");
    input.value = alike(name)?.value ?? name.normalize("NFC");
    input.ariaLabel = name ? `Category of the folder ${name}` : "Category of the photos without a folder";
    row.querySelector("button").ariaLabel = `Leave out ${name || "these photos"}`;
    row.querySelector("button").onclick = () => {
      rows = rows.filter((other) => other !== one);
      row.remove();
      rows.length ? show() : dialog.close();
    };
    row.querySelector(".previews").append(...one.files.slice(0, PREVIEWS).map(preview));
    return one;
  });
  if (!dialog.open) {
    [rows, large, holders] = [[], 0, new Map()];
    get("folders-form").reset();
    get("folders-rows").replaceChildren();
    open(dialog);
  }
  rows.push(...added);
  large += [...folders.values()].flat().length - added.flatMap(({ files }) => files).length;
  get("folders-rows").append(...added.map(({ row }) => row));
  show();
  compare();
}

function preview(file) {
  const item = document.createElement("span");
  item.className = "thumb";
  item.dataset.picture = "";
  const image = item.appendChild(new Image());
  image.loading = "lazy";
  image.decoding = "async";
  image.alt = "";
  image.src = URL.createObjectURL(file);
  image.onload = image.onerror = () => URL.revokeObjectURL(image.src);
  return item;
}

function show() {
  for (const one of rows) {
    const there = known(nameOf(one));
    const state = there ? `adds to the existing category of ${photos(Number(there.dataset.photos))}` : nameOf(one) ? "new category" : "";
    const shared = sharedOf(one);
    const others = [...new Set(shared.flatMap((file) => holders.get(file)))].filter((name) => name !== nameOf(one)).map((name) => `“${name}”`);
    const own = ownOf(one).length;
    const notes = [own && `${photos(own)} already there`, shared.length && `${photos(shared.length)} also in ${others.slice(0, 3).join(", ")}${others.length > 3 ? " …" : ""}`];
    one.row.querySelector(".number").textContent = photos(one.files.length);
    one.row.querySelector(".state").replaceChildren(
      ...[state, ...notes.filter(Boolean)].map((text) => Object.assign(document.createElement("p"), { textContent: text })),
    );
  }
  const shared = rows.reduce((sum, one) => sum + sharedOf(one).length, 0);
  get("folders-shared").hidden = !shared;
  get("folders-shared").querySelector("span").textContent = `Leave out the ${photos(shared)} that another category has`;
  const number = rows.flatMap(({ files }) => files).length;
  get("folders-said").textContent = `${rows.length === 1 ? "1 folder" : `${rows.length} folders`} with ${photos(number)}. Nothing is sent before you press Add.${large ? ` ${photos(large)} left out because of the size. Save them with fewer pixels.` : ""}`;
}

// Asks the service which photos it has, by the hashes of the files (`zsvec.content_hash`). Stops once photos are added.
export async function compare() {
  const table = (compared += 1);
  const note = get("folders-note");
  note.textContent = "";
  if (!window.crypto?.subtle) return (note.textContent = "This connection is not encrypted, so photos that the store has are found only when they are added.");
  const there = () => table === compared && get("folders-dialog").open && !get("folders-form").querySelector(":disabled");
  const all = rows.flatMap(({ files }) => files).filter((file) => !holders.has(file));
  for (let first = 0; first < all.length && there(); first += HASHES) {
    const byHash = new Map();
    for (const file of all.slice(first, first + HASHES)) {
      if (!there()) return;
      note.textContent = `Comparing the photos with the store: ${Math.floor((100 * (first + byHash.size)) / all.length)} %`;
      const digest = await file.arrayBuffer().then((content) => crypto.subtle.digest("SHA-256", content)).catch(() => null);
      if (digest) byHash.set(file, [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join(""));
    }
    const body = JSON.stringify({ hashes: [...new Set(byHash.values())] });
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body };
    const answer = byHash.size ? await fetch("/references/holders", options).catch(() => null) : null;
    if (!there()) return;
    if (!answer?.ok) return (note.textContent = "The photos could not be compared with the store. Photos that it has are found when they are added.");
    const found = await answer.json();
    for (const [file, hash] of byHash) holders.set(file, found[hash] ?? []);
    show();
  }
  if (there()) note.textContent = "";
}

// Returns what to add: photos that their category has already are not sent again.
export function rowsToAdd() {
  const leaves = get("folders-form").elements.leave.checked;
  const byName = new Map();
  for (const one of rows) {
    const left = new Set([...ownOf(one), ...(leaves ? sharedOf(one) : [])]);
    byName.set(nameOf(one), [...(byName.get(nameOf(one)) ?? []), ...one.files.filter((file) => !left.has(file))]);
  }
  return [...byName].filter(([, files]) => files.length).map(([name, files]) => ({ path: "/categories", fields: [["name", name], ["adds", "yes"]], files }));
}

document.addEventListener("input", (event) => event.target.closest("#folders-rows") && show());
