// Audit: removes findings from the page once they are dealt with.

const findings = document.getElementById("findings");
let changes = 0;

const left = (section) => [...section.querySelectorAll("[data-finding]")];

// Updates the counts of the sections.
function tally() {
  for (const section of findings.querySelectorAll(".kind")) {
    const number = left(section).length;
    section.hidden = !number;
    section.querySelector("[data-count]").textContent = number;
  }
  document.getElementById("since").textContent = changes ? `${changes === 1 ? "One change" : `${changes} changes`} since: compare again to update the findings.` : "";
}

// Moves the focus to the next finding.
function goOn(section, position) {
  const rest = left(section);
  const next = rest[Math.min(position, rest.length - 1)] ?? findings.querySelector(".kind:not([hidden]) [data-finding]");
  (next?.querySelector("button") ?? next?.querySelector("a") ?? document.getElementById("again")).focus({ preventScroll: rest.length > 0 });
}

function settled(button) {
  const section = button.closest(".kind");
  const finding = button.closest("[data-finding]");
  const position = left(section).indexOf(finding);
  if (button.matches("[data-keeps]")) {
    finding.remove();
  } else {
    changes += 1;
    const gone = new Set(JSON.parse(button.getAttribute("hx-vals")).reference);
    for (const item of findings.querySelectorAll("[data-item]")) if (gone.has(item.dataset.item)) item.remove();
    for (const one of findings.querySelectorAll("[data-finding]:not(.thin)")) {
      if (one.querySelectorAll("[data-item]").length < Number(one.dataset.least ?? 1)) one.remove();
    }
  }
  tally();
  goOn(section, position);
}

if (findings) {
  findings.addEventListener("htmx:afterRequest", (event) => {
    if (event.detail.successful && event.detail.elt.matches("[data-settles]")) settled(event.detail.elt);
  });
  findings.addEventListener("htmx:afterSwap", (event) => {
    if (event.target === findings) changes = 0;
  });
  // An undone change may be doubtful again.
  document.body.addEventListener("zsvec:changed", (event) => {
    if (event.detail.undone) document.getElementById("again").click();
  });
}
