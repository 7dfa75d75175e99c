// Live: shows one event per second. Hidden pages are not connected.

const SPARK = 60; // seconds
const AGAIN = [2000, 5000, 10000]; // milliseconds after which to connect again
const WORDS = {
  200: "OK", 303: "redirected", 400: "not readable", 401: "without a key", 403: "not allowed", 404: "not found",
  409: "conflict", 413: "too large", 422: "not usable", 429: "too many requests", 499: "client left", 503: "not available",
};
const number = new Intl.NumberFormat("en");
const rates = [];
let source = null;
let timer = null;
let attempts = 0;

const at = (id) => document.getElementById(id);

function say(state, text) {
  at("connection").dataset.state = state;
  if (at("connection-text").textContent !== text) at("connection-text").textContent = text;
  at("figures").classList.toggle("old", state !== "on");
}

function few(value) {
  return value >= 100 ? number.format(Math.round(value)) : value >= 10 ? value.toFixed(1) : value.toFixed(value ? 2 : 0);
}

function time(seconds) {
  if (seconds === null) return "–";
  return seconds >= 1 ? `${seconds.toFixed(2)} s` : seconds >= 0.01 ? `${Math.round(1000 * seconds)} ms` : `${(1000 * seconds).toFixed(1)} ms`;
}

function percent(share) {
  return share > 0.995 ? "over 99 %" : share < 0.005 ? "under 1 %" : `${Math.round(100 * share)} %`;
}

function meter(name, share, text) {
  const row = document.querySelector(`[data-meter="${name}"]`);
  row.querySelector(".share").setAttribute("width", (100 * Math.min(share || 0, 1)).toFixed(1));
  row.querySelector(".figure").textContent = text;
}

function spark() {
  const most = Math.max(...rates, 1);
  const points = rates.map((rate, i) => [SPARK - rates.length + 1 + i, 19 - (18 * rate) / most]);
  const line = points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(2)}`).join("");
  at("spark").querySelector(".line").setAttribute("d", line);
  at("spark").querySelector(".area").setAttribute("d", points.length > 1 ? `${line}L${points.at(-1)[0]} 20L${points[0][0]} 20Z` : "");
  at("spark").setAttribute("aria-label", `Photos a second over the last ${rates.length} seconds: at most ${few(Math.max(...rates))}`);
  at("spark-most").textContent = `at most ${few(Math.max(...rates))}`;
}

function pair(key, value) {
  const row = document.createElement("div");
  const term = document.createElement("dt");
  const figure = document.createElement("dd");
  term.textContent = key;
  figure.textContent = value;
  row.append(term, figure);
  return row;
}

function show(told) {
  rates.push(told.rate);
  if (rates.length > SPARK) rates.shift();
  at("rate").textContent = few(told.mean_rate);
  spark();
  const images = Object.values(told.outcomes).reduce((a, b) => a + b, 0);
  at("images").textContent = number.format(images);
  for (const [name, of] of Object.entries(told.outcomes)) meter(name, of / images, number.format(of));
  const stages = Object.entries(told.stages);
  const whole = stages.some(([, seconds]) => seconds === null) ? null : stages.reduce((sum, [, seconds]) => sum + seconds, 0);
  at("whole").textContent = time(whole);
  for (const [name, seconds] of stages) meter(name, seconds / whole, time(seconds));
  meter("queue", told.queue / told.room, `${told.queue} of ${told.room}`);
  at("batch").textContent = told.batch === null ? "–" : few(told.batch);
  at("by-one").hidden = !told.settled;
  at("settled").textContent = number.format(told.settled);
  at("no-cascade").hidden = !told.no_cascade;
  at("obstacle").textContent = told.no_cascade;
  at("references-image").textContent = told.references ? number.format(told.references.image) : "–";
  at("references-text").textContent = told.references ? number.format(told.references.text) : "–";
  at("codes").replaceChildren(
    ...Object.entries(told.codes).map(([code, requests]) => pair(WORDS[code] ? `${code}, ${WORDS[code]}` : code, number.format(requests))),
  );
  at("figures").ariaBusy = "false";
  showImages(told.images);
}

function answer(image) {
  if (image.verdict === "unread") return ["not readable", ""];
  if (image.verdict === "unknown") return ["unknown", ""];
  return [image.nearest, percent(image.probability)];
}

// Shows new images first. Images that are already shown stay unchanged.
function showImages(list) {
  const last = at("last");
  const there = new Set([...last.children].map((item) => item.dataset.id));
  for (const image of list.filter(({ id }) => !there.has(id)).reverse()) {
    const item = at("seen").content.cloneNode(true).firstElementChild;
    item.dataset.id = image.id;
    item.dataset.verdict = image.verdict;
    const mark = at(`mark-${image.verdict}`);
    if (mark) item.querySelector(".answer").prepend(mark.content.cloneNode(true));
    const [words, figure] = answer(image);
    const [said, name] = item.querySelectorAll("bdi");
    said.textContent = words;
    item.querySelector(".from span").textContent = figure && `${figure}, `;
    name.textContent = image.name;
    item.querySelector(".from").title = image.name;
    if (image.picture) item.querySelector("img").src = `/live/images/${image.id}`;
    else item.querySelector(".thumb").classList.add("absent");
    last.prepend(item);
  }
  while (last.children.length > Number(at("figures").dataset.shown)) last.lastElementChild.remove();
  at("none").hidden = last.children.length > 0;
}

function connect() {
  clearTimeout(timer);
  source?.close();
  source = new EventSource("/live/events");
  source.onmessage = (event) => {
    attempts = 0;
    say("on", "Connected");
    show(JSON.parse(event.data));
  };
  source.onerror = () => {
    say("off", "The connection is lost. Trying again …");
    source.close();
    again();
  };
}

// EventSource does not report the status of a failed connection, so a request for the page detects a missing key.
async function again() {
  const wait = AGAIN[Math.min(attempts, AGAIN.length - 1)];
  attempts += 1;
  const answered = await fetch("/live", { headers: { "HX-Request": "true" } }).catch(() => null);
  if (answered?.status === 401) location.assign("/login");
  if (!document.hidden) timer = setTimeout(connect, wait);
}

function watch() {
  if (document.hidden) {
    clearTimeout(timer);
    source?.close();
    say("waiting", "Paused while hidden");
  } else {
    rates.length = 0; // would have a gap for the time while hidden
    say("waiting", "Connecting …");
    connect();
  }
}

document.addEventListener("visibilitychange", watch);
window.addEventListener("pagehide", () => source?.close());
window.addEventListener("pageshow", (event) => event.persisted && watch());
watch();
