// What all pages do: say what happens, what has failed, and show dialogs. Texts are put in as texts, never as HTML.

const toasts = document.getElementById("toasts");
const busyBox = document.getElementById("busy");
const busyText = document.getElementById("busy-text");
const MOST_TOASTS = 3;
const AWAY = ["The service cannot be reached.", "Look whether it runs and whether you are online, then try again."];

// A key in the address is gone from it before anything else is loaded or said, and counts once it is confirmed: the
// sender of a link could see what is done under a key of theirs.
function takeKey() {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given === null) return;
  history.replaceState(null, "", location.pathname + location.search);
  const dialog = document.getElementById("sign-in");
  if (!dialog) return; // this service asks for no key
  const field = document.getElementById("sign-in-key");
  field.value = given;
  dialog.addEventListener("close", () => (field.value = ""), { once: true });
  if (!dialog.open) open(dialog);
}
addEventListener("hashchange", takeKey);
takeKey();

// What is going on, in words; of several things at once, the newest.
const going = new Map();
export function busy(what, text) {
  if (text) going.set(what, text);
  else going.delete(what);
  const newest = [...going.values()].at(-1);
  busyBox.hidden = newest === undefined;
  (document.querySelector("dialog[open]") ?? toasts.parentElement).append(busyBox); // what is beside a dialog is dim
  if (newest !== undefined && busyText.textContent !== newest) busyText.textContent = newest;
}

// A problem is said where people look: in the dialog that is open, or below.
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

export function sayHTML(html, at = toasts) {
  clear(at);
  at.insertAdjacentHTML("afterbegin", html); // a part that our templates made
  window.htmx.process(at.firstElementChild);
  tidy();
}

// An answer that is a problem: as HTML where a page answers, as JSON where something before it does.
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

// Send a form that a script has made. Says what comes of it, and gives whether it was done; if quiet, gives the answer.
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

// What htmx sends, and what becomes of it.
document.body.addEventListener("htmx:beforeRequest", (event) => {
  const text = event.detail.elt.closest("[data-busy]")?.dataset.busy;
  if (text) busy(event.detail.xhr, text);
});
document.body.addEventListener("htmx:afterRequest", (event) => busy(event.detail.xhr, null));
document.body.addEventListener("htmx:responseError", (event) => failed(event.detail.xhr));
document.body.addEventListener("htmx:sendError", () => sayProblem(...AWAY));
document.body.addEventListener("htmx:afterSwap", tidy);

// What is shown is asked for again after each change. Where that has moved it to another page, all of that is.
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
// Who was at something that is gone goes on where it was.
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
  if (event.target instanceof HTMLDialogElement) event.target.close(); // beside it
});

// A form in a dialog is done when its answer is there.
document.body.addEventListener("htmx:afterRequest", (event) => {
  if (!event.detail.successful || event.detail.elt.tagName !== "FORM") return;
  event.detail.elt.closest("dialog")?.close();
  if (event.detail.requestConfig.verb === "post") event.detail.elt.reset();
  event.detail.elt.closest(".toast")?.remove(); // it was the button that takes back
});

// A reference without a picture: a store may keep no copies.
document.addEventListener(
  "error",
  (event) => event.target instanceof HTMLImageElement && event.target.closest("[data-picture]")?.classList.add("absent"),
  true,
);
