// Audit: buttons and keys decide on one finding or on all selected findings. Decisions are sent one after the other. Their
// findings leave the page at once, and return if the request fails.

import "./combobox.js";
import { makeChange } from "./change.js";
import { listKeys } from "./keys.js";
import { inLines, loadPart } from "./page.js";

const PART = 5000; // photos in one request of a large change
const DOING = { move: "Moving", remove: "Removing", keep: "Ignoring", unkeep: "Showing" };
const findings = document.getElementById("findings");
const bar = document.getElementById("bar"); // absent if the key may only read

let current = null;
let changes = 0;
let queue = Promise.resolve();
let waiting = 0; // decisions in the queue
let outdated = false; // whether the findings must be loaded again after them
const settledKeys = new Set(); // photos of label errors that were decided on since the findings were loaded

const shown = () => [...findings.querySelectorAll("[data-finding][tabindex]")].filter((one) => one.offsetHeight);
const isSelected = (finding) => finding.querySelector(".select")?.checked ?? false;
const selected = () => shown().filter(isSelected);
const chosen = () => (selected().length ? selected() : current ? [current] : []);
const actsOf = (finding) => [...finding.querySelectorAll("[data-act]")];
// Runs a job after the jobs before it. A load that fails shows a problem (page.js), and must not stop the later jobs.
const enqueue = (job) => (queue = queue.then(job).catch(() => {}));
const refresh = () => window.htmx.ajax("GET", "/audit/findings", { source: "#view", target: "#findings", swap: "innerHTML" });

// A step is [key of a photo, value]; the value is a category to move to, or the kind of finding to keep.
function stepsOf(button) {
  const there = new Set([...button.closest("[data-finding]").querySelectorAll("[data-item]")].map((item) => item.dataset.item));
  return JSON.parse(button.dataset.keys).filter((key) => there.has(key)).map((key) => [key, button.dataset.value]);
}

// Returns the steps of an act that all chosen findings offer.
const stepsOfAll = (act) => chosen().flatMap((one) => actsOf(one).filter((button) => button.matches(`[data-bulks][data-act=${act}]`)).flatMap(stepsOf));

// A photo may have several findings, as a label error and as an outlier.
const photosOf = (steps) => new Set(steps.map(([key]) => key)).size;

// Returns the label errors above the chosen probability, also those that are not shown.
function sure(form) {
  const above = Number(form.querySelector("input").value) / 100;
  return JSON.parse(form.dataset.doubts).filter(([key, , doubt]) => doubt > above && !settledKeys.has(key));
}

// Counts

function tally() {
  for (const section of findings.querySelectorAll(".kind")) {
    const there = section.querySelectorAll("[data-finding]").length;
    const total = Number(section.dataset.total);
    section.hidden = !total;
    section.querySelector("[data-count]").textContent = total.toLocaleString("en");
    section.querySelector(".more").hidden = there >= total;
    if (!there && total && !waiting) more(section);
  }
  const since = document.getElementById("since");
  if (since) since.textContent = changes ? `${changes === 1 ? "One change" : `${changes} changes`} since: compare again to update the findings.` : "";
  showSelection();
  showSure();
}

function showSelection() {
  if (!bar) return;
  const group = selected();
  bar.hidden = !group.length && !bar.contains(document.activeElement);
  document.getElementById("selected").textContent = group.length ? `${group.length} selected` : "";
  for (const button of bar.querySelectorAll("[data-bulk]")) {
    const act = button.dataset.bulk;
    const many = photosOf(stepsOfAll(act));
    button.hidden = !group.length || !many;
    button.textContent = { move: `Move ${many} as proposed`, keep: `Ignore ${many}`, unkeep: `Show ${many} again`, remove: `Remove ${many}` }[act];
  }
  bar.querySelector(".name").hidden = !chosen().some((one) => one.dataset.photo);
}

function showSure() {
  const form = document.getElementById("sure");
  if (!form) return;
  const number = sure(form).length;
  form.querySelector("#sure-count").textContent = number.toLocaleString("en");
  form.querySelector("button").disabled = !number;
}

function more(section) {
  const list = section.querySelector(".list");
  enqueue(async () => {
    if (waiting) return more(section); // the service counts from findings that the page no longer has
    const path = `/audit/more?more=${section.dataset.kind}&after=${list.children.length}`;
    if (!(await loadPart(path, { source: "#view", target: list, swap: "beforeend" }))) return; // "Show more" tries again
    if (!list.children.length) section.dataset.total = 0; // others decided on the rest
    tally();
  });
}

// Decisions

// Removes the findings that a decision settles.
function settle(act, steps) {
  const leave = act === "move" || act === "remove";
  const keys = new Set(steps.map(([key]) => key));
  const kept = new Set(steps.map(String));
  for (const item of leave ? findings.querySelectorAll("[data-item]") : []) if (keys.has(item.dataset.item)) item.remove();
  const isSettled = (one) => {
    if (leave) return one.querySelectorAll("[data-item]").length < Number(one.dataset.least ?? 1);
    return actsOf(one).some((button) => button.dataset.act === act && stepsOf(button).every((step) => kept.has(String(step))));
  };
  for (const one of [...findings.querySelectorAll("[data-finding][tabindex]")].filter(isSettled)) {
    one.closest(".kind").dataset.total -= 1;
    if (one === current) current = null;
    one.remove();
  }
  for (const [key, value] of steps) if (leave || value === "label") settledKeys.add(key);
}

