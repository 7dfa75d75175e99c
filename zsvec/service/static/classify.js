// Classify: sends each image in a separate request, a few at a time. The page keeps the files; the service stores none.

import { busy, problemIn, send } from "./page.js";
import { takeFiles } from "./files.js";

const AT_ONCE = 3;
const ATTEMPTS = 5;
const answers = document.getElementById("answers");
const names = document.getElementById("category-names");
const heard = document.getElementById("heard");
const blank = document.getElementById("answer-card");
const cards = new Map(); // card: { file, headline, taught }

const waiting = [];
let running = 0;
let done = 0;
let total = 0;

function ask(card, first = false) {
  total += 1;
  card.querySelector(".body").ariaBusy = "true";
  if (first) waiting.unshift(card);
  else waiting.push(card);
  next();
}

function next() {
  while (running < AT_ONCE && waiting.length) {
    running += 1;
    const card = waiting.shift();
    look(card).finally(() => {
      running -= 1;
      done += 1;
      next();
    });
  }
  if (!running) done = total = 0;
  const images = total === 1 ? "the image" : `${Math.min(done + 1, total)} of ${total} images`;
  busy("classify", running ? `Looking at ${images} …` : null);
}

async function look(card) {
  const { file } = cards.get(card) ?? {};
  if (!file) return; // removed from the page meanwhile
  const body = card.querySelector(".body");
  const words = card.querySelector(".waiting");
  const sent = card.querySelector("progress");
  const sending = (share) => {
    if (sent) sent.value = share;
    if (words) words.textContent = share < 1 ? "Sending …" : "Looking at it …";
  };
  for (let attempt = 1; ; attempt += 1) {
    const form = new FormData();
    form.append("images", file, file.name);
    const answer = await send("/classify", form, { quiet: true, sending });
    if (answer.status === 401) location.assign("/login");
    if (answer.status === 429 && attempt < ATTEMPTS) {
      if (words) words.textContent = "Waiting: others are first …";
      await new Promise((resolve) => setTimeout(resolve, 1000 * attempt * Number(answer.getResponseHeader("Retry-After") ?? 1)));
      continue;
    }
    if (answer.status === 200) show(card, body, answer.responseText);
    else failed(body, answer);
    body.ariaBusy = "false";
    return;
  }
}

function show(card, body, html) {
  const item = cards.get(card);
  if (!item) return;
  body.innerHTML = html; // rendered by the service
  const headline = body.querySelector(".verdict").dataset.headline;
  const before = body.querySelector(".before");
  if (before && item.before) {
    before.textContent = item.before === headline ? "The answer is the same as before." : `Before: ${item.before}. Now: ${headline}.`;
    before.hidden = false;
  }
  item.before = null;
  item.headline = headline;
  heard.textContent = `${item.file.name}: ${headline}`;
}

function failed(body, answer) {
  const box = document.createElement("div");
  box.className = "verdict";
  box.append(problemIn(answer).querySelector("p"));
  const again = document.createElement("button");
  again.type = "button";
  again.dataset.asksAgain = "";
  again.textContent = "Try again";
  box.append(again);
  body.replaceChildren(box);
  heard.textContent = box.textContent;
}

function add(files) {
  const fresh = files.map((file) => {
    const card = blank.content.cloneNode(true).firstElementChild;
    const image = card.querySelector("img");
    image.src = URL.createObjectURL(file);
    image.onload = () => URL.revokeObjectURL(image.src);
    image.alt = `Your photo ${file.name}`;
    card.querySelector("figcaption").textContent = file.name;
    cards.set(card, { file, headline: null, before: null, taught: false });
    return card;
  });
  answers.prepend(...fresh);
  for (const card of fresh) ask(card);
}

async function teach(card, name) {
  const item = cards.get(card);
  const form = new FormData();
  form.append("category", name);
  form.append("images", item.file, item.file.name);
  const buttons = card.querySelectorAll(".teach button");
  for (const button of buttons) button.disabled = true;
  busy(item, `Learning that this is “${name}” …`);
  const learned = await send("/correct", form);
  busy(item, null);
  for (const button of buttons) button.disabled = false;
  if (!learned) return;
  if (![...names.options].some((option) => option.value === name)) names.append(new Option("", name));
  item.taught = true;
  item.before = item.headline;
  ask(card, true);
}

if (answers) {
  takeFiles(add);
  answers.addEventListener("submit", (event) => {
    event.preventDefault();
    const chosen = event.submitter?.value || new FormData(event.target).get("category");
    if (chosen?.trim()) teach(event.target.closest(".card"), chosen.trim());
  });
  answers.addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    if (event.target.closest("[data-asks-again]")) ask(card, true);
    if (event.target.closest("[data-forgets]")) {
      cards.delete(card);
      card.remove();
    }
  });
  // A correction was undone or redone.
  document.body.addEventListener("zsvec:changed", (event) => {
    if (!event.detail.undone) return;
    for (const [card, item] of cards) {
      if (!item.taught) continue;
      item.before = item.headline;
      ask(card);
    }
  });
}
