// Audit: what was done about a finding takes it off the page. What is kept as it is, this browser remembers.

import { sayHTML } from "./page.js";

const KEPT = "zsvec:kept";
const MOST = 1000;
const findings = document.getElementById("findings");
let changes = 0;
let last = null; // the finding that was kept last

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
    return; // the browser keeps nothing: it is hidden until the page is loaded again
  }
}

const left = (section) => [...section.querySelectorAll("[data-finding]")].filter((finding) => !finding.hidden);

// Sections count what is left, and what is kept is said once.
function tally() {
  for (const section of findings.querySelectorAll(".kind")) {
    const number = left(section).length;
    section.hidden = !number;
    section.querySelector("[data-count]").textContent = number;
  }
  const hidden = findings.querySelectorAll("[data-finding][hidden]").length;
  const line = document.getElementById("kept");
  line.hidden = !hidden;
  line.firstElementChild.textContent = hidden === 1 ? "One finding is hidden, as you keep it." : `${hidden} findings are hidden, as you keep them.`;
  document.getElementById("since").textContent = changes ? `${changes === 1 ? "One change" : `${changes} changes`} since: compare again to see what they mean for the rest.` : "";
}

function hideKept() {
  const keys = new Set(kept());
  for (const finding of findings.querySelectorAll("[data-finding]")) finding.hidden = keys.has(finding.dataset.finding);
  tally();
}

// The next thing to do has the focus when what had it is gone.
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
  // What was taken back may be doubtful again.
  document.body.addEventListener("zsvec:changed", (event) => {
    if (event.detail.undone) document.getElementById("again").click();
  });
}
