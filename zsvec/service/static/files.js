// Images that are chosen, dropped (also in folders) or pasted.

import { busy, sayProblem } from "./page.js";

const MOST_PICTURES = 1000; // from all folders of a drop
const MOST_ENTRIES = 10_000; // files and folders inside of them

// Returns the entries of a folder by name. A browser lists at most a hundred at once.
async function entriesOf(folder) {
  const reader = folder.createReader();
  const all = [];
  for (let some; all.length <= MOST_ENTRIES; all.push(...some)) {
    some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
  }
  return all.filter(({ name }) => !name.startsWith(".")).sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
}

// Returns the pictures in folders and their subfolders, and a sentence about each kind of file that is left out.
async function picturesIn(folders) {
  const pictures = [];
  const queue = [...folders];
  let [others, unread, looked] = [0, 0, 0];
  const full = () => pictures.length === MOST_PICTURES || looked === MOST_ENTRIES;
  let more = false;
  while (queue.length && !more) {
    const entries = await entriesOf(queue.shift()).catch(() => (unread += 1) && []);
    for (const entry of entries) {
      if ((more = full())) break;
      looked += 1;
      if (entry.isDirectory) queue.push(entry);
      else {
        const file = await new Promise((resolve, reject) => entry.file(resolve, reject)).catch(() => null);
        if (!file) unread += 1;
        else if (file.type.startsWith("image/")) pictures.push(file);
        else others += 1;
      }
    }
  }
  const said = folders.length && !pictures.length ? ["There is no picture in the folder."] : [];
  if (more) said.push(`Only ${pictures.length.toLocaleString("en")} pictures are taken at once. Drop the other folders later.`);
  if (others) said.push(others === 1 ? "One file that is not a picture is left out." : `${others} files that are not pictures are left out.`);
  if (unread) said.push("Some files could not be read.");
  return [pictures, said];
}

// Must be called while the event is handled. Later, the browser no longer lists the items.
function dropped(transfer) {
  const items = [...transfer.items].filter(({ kind }) => kind === "file").map((item) => [item.webkitGetAsEntry(), item.getAsFile()]);
  const folders = items.filter(([entry]) => entry?.isDirectory).map(([entry]) => entry);
  return [items.filter(([entry]) => !entry?.isDirectory).map(([, file]) => file), folders];
}

// Calls `take` with the files, and with the element that they were dropped on, if any.
export function takeFiles(take) {
  document.addEventListener("click", (event) => {
    const picker = event.target.closest("[data-picks]");
    if (picker) document.getElementById(picker.dataset.picks).click();
  });
  document.addEventListener("change", (event) => {
    const input = event.target;
    if (input.type !== "file" || !document.querySelector(`[data-picks="${input.id}"]`)) return;
    const files = [...input.files];
    input.value = ""; // the same file may be chosen again
    if (files.length) take(files, input);
  });
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (!files.length) return;
    event.preventDefault();
    take(files, null);
  });
  let over = null;
  const leave = () => {
    over?.classList.remove("over");
    over = null;
    document.body.classList.remove("dropping");
  };
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    const target = event.target.closest("[data-takes-files]");
    if (target !== over) {
      leave();
      over = target;
      over?.classList.add("over");
    }
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) leave();
  });
  document.addEventListener("drop", async (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    leave();
    const [files, folders] = dropped(event.dataTransfer);
    if (folders.length) busy(folders, "Reading the folder …");
    const [pictures, said] = await picturesIn(folders);
    busy(folders, null);
    files.push(...pictures);
    if (files.length) take(files, event.target);
    if (said.length) sayProblem(said[0], said.slice(1).join(" ")); // last, since `take` may open a dialog
  });
}
