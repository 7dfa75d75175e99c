// Shared by all pages: progress, messages, errors, dialogs. Texts are inserted as text, never as HTML.

const toasts = document.getElementById("toasts");
const busyBox = document.getElementById("busy");
const busyText = document.getElementById("busy-text");
const MOST_TOASTS = 3;
const AWAY = ["The service cannot be reached.", "Check that it runs and that you are online, then try again."];

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

// Shows the newest of the running actions.
const going = new Map();
export function busy(action, text) {
  if (text) going.set(action, text);
  else going.delete(action);
  const newest = [...going.values()].at(-1);
  busyBox.hidden = newest === undefined;
  (document.querySelector("dialog[open]") ?? toasts.parentElement).append(busyBox); // a dialog dims the rest of the page
  if (newest !== undefined && busyText.textContent !== newest) busyText.textContent = newest;
}

// Returns the place for problems: the open dialog, or else below the page.
function place() {
  return document.querySelector("dialog[open]") ?? toasts;
}

function clear(at) {
  for (const old of at.querySelectorAll(".toast.failed")) old.remove();
}

function tidy() {
  for (const old of [...toasts.children].slice(MOST_TOASTS)) old.remove();
}

export function sayProblem(said, detail) {
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
  clear(place());
  place().prepend(toast);
  tidy();
}

function sayHTML(html, at = toasts) {
  clear(at);
  at.insertAdjacentHTML("afterbegin", html); // rendered by the service
  window.htmx.process(at.firstElementChild);
  tidy();
}

// Returns heading and detail of a problem in JSON, which middleware sends, or null for HTML, which pages send.
export function problemIn(status, type, body) {
  if (status === 0) return AWAY;
  if (!type.includes("json")) return null;
  try {
    return ["This could not be done.", JSON.parse(body).detail];
  } catch {
    return ["This could not be done.", `The service answered with ${status}.`];
  }
}

function failed(request) {
  if (request.status === 401) location.assign("/login");
  const problem = problemIn(request.status, request.getResponseHeader("Content-Type") ?? "", request.responseText);
  if (problem) sayProblem(...problem);
  else sayHTML(request.responseText, place());
}

function happen(header) {
  for (const [name, detail] of Object.entries(JSON.parse(header ?? "{}"))) {
    document.body.dispatchEvent(new CustomEvent(name, { bubbles: true, detail }));
  }
}

// Sends a form, shows the message, and returns whether the request succeeded. If quiet, shows no message and returns
// the request.
export function send(path, form, { sending = () => {}, quiet = false } = {}) {
  return new Promise((resolve) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    request.setRequestHeader("HX-Request", "true");
    request.setRequestHeader("HX-Current-URL", location.href);
    request.setRequestHeader("Accept", "text/html");
    request.upload.onprogress = (event) => event.lengthComputable && sending(event.loaded / event.total);
    request.onload = request.onerror = request.onabort = () => {
      const ok = request.status >= 200 && request.status < 300;
      if (ok) happen(request.getResponseHeader("HX-Trigger"));
      if (!quiet) (ok ? sayHTML : failed)(ok ? request.responseText : request);
      resolve(quiet ? request : ok);
    };
    request.send(form);
  });
}

// Requests of htmx.
document.body.addEventListener("htmx:beforeRequest", (event) => {
  const text = event.detail.elt.closest("[data-busy]")?.dataset.busy;
  if (text) busy(event.detail.xhr, text);
});
document.body.addEventListener("htmx:afterRequest", (event) => busy(event.detail.xhr, null));
document.body.addEventListener("htmx:responseError", (event) => failed(event.detail.xhr));
document.body.addEventListener("htmx:sendError", () => sayProblem(...AWAY));
document.body.addEventListener("htmx:afterSwap", tidy);

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
  window.htmx.ajax("GET", path, { target: part, swap: "outerHTML", ...(went ? whole : {}) });
  went = false;
});
// Keeps the focus near a removed element.
document.body.addEventListener("htmx:afterSettle", () => {
  if (document.activeElement === document.body) document.getElementById("content")?.focus({ preventScroll: true });
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
  if (event.target instanceof HTMLDialogElement) event.target.close(); // a click outside the dialog
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
