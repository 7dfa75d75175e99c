// Photos that are chosen, dropped (also in folders) or pasted.

import { busy, sayProblem } from "./page.js";

const MOST_ENTRIES = 100_000; // files and folders inside of dropped folders

const isPhoto = (file) => file.type.startsWith("image/");

// Returns the entries of a folder by name. A browser lists at most a hundred at once.
async function entriesOf(folder) {
  const reader = folder.createReader();
  const all = [];
  for (let some; all.length < MOST_ENTRIES; all.push(...some)) {
    some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
  }
  return all.filter(({ name }) => !name.startsWith(".")).sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
}

// Returns at most so many photos in folders and their subfolders, each with its path, and a sentence about each kind of
// file that is left out.
async function photosIn(folders, most) {
  const photos = [];
  const queue = [...folders];
  let [others, unread, looked] = [0, 0, 0];
  const full = () => photos.length === most || looked >= MOST_ENTRIES;
  let more = false;
  while (queue.length && !more) {
    const entries = await entriesOf(queue.shift()).catch(() => (unread += 1) && []);
    const inside = entries.filter((entry) => !entry.isDirectory);
    queue.push(...entries.filter((entry) => entry.isDirectory));
    looked += entries.length - inside.length;
    const files = await Promise.all(inside.map((entry) => new Promise((resolve) => entry.file(resolve, () => resolve(null)))));
    for (const [index, file] of files.entries()) {
      if ((more = full())) break;
      looked += 1;
      if (!file) unread += 1;
      else if (isPhoto(file)) photos.push({ file, path: inside[index].fullPath.slice(1) });
      else others += 1;
    }
  }
  const said = folders.length && !photos.length ? ["There is no photo in the folder."] : [];
  if (more) said.push(`Only ${photos.length.toLocaleString("en")} photos are taken at once. Drop the rest in parts.`);
  if (others) said.push(others === 1 ? "One file that is not a photo is left out." : `${others} files that are not photos are left out.`);
  if (unread) said.push("Some files could not be read.");
  return [photos, said];
}

// Must be called while the event is handled. Later, the browser no longer lists the items.
function dropped(transfer) {
  const items = [...transfer.items].filter(({ kind }) => kind === "file").map((item) => [item.webkitGetAsEntry(), item.getAsFile()]);
  const folders = items.filter(([entry]) => entry?.isDirectory).map(([entry]) => entry);
  return [items.filter(([entry]) => !entry?.isDirectory).map(([, file]) => file), folders];
}

// Returns photos by category. A folder is a category with all photos in it. But of a folder that has several folders or no
// photos of its own, each folder in it is a category. Photos outside folders have the name "".
export function byFolder(photos) {
  const found = new Map();
  const put = (name, { file }) => found.set(name, found.get(name) ?? []).get(name).push(file);
  const split = (some, depth, parent) => {
    const folders = new Map();
    for (const one of some) {
      const [name, inside] = one.path.split("/").slice(depth);
      if (inside === undefined) put(parent, one);
      else folders.set(name, folders.get(name) ?? []).get(name).push(one);
    }
    for (const [name, inside] of folders) {
      const paths = inside.map(({ path }) => path.split("/").slice(depth + 1));
      const below = new Set(paths.filter((path) => path.length > 1).map(([folder]) => folder));
      if (below.size < 2 && paths.some((path) => path.length === 1)) for (const one of inside) put(name, one);
      else split(inside, depth + 1, name);
    }
  };
  split(photos, 0, "");
  return new Map([...found].sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true })));
}

// Calls `take` with photos, with the element that they were dropped on, if any, and with the sentences to say, to which
// `take` may add. If folders are among them, calls
// `takeFolders` instead, if given, with photos and paths.
export function takeFiles(take, { most = 1000, takeFolders = null } = {}) {
  const taken = (photos, said, at) => {
    const inFolders = photos.some(({ path }) => path.includes("/"));
    if (photos.length) inFolders && takeFolders ? takeFolders(photos, at) : take(photos.map(({ file }) => file), at, said);
    if (said.length) sayProblem(said[0], said.slice(1).join(" ")); // last, since `take` may open a dialog
  };
  document.addEventListener("click", (event) => {
    const picker = event.target.closest("[data-picks]");
    if (picker) document.getElementById(picker.dataset.picks).click();
  });
  document.addEventListener("change", (event) => {
    const input = event.target;
    if (input.type !== "file" || !document.querySelector(`[data-picks="${input.id}"]`)) return;
    const files = [...input.files];
    input.value = ""; // the same file may be chosen again
    const photos = input.webkitdirectory ? files.filter((file) => isPhoto(file) && !/(^|\/)\./.test(file.webkitRelativePath)) : files;
    const said = files.length && !photos.length ? ["There is no photo in the folder."] : photos.length > most ? [`Only ${most.toLocaleString("en")} photos are taken at once.`] : [];
    taken(photos.slice(0, most).map((file) => ({ file, path: file.webkitRelativePath || file.name })), said, input);
  });
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (!files.length) return;
    event.preventDefault();
    taken(files.map((file) => ({ file, path: file.name })), [], null);
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
    const [photos, said] = await photosIn(folders, most);
    busy(folders, null);
    taken([...files.map((file) => ({ file, path: file.name })), ...photos], said, event.target);
  });
}
