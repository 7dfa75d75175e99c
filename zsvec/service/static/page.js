// Shared by all pages: progress, messages, errors, dialogs. Texts are inserted as text, never as HTML.

const toasts = document.getElementById("toasts");
const busyBox = document.getElementById("busy");
const busyText = document.getElementById("busy-text");
const busyBar = document.getElementById("busy-bar");
const busyCancel = document.getElementById("busy-cancel");
const notices = toasts.parentElement;
const MESSAGE_MS = 8000;
const STEP = 8; // pixels
const LINES = 400; // of a field, which has at most 1 MB

// Removes a key from the address first. Signs in only after confirmation, because the sender of a link could see all
// actions with the key.
function takeKey() {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given === null) return;
  history.replaceState(null, "", location.pathname + location.search);
  const dialog = document.getElementById("sign-in");
  if (!dialog) return; // the service has no keys
  const field = document.getElementById("sign-in-key");
  field.value = given;
  dialog.addEventListener("close", () => (field.value = ""), { once: true });
  if (!dialog.open) open(dialog);
}
addEventListener("hashchange", takeKey);
takeKey();

// Shows the newest of the running actions, with the share that is done and a button to cancel, if given.
const going = new Map();
export function busy(action, text, share = null, cancel = null) {
  if (text) going.set(action, { text, share, cancel });
  else going.delete(action);
  const newest = [...going.values()].at(-1);
  busyBox.hidden = newest === undefined;
  (document.querySelector("dialog[open]") ?? notices).append(busyBox); // a dialog dims the rest of the page
  if (newest && busyText.textContent !== newest.text) busyText.textContent = newest.text;
  busyBar.hidden = (newest?.share ?? null) === null;
  busyBar.value = newest?.share ?? 0;
  busyCancel.hidden = !newest?.cancel;
  busyCancel.onclick = newest?.cancel ?? null;
  avoidFields();
}

// A message leaves after a while, unless the pointer or the focus is in it.
let leaving = null;
function linger() {
  clearTimeout(leaving);
  if (!toasts.matches(":hover, :focus-within")) leaving = setTimeout(() => toasts.replaceChildren(), MESSAGE_MS);
}
for (const type of ["pointerenter", "pointerleave", "focusin", "focusout"]) toasts.addEventListener(type, linger);

// Moves the messages to the lowest place where they cover no field and the fewest buttons.
function avoidFields() {
  const shown = [...notices.children].filter((one) => one.offsetHeight);
  if (!shown.length) return;
  const edge = parseFloat(getComputedStyle(notices).paddingBottom);
  const width = Math.max(...shown.map((one) => one.offsetWidth));
  const height = notices.offsetHeight - 2 * edge;
  const all = "input:not([type=checkbox]), textarea, select, button:not(.reference), .button";
  // Rows off the screen may be skipped (`content-visibility`): measuring them would lay out the whole list.
  const seen = (one) => one.checkVisibility({ contentVisibilityAuto: true });
  const others = [...document.querySelectorAll(all)].filter((one) => seen(one) && !notices.contains(one));
  const boxes = others.map((one) => [one.getBoundingClientRect(), one.matches("button, .button") ? 1 : 1000]);
  const free = notices.offsetWidth - width;
  let best = [Infinity];
  for (let up = 0; up + height + edge <= innerHeight; up += STEP) {
    const bottom = innerHeight - edge - up;
    for (const [side, left] of [["center", free / 2], ["start", edge], ["end", free - edge]]) {
      const covers = (box) => box.top < bottom && box.bottom > bottom - height && box.left < left + width && box.right > left;
      const cost = boxes.reduce((sum, [box, weight]) => (covers(box) ? sum + weight : sum), 0);
      if (cost < best[0]) best = [cost, up, side];
    }
  }
  notices.style.bottom = `${best[1] ?? 0}px`;
  notices.style.justifyItems = best[2] ?? "center";
}
addEventListener("resize", avoidFields);
document.addEventListener("scrollend", avoidFields);
new ResizeObserver(avoidFields).observe(document.body);
new MutationObserver(() => {
  linger();
  avoidFields();
}).observe(toasts, { childList: true });

function clear(dialog) {
  for (const old of dialog.querySelectorAll(".toast.failed")) old.remove();
}

// Shows a problem in the open dialog, or else below the page in place of the message before.
function showProblem(toast) {
  const dialog = document.querySelector("dialog[open]");
  if (!dialog) return toasts.replaceChildren(toast);
  clear(dialog);
  dialog.prepend(toast);
}

function problem(said, detail) {
  const toast = document.createElement("div");
  toast.className = "toast failed";
  toast.setAttribute("role", "alert");
  const text = document.createElement("p");
  const strong = document.createElement("strong");
  strong.textContent = said;
  text.append(strong, ` ${detail}`);
  const close = document.createElement("button");
  close.type = "button";
  close.className = "quiet";
  close.dataset.closes = "";
  close.textContent = "Close";
  toast.append(text, close);
  return toast;
}

export const sayProblem = (said, detail) => showProblem(problem(said, detail));

// Returns the first element of a part of a page.
export function rendered(html) {
  const template = document.createElement("template");
  template.innerHTML = html; // rendered by the service
  return template.content.firstElementChild;
}

// Returns the message about a failed request. A proxy before the service sends pages of its own.
export function problemIn(request) {
  if (request.status === 0) return problem("The service cannot be reached.", "Check that it runs and that you are online, then try again.");
  const toast = rendered(request.responseText);
  return toast?.matches(".toast") ? toast : problem("The service cannot be reached.", `A server between answers with ${request.status}.`);
}

