// Makes changes with progress. Cancel and Escape undo them, as does a failure on the way.

import { busy, finish, problemIn, rendered, sayProblem, send } from "./page.js";

const TRIES = 5;
let running = null; // { cancel, dialog }

export const isChanging = () => running !== null;

// Sends a request again while the service answers with a status that passes.
async function sendPatiently(path, form, { passing = [429], ...options } = {}) {
  for (let wait = 1000, tries = 1; ; tries += 1, wait *= 2) {
    const request = await send(path, form, { ...options, quiet: true });
    if (!passing.includes(request.status) || tries === TRIES) return request;
    await new Promise((resolve) => setTimeout(resolve, wait));
    if (options.signal?.aborted) return request;
  }
}

// Returns whether the service may have done what was asked although its answer is missing.
const isLost = (request) => request.sent && [0, 502, 504].includes(request.status);

// Makes one change by one or several requests, each with a path, fields, and a function that returns a text and the done
// share. A change that fails or is cancelled on the way is undone. Returns whether the change was made.
export async function makeChange(requests) {
  if (running) return sayProblem("Another change is being made.", "Wait until it is made, or cancel it.");
  const control = new AbortController();
  const { signal } = control;
  running = { cancel: () => control.abort(), dialog: document.querySelector("dialog[open]") };
  signal.addEventListener("abort", () => busy(signal, "Cancelling …"));
  let [change, soFar, request] = [null, null, null];
  for (const { path, fields, progress } of requests) {
    const form = new FormData();
    for (const [name, value] of [...fields, ["change", change], ["so_far", soFar]]) if (value) form.append(name, value);
    const sending = (share) => signal.aborted || busy(signal, ...progress(share), running.cancel);
    sending(0);
    request = await sendPatiently(path, form, { sending, signal, passing: change ? [429, 0] : [429] });
    if (request.status !== 200) break;
    const toast = rendered(request.responseText);
    change ??= toast.querySelector("[name=change]")?.value ?? null;
    soFar = toast.dataset.soFar;
    if (signal.aborted) break;
  }
  const made = request.status === 200 && !(signal.aborted && change);
  let undone = null;
  if (!made && change) {
    const form = new FormData();
    form.append("change", change);
    undone = await sendPatiently("/undo", form);
  }
  busy(signal, null);
  running = null;
  if (undone && undone.status !== 200) sayNotUndone(undone, change);
  else if (!undone && isLost(request)) sayProblem("The connection was lost.", "It is not known whether the change was made. Once the service can be reached, Recent changes shows it.");
  else if (signal.aborted && !made && [0, 200].includes(request.status)) sayProblem("Cancelled.", "Nothing was changed.");
  else finish(request);
  return made;
}

function sayNotUndone(answer, change) {
  if (isLost(answer) || answer.status === 0) return sayProblem("The connection was lost.", "It is not known whether the change was undone. Once the service can be reached, Recent changes shows it.");
  document.body.dispatchEvent(new CustomEvent("zsvec:changed", { detail: { undone: change } })); // shows the present state
  sayProblem("The change was made, and could not be undone.", `${problemIn(answer).querySelector("p").textContent} Recent changes shows it.`);
}

// A dialog that closes cancels the change that it has begun.
document.addEventListener("close", ({ target }) => running?.dialog === target && running.cancel(), true);
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !running || document.querySelector("dialog[open]")) return;
  if (event.target.matches?.("input:not([type=checkbox]), textarea, select")) return; // Escape leaves a field
  event.preventDefault();
  event.stopPropagation();
  running.cancel();
}, true);
addEventListener("beforeunload", (event) => running && event.preventDefault());
