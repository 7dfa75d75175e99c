// Keeps the list of Classify in this browser, with small copies of the photos: for each key and store apart, for a day.
// Nobody sees the list of another key: it has another name, and each page deletes the lists that are not its own.

const PREFIX = "zsvec-photos-";
const DAY_MS = 24 * 3600 * 1000;
const { list } = document.body.dataset; // absent if nobody is signed in
const own = PREFIX + list;
const dayAgo = () => [DAY_MS - Date.now()]; // keys begin with the negative time, so those of older photos are larger

// Deletes on each page, also on the page to sign in, so that nothing stays after a day or after signing out.
async function sweep() {
  for (const { name } of await indexedDB.databases()) {
    if (list && name === own) request("readwrite", (photos) => photos.delete(IDBKeyRange.lowerBound(dayAgo())));
    else if (name.startsWith(PREFIX)) indexedDB.deleteDatabase(name);
  }
}
sweep().catch(() => {}); // the browser may allow no storage

let opening = null;
function database() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(own);
    request.onupgradeneeded = () => request.result.createObjectStore("photos", { keyPath: "key" });
    request.onsuccess = () => {
      request.result.onversionchange = () => request.result.close(); // another page deletes the list
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
  });
  return opening;
}

// Returns the result of a request, or undefined if nothing can be kept: storage may be full or forbidden, or the list
// was deleted since.
async function request(mode, act) {
  try {
    const photos = (await database()).transaction("photos", mode).objectStore("photos");
    return await new Promise((resolve, reject) => {
      const asked = act(photos);
      asked.onsuccess = () => resolve(asked.result);
      asked.onerror = () => reject(asked.error);
    });
  } catch {
    return undefined;
  }
}

export const keep = (photo) => request("readwrite", (photos) => photos.put(photo));
export const forget = (key) => request("readwrite", (photos) => photos.delete(key));
export const forgetAll = () => request("readwrite", (photos) => photos.clear());

// Returns the kept photos in the order of the list.
export async function kept() {
  return (await request("readonly", (photos) => photos.getAll(IDBKeyRange.upperBound(dayAgo())))) ?? [];
}