function failed(request) {
  if (request.status === 401) location.assign("/login");
  showProblem(problemIn(request));
}

function showDone(html) {
  toasts.replaceChildren(rendered(html));
  window.htmx.process(toasts);
}

// Shows the message of a request, and reloads the content after a change.
export function finish(request) {
  if (request.status < 200 || request.status >= 300) return failed(request);
  happen(request.getResponseHeader("HX-Trigger"));
  showDone(request.responseText);
}

function happen(header) {
  for (const [name, detail] of Object.entries(JSON.parse(header ?? "{}"))) {
    document.body.dispatchEvent(new CustomEvent(name, { bubbles: true, detail }));
  }
}

// Sends a form, shows the message, and returns whether the request succeeded. If quiet, shows no message and returns
// the request, whose `sent` tells whether the whole form was sent. A signal stops a request only until then: afterwards,
// the service may have made the change.
export function send(path, form, { sending = () => {}, quiet = false, signal = null } = {}) {
  return new Promise((resolve) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    request.setRequestHeader("HX-Request", "true");
    request.setRequestHeader("HX-Current-URL", location.href);
    request.setRequestHeader("Accept", "text/html");
    request.upload.onprogress = (event) => event.lengthComputable && sending(event.loaded / event.total);
    request.sent = false;
    request.upload.onload = () => (request.sent = true);
    signal?.addEventListener("abort", () => request.sent || request.abort());
    request.onload = request.onerror = request.onabort = () => {
      const ok = request.status >= 200 && request.status < 300;
      if (!quiet) finish(request);
      resolve(quiet ? request : ok);
    };
    request.send(form);
  });
}

// Says where to drop files on a page that takes none. The browser would show them instead of the page.
addEventListener("dragover", (event) => event.dataTransfer.types.includes("Files") && event.preventDefault());
addEventListener("drop", (event) => {
  if (event.defaultPrevented || !event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  const folder = [...event.dataTransfer.items].some((item) => item.webkitGetAsEntry()?.isDirectory);
  sayProblem(folder ? "This is a folder." : "This page takes no photos.", "Drop it on Categories to add it, or on Classify to classify it.");
});

// Returns fields of a form for any number of values without line breaks: a form has at most a thousand fields.
export function inLines(name, values) {
  const parts = [];
  for (let i = 0; i < values.length; i += LINES) parts.push([name, values.slice(i, i + LINES).join("\n")]);
  return parts;
}

// Loads a part of the page, and returns whether it was loaded. A message says why a request fails; one that is replaced by
// another fails without a message.
export async function loadPart(path, options) {
  let loaded = false;
  const hear = ({ detail }) => (loaded ||= detail.successful && detail.requestConfig.path === path);
  document.body.addEventListener("htmx:afterRequest", hear);
  await window.htmx.ajax("GET", path, options).catch(() => {});
  document.body.removeEventListener("htmx:afterRequest", hear);
  return loaded;
}

// Requests of htmx.
document.body.addEventListener("htmx:beforeRequest", (event) => {
  const text = event.detail.elt.closest("[data-busy]")?.dataset.busy;
  if (text) busy(event.detail.xhr, text);
});
document.body.addEventListener("htmx:afterRequest", (event) => busy(event.detail.xhr, null));
document.body.addEventListener("htmx:responseError", (event) => failed(event.detail.xhr));
document.body.addEventListener("htmx:sendError", (event) => failed(event.detail.xhr));

// Loads the content again after each change, or the whole page if the address has changed.
let went = false;
document.body.addEventListener("zsvec:went", (event) => {
  history.replaceState(null, "", event.detail.path);
  went = true;
});
document.body.addEventListener("zsvec:changed", () => {
  const part = went ? "#main" : "#content";
  const whole = { select: part, headers: { "HX-Boosted": "true" } };
  if (!document.querySelector(part)) return;
  const path = location.pathname + location.search;
  loadPart(path, { target: part, swap: "outerHTML", ...(went ? whole : {}) });
  went = false;
});
// Keeps the focus near a removed element.
document.body.addEventListener("htmx:afterSettle", () => {
  if (document.activeElement === document.body) document.getElementById("content")?.focus({ preventScroll: true });
});

// Shows times in the time zone of the browser.
const timeFormat = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });
window.htmx.onLoad((part) => {
  for (const time of part.querySelectorAll("time[datetime]")) {
    time.title ||= time.textContent;
    time.textContent = timeFormat.format(new Date(time.dateTime));
  }
});

export function open(dialog) {
  clear(dialog);
  dialog.showModal();
}

document.addEventListener("click", (event) => {
  const closing = event.target.closest("[data-closes]");
  const closed = closing?.closest(".toast, dialog");
  if (closed) closed instanceof HTMLDialogElement ? closed.close() : closed.remove();
  const opening = event.target.closest("[data-opens]");
  if (opening) open(document.getElementById(opening.dataset.opens));
  if (event.target instanceof HTMLDialogElement && !("stays" in event.target.dataset)) event.target.close(); // a click outside the dialog
});

// Closes a dialog once its form is submitted.
document.body.addEventListener("htmx:afterRequest", (event) => {
  if (!event.detail.successful || event.detail.elt.tagName !== "FORM") return;
  event.detail.elt.closest("dialog")?.close();
  if (event.detail.requestConfig.verb === "post") event.detail.elt.reset();
  event.detail.elt.closest(".toast")?.remove(); // the form was the undo button
});

// Marks pictures that cannot be loaded: a store may keep no copies.
document.addEventListener(
  "error",
  (event) => event.target instanceof HTMLImageElement && event.target.closest("[data-picture]")?.classList.add("absent"),
  true,
);
