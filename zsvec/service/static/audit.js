// Audit: removes findings from the page once they are dealt with. Kept findings are stored in this browser.

import { sayHTML } from "./page.js";

const KEPT = "zsvec:kept";
const MOST = 1000;
const findings = document.getElementById("findings");
let changes = 0;
let last = null; // the last kept finding

function kept() {
  try {
    return JSON.parse(localStorage.getItem(KEPT)) ?? [];
  } catch {
    return [];
  }
}

function keep(keys) {
  try {
    localStorage.setItem(KEPT, JSON.stringify(keys.slice(-MOST)));
  } catch {
    return; // without storage, the finding is hidden until the page is reloaded
  }
}

const left = (section) => [...section.querySelectorAll("[data-finding]")].filter((finding) => !finding.hidden);

// Updates the counts of the sections and of kept findings.
function tally() {
  for (const section of findings.querySelectorAll(".kind")) {
    const number = left(section).length;
    section.hidden = !number;
    section.querySelector("[data-count]").textContent = number;
  }
  const hidden = findings.querySelectorAll("[data-finding][hidden]").length;
  const line = document.getElementById("kept");
  line.hidden = !hidden;
  line.firstElementChild.textContent = hidden === 1 ? "One kept finding is hidden." : `${hidden} kept findings are hidden.`;
  document.getElementById("since").textContent = changes ? `${changes === 1 ? "One change" : `${changes} changes`} since: compare again to update the findings.` : "";
}

function hideKept() {
  const keys = new Set(kept());
  for (const finding of findings.querySelectorAll("[data-finding]")) finding.hidden = keys.has(finding.dataset.finding);
  tally();
}

// Moves the focus to the next finding.
function goOn(section, position) {
  const rest = left(section);
  const next = rest[Math.min(position, rest.length - 1)] ?? findings.querySelector(".kind:not([hidden]) [data-finding]:not([hidden])");
  (next?.querySelector("button") ?? next?.querySelector("a") ?? document.getElementById("again")).focus({ preventScroll: rest.length > 0 });
}

function away(section, position, leave) {
  leave();
  tally();
  goOn(section, position);
}

function settled(button) {
  const section = button.closest(".kind");
  const position = left(section).indexOf(button.closest("[data-finding]"));
  const gone = new Set(JSON.parse(button.getAttribute("hx-vals")).reference);
  changes += 1;
  away(section, position, () => {
    for (const item of findings.querySelectorAll("[data-item]")) if (gone.has(item.dataset.item)) item.remove();
    for (const finding of findings.querySelectorAll("[data-finding]:not(.thin)")) {
      if (finding.querySelectorAll("[data-item]").length < Number(finding.dataset.least ?? 1)) finding.remove();
    }
  });
}

if (findings) {
  findings.addEventListener("htmx:afterRequest", (event) => {
    if (event.detail.successful && event.detail.elt.matches("[data-settles]")) settled(event.detail.elt);
  });
  findings.addEventListener("htmx:afterSwap", (event) => {
    if (event.target !== findings) return;
    changes = 0;
    hideKept();
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-keeps]")) {
      const finding = event.target.closest("[data-finding]");
      const section = finding.closest(".kind");
      const position = left(section).indexOf(finding);
      last = finding;
      keep([...kept(), finding.dataset.finding]);
      away(section, position, () => (finding.hidden = true));
      sayHTML(document.getElementById("kept-toast").innerHTML);
    }
    if (event.target.closest("[data-keeps-not]")) {
      event.target.closest(".toast").remove();
      if (!last?.isConnected) return;
      keep(kept().filter((key) => key !== last.dataset.finding));
      last.hidden = false;
      tally();
      last.querySelector("[data-keeps]").focus();
    }
    if (event.target.closest("[data-shows-kept]")) {
      keep([]);
      hideKept();
    }
  });
  // An undone change may be doubtful again.
  document.body.addEventListener("zsvec:changed", (event) => {
    if (event.detail.undone) document.getElementById("again").click();
  });
}