// Makes a decision, a large one by several requests. Returns whether all of it was made.
function carryOut(act, steps) {
  const photos = steps.length === 1 ? "photo" : `${steps.length.toLocaleString("en")} photos`;
  const requests = [];
  for (let done = 0; done < steps.length; done += PART) {
    const part = steps.slice(done, done + PART);
    const fields = ["reference", "value"].flatMap((name, at) => inLines(name, part.map((step) => step[at] ?? "")));
    const progress = () => [`${DOING[act]} ${photos} …`, steps.length > PART ? done / steps.length : null];
    requests.push({ path: `/audit/${act}`, fields, progress });
  }
  return makeChange(requests);
}

function decide(act, taken, { reload = false } = {}) {
  const steps = [...new Map(taken.map((step) => [String(step), step])).values()];
  if (!steps.length) return;
  const places = shown();
  const place = places.indexOf(chosen()[0]);
  const within = findings.contains(document.activeElement) || bar.contains(document.activeElement);
  waiting += 1;
  settle(act, steps);
  tally();
  const rest = shown();
  const next = rest.find((one) => places.indexOf(one) > place) ?? rest.at(-1);
  if (within) (next ?? document.getElementById("again")).focus({ preventScroll: !next });
  enqueue(async () => {
    let made = false;
    try {
      made = await carryOut(act, steps);
    } finally {
      waiting -= 1;
      changes += made;
      // A load in progress may have begun before the decision was made.
      outdated ||= reload || !made || document.getElementById("view").matches(".htmx-request");
      if (outdated && !waiting) await refresh();
      else tally();
    }
  });
}

if (findings) {
  const keys = listKeys({
    items: shown,
    current: () => (current?.isConnected ? current : null),
    go: (finding) => finding?.focus(),
    isSelected,
    select: (finding, on) => finding.querySelector(".select") && (finding.querySelector(".select").checked = on),
    selected: showSelection,
    area: (element) => findings.contains(element) || bar?.contains(element),
    // Several findings must agree on the meaning of the digit.
    choose: (number) => {
      const pressed = chosen().flatMap((one) => actsOf(one).filter((button) => button.querySelector("kbd")?.textContent === String(number)));
      const [act, ...others] = new Set(pressed.map((button) => button.dataset.act));
      if (act && !others.length) decide(act, pressed.flatMap(stepsOf));
    },
    remove: () => decide("remove", stepsOfAll("remove")),
    field: bar?.elements.category,
  });
  findings.addEventListener("focusin", (event) => {
    current = event.target.closest("[data-finding][tabindex]") ?? current;
    showSelection();
  });
  findings.addEventListener("click", (event) => {
    const button = event.target.closest("[data-act]");
    if (button) decide(button.dataset.act, stepsOf(button));
    if (event.target.closest("[data-more]")) more(event.target.closest(".kind"));
    if (event.target.closest("[data-shows-kept]")) document.querySelector("[name=kept]").click();
    const box = event.target.closest(".select");
    if (!box) return;
    if (event.shiftKey) keys.selectTo(box.closest("[data-finding]"));
    else keys.anchorAt(box.closest("[data-finding]"));
    showSelection();
  });
  findings.addEventListener("input", (event) => event.target.id === "above" && showSure());
  findings.addEventListener("submit", (event) => {
    event.preventDefault();
    const section = event.target.closest(".kind");
    const steps = sure(event.target);
    const left = section.dataset.total - steps.length;
    decide("move", steps, { reload: true });
    section.dataset.total = left; // also of findings that are not shown
    tally();
  });
  findings.addEventListener("htmx:afterSwap", (event) => {
    // The service may have found these before the decisions in the queue.
    outdated = waiting > 0 || (outdated && event.target !== findings);
    const there = new Set();
    for (const one of event.target.querySelectorAll("[data-finding]")) {
      if (there.has(one.dataset.finding)) one.remove();
      there.add(one.dataset.finding);
    }
    if (event.target !== findings) return;
    current = null;
    if (!waiting) settledKeys.clear();
    tally();
  });
  bar?.addEventListener("click", (event) => {
    const selects = event.target.closest("[data-selects]");
    if (selects) keys.selectAll(selects.dataset.selects === "all");
    const act = event.target.closest("[data-bulk]")?.dataset.bulk;
    if (act) decide(act, stepsOfAll(act));
  });
  bar?.addEventListener("submit", (event) => {
    event.preventDefault();
    const name = bar.elements.category.value.trim();
    bar.reset();
    if (name) decide("move", chosen().filter((one) => one.dataset.photo).map((one) => [one.dataset.photo, name]));
  });
  bar?.addEventListener("focusout", () => setTimeout(showSelection));
  document.getElementById("again").addEventListener("click", () => (changes = 0));
  // An undone change may be doubtful again.
  document.body.addEventListener("zsvec:changed", (event) => {
    if (event.detail.undone) enqueue(refresh);
  });
}
