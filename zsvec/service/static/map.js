// Map: draws all photos as points. A lasso selects points; the photos are moved, labelled, removed or dismissed.

import "./combobox.js";
import { isChanging, makeChange } from "./change.js";
import { inLines, sayProblem } from "./page.js";

const DOING = { move: "Moving", remove: "Removing", label: "Labelling", dismiss: "Dismissing" };
const WAITS = -1; // instead of a category: the photo is in the inbox
const NEAR = 9; // pixels between the pointer and a point
const CLICK = 4; // pixels that the pointer moves in a click
const SHOWN = 60; // selected photos with a small copy
const POLL_MS = 1000;
const LABELS = 60; // names on the map
const MOVING = 4000; // points to draw while the map moves
const REST_MS = 150; // until all points are drawn

const get = (id) => document.getElementById(id);
const canvas = get("plane");
let names = [];
let points = []; // { x, y, category, hash, reference: false for a photo in the inbox }
let chosen = new Set();
let highlighted = null; // a category of the legend
let view = { scale: 1, x: 0, y: 0 };
let tool = "select";
let lasso = null; // pixels

const counted = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = (category) => `hsl(${(category * 137.508) % 360} ${dark.matches ? "60% 66%" : "62% 42%"})`;
const nameOf = (point) => (point.reference ? names[point.category] : "Waits for a label");
const pictureOf = (point) =>
  point.reference
    ? `/v1/categories/${encodeURIComponent(names[point.category])}/references/${point.hash}/image`
    : `/v1/inbox/${point.hash}/image`;

// Drawing

// Returns a circle in the colour of its category, or a ring for a photo that waits.
function sprite(point, size) {
  const made = document.createElement("canvas");
  made.width = made.height = size;
  const pen = made.getContext("2d");
  pen.fillStyle = pen.strokeStyle = point.reference ? colour(point.category) : getComputedStyle(canvas).color;
  pen.lineWidth = size / 6;
  pen.beginPath();
  pen.arc(size / 2, size / 2, size / 2.6, 0, 2 * Math.PI);
  if (point.reference) pen.fill();
  else pen.stroke();
  return made;
}

let side = 0; // pixels of the plane at scale 1
let corner = [0, 0];
function measure() {
  side = Math.max(1, Math.min(canvas.clientWidth, canvas.clientHeight) - 24);
  corner = [(canvas.clientWidth - side) / 2, (canvas.clientHeight - side) / 2];
  draw();
}
const place = ({ x, y }) => [corner[0] + side * (x * view.scale + view.x), corner[1] + side * (y * view.scale + view.y)];

// Draws the points, then the lasso alone as long as the points stay where they are.
const still = document.createElement("canvas");
let stillIsOld = true;
let waits = null; // the next frame
let rests = null; // timer

function draw({ moving = false, onlyLasso = false } = {}) {
  const step = moving ? Math.ceil(points.length / MOVING) : 1;
  if (!onlyLasso) {
    stillIsOld = true;
    clearTimeout(rests);
    if (step > 1) rests = setTimeout(draw, REST_MS);
  }
  cancelAnimationFrame(waits);
  waits = requestAnimationFrame(() => {
    if (stillIsOld) paintPoints(step);
    stillIsOld = false;
    canvas.width = still.width;
    canvas.height = still.height;
    const pen = canvas.getContext("2d");
    pen.drawImage(still, 0, 0);
    if (!lasso) return;
    pen.scale(devicePixelRatio, devicePixelRatio);
    pen.beginPath();
    for (const [x, y] of lasso) pen.lineTo(x, y);
    pen.closePath();
    pen.setLineDash([5, 4]);
    pen.lineWidth = 1.5;
    pen.strokeStyle = getComputedStyle(canvas).color;
    pen.stroke();
  });
}

// Draws every point, or every second, third … point.
function paintPoints(step) {
  const ratio = devicePixelRatio;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  still.width = width * ratio;
  still.height = height * ratio;
  const pen = still.getContext("2d");
  pen.scale(ratio, ratio);
  const size = Math.max(4, Math.min(12, (points.length > 5000 ? 5 : 8) * Math.sqrt(view.scale)));
  const sprites = new Map();
  for (const faint of [true, false]) {
    pen.globalAlpha = faint ? 0.35 : 1;
    for (let i = 0; i < points.length; i += step) {
      const point = points[i];
      const isFaint = highlighted !== null ? point.category !== highlighted : chosen.size > 0 && !chosen.has(i);
      if (isFaint !== faint) continue;
      const [x, y] = place(point);
      if (x < -size || y < -size || x > width + size || y > height + size) continue;
      if (!sprites.has(point.category)) sprites.set(point.category, sprite(point, Math.round(size * ratio)));
      pen.drawImage(sprites.get(point.category), x - size / 2, y - size / 2, size, size);
    }
  }
  const style = getComputedStyle(canvas);
  pen.font = `600 13px ${style.fontFamily}`;
  pen.textAlign = "center";
  pen.lineWidth = 4;
  pen.strokeStyle = style.backgroundColor;
  pen.fillStyle = style.color;
  const taken = [];
  for (const { category, x, y } of centres.slice(0, LABELS)) {
    const [left, middle] = place({ x, y });
    const top = middle - 8;
    const half = pen.measureText(names[category]).width / 2 + 3;
    if (taken.some((box) => Math.abs(box.left - left) < box.half + half && Math.abs(box.top - top) < 17)) continue;
    taken.push({ left, top, half });
    pen.strokeText(names[category], left, top);
    pen.fillText(names[category], left, top);
  }
}

let centres = []; // where the names are: above the middle of each category, those with the most photos first
function findCentres() {
  const at = (share, values) => values.sort((a, b) => a - b)[Math.floor(share * values.length)];
  const of = Map.groupBy(points.filter(({ reference }) => reference), ({ category }) => category);
  centres = [...of].map(([category, some]) => ({ category, number: some.length, x: at(0.5, some.map(({ x }) => x)), y: at(0.1, some.map(({ y }) => y)) }));
  centres.sort((a, b) => b.number - a.number);
}

// Points

async function load(query = "") {
  get("drawing").hidden = points.length > 0 && !query;
  let answer;
  for (;;) {
    answer = await fetch(`/map/points${query}`).catch(() => null);
    if (answer?.status !== 202) break;
    query = "";
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  get("drawing").hidden = true;
  if (answer?.status === 401) return location.assign("/login");
  if (!answer?.ok) return sayProblem("The map cannot be drawn.", "Check that the service runs, then try again.");
  const found = await answer.json();
  names = found.names;
  points = found.points.map(([x, y, category, hash]) => ({ x, y, category, hash, reference: category !== WAITS }));
  const focused = get("chosen").contains(document.activeElement);
  choose(new Set());
  if (focused) canvas.focus({ preventScroll: true });
  get("empty").hidden = points.length > 0;
  findCentres();
  listCategories();
}

function listCategories() {
  const numbers = new Map();
  for (const { category } of points) numbers.set(category, (numbers.get(category) ?? 0) + 1);
  const items = [...numbers].sort(([a], [b]) => a - b).map(([category, number]) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    const name = document.createElement("span");
    name.className = "name";
    name.textContent = category === WAITS ? "Wait for a label" : names[category];
    const count = document.createElement("span");
    count.className = "muted";
    count.textContent = number.toLocaleString("en");
    button.append(sprite({ category, reference: category !== WAITS }, 28), name, count);
    button.onclick = () => choose(new Set(points.flatMap((point, i) => (point.category === category ? [i] : []))));
    button.onpointerenter = button.onfocus = () => highlight(category);
    button.onpointerleave = button.onblur = () => highlight(null);
    item.append(button);
    return item;
  });
  get("legend").replaceChildren(...items);
}

function highlight(category) {
  highlighted = category;
  draw();
}

// Selection

const selected = (test) => [...chosen].map((i) => points[i]).filter(test);
const references = () => selected(({ reference }) => reference);
const waiting = () => selected(({ reference }) => !reference);

function choose(some) {
  chosen = some;
  draw();
  get("chosen").hidden = !chosen.size;
  get("chosen-title").textContent = chosen.size ? `${counted(chosen.size, "photo")} selected` : "";
  get("chosen-photos").replaceChildren(
    ...[...chosen].slice(0, SHOWN).map((i) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.className = "thumb";
      button.dataset.picture = "";
      button.title = `${nameOf(points[i])}: leave it out`;
      const image = new Image();
      image.loading = "lazy";
      image.alt = button.title;
      image.src = pictureOf(points[i]);
      button.append(image);
      button.onclick = () => {
        const place = [...get("chosen-photos").children].indexOf(item);
        choose(new Set([...chosen].filter((other) => other !== i)));
        const left = get("chosen-photos").children;
        (left[Math.min(place, left.length - 1)]?.firstElementChild ?? canvas).focus();
      };
      item.append(button);
      return item;
    }),
  );
  get("chosen-more").textContent = chosen.size > SHOWN ? `${counted(chosen.size - SHOWN, "more photo")} not shown.` : "";
  if (!get("put")) return; // the key may only read
  const buttons = { move: ["Move", references()], remove: ["Remove", references()], label: ["Label", waiting()], dismiss: ["Dismiss", waiting()] };
  for (const [act, [verb, some]] of Object.entries(buttons)) {
    const button = document.querySelector(`[value="${act}"], [data-acts="${act}"]`);
    button.hidden = !some.length;
    button.textContent = `${verb} ${counted(some.length, "photo")}`;
  }
  document.querySelector('[value="label"]').classList.toggle("primary", !references().length);
}

async function act(kind, category = null) {
  if (isChanging()) return; // a second click
  const ofReferences = kind === "move" || kind === "remove";
  const some = (ofReferences ? references() : waiting()).filter((point) => kind !== "move" || names[point.category] !== category);
  if (!some.length) return sayProblem("The photos are in this category already.", "Choose another category.");
  const values = some.map(({ hash, category: from }) => (ofReferences ? `${hash}:${names[from]}` : hash));
  const fields = [...inLines(ofReferences ? "reference" : "hash", values), ["category", category]];
  const progress = () => [`${DOING[kind]} ${counted(some.length, "photo")} …`, null];
  await makeChange([{ path: ofReferences ? `/references/${kind}` : `/inbox/${kind}`, fields, progress }]);
}

// Pointer and keys

function nearest(x, y) {
  let best = [NEAR ** 2, null];
  points.forEach((point, i) => {
    const [left, top] = place(point);
    const distance = (left - x) ** 2 + (top - y) ** 2;
    if (distance < best[0]) best = [distance, i];
  });
  return best[1];
}

function inside(x, y, line) {
  let is = false;
  for (let i = 0, j = line.length - 1; i < line.length; j = i, i += 1) {
    const [[ax, ay], [bx, by]] = [line[i], line[j]];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) is = !is;
  }
  return is;
}

function point(x, y) {
  const found = held ? null : nearest(x, y);
  const box = get("pointed");
  box.hidden = found === null;
  if (found === null) return;
  const thumb = box.querySelector(".thumb");
  const source = pictureOf(points[found]);
  if (thumb.firstElementChild.getAttribute("src") !== source) {
    thumb.classList.remove("absent");
    thumb.firstElementChild.src = source;
  }
  box.querySelector("figcaption").textContent = nameOf(points[found]);
  box.style.left = `${Math.min(x + 14, canvas.clientWidth - box.offsetWidth)}px`;
  box.style.top = `${y + 14 + box.offsetHeight > canvas.clientHeight ? y - box.offsetHeight - 14 : y + 14}px`;
}

function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  if (!factor) view = { scale: 1, x: 0, y: 0 };
  else {
    const scale = Math.max(0.5, Math.min(200, view.scale * factor));
    const by = scale / view.scale;
    const at = [(x - corner[0]) / side, (y - corner[1]) / side];
    view = { scale, x: at[0] + (view.x - at[0]) * by, y: at[1] + (view.y - at[1]) * by };
  }
  draw({ moving: true });
}

let held = null; // { x, y, view } where the pointer went down, and whether it moved since
function listen() {
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !event.isPrimary) return;
    canvas.setPointerCapture(event.pointerId);
    held = { x: event.offsetX, y: event.offsetY, view, moved: false };
    if (tool === "select") lasso = [[event.offsetX, event.offsetY]];
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!event.isPrimary) return;
    if (!held) return point(event.offsetX, event.offsetY);
    get("pointed").hidden = true;
    held.moved ||= Math.hypot(event.offsetX - held.x, event.offsetY - held.y) > CLICK;
    if (lasso) lasso.push([event.offsetX, event.offsetY]);
    else view = { ...view, x: held.view.x + (event.offsetX - held.x) / side, y: held.view.y + (event.offsetY - held.y) / side };
    draw({ moving: true, onlyLasso: lasso !== null });
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!held) return;
    const isClick = !held.moved;
    const line = lasso;
    held = lasso = null;
    if (isClick) {
      const found = nearest(event.offsetX, event.offsetY);
      const rest = new Set(chosen);
      if (found !== null && !rest.delete(found)) rest.add(found);
      choose(found === null ? new Set() : rest);
    } else if (line) {
      const found = points.flatMap((one, i) => (inside(...place(one), line) ? [i] : []));
      choose(new Set(event.shiftKey ? [...chosen, ...found] : found));
    }
  });
  canvas.addEventListener("pointercancel", () => {
    held = lasso = null;
    draw();
  });
  canvas.addEventListener("pointerleave", () => (get("pointed").hidden = true));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] };
    const [x, y] = steps[event.key] ?? [0, 0];
    if (x || y) view = { ...view, x: view.x + x, y: view.y + y };
    else if (event.key === "+") zoom(1.5);
    else if (event.key === "-") zoom(0.667);
    else if (event.key === "Escape") choose(new Set());
    else return;
    event.preventDefault();
    draw();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.dataset.zooms) zoom(Number(button.dataset.zooms));
    if (button?.dataset.acts) act(button.dataset.acts);
    if (button?.id === "clear") choose(new Set());
    if (button?.id === "again") load("?again=true");
    if (!button?.dataset.tool) return;
    tool = button.dataset.tool;
    canvas.classList.toggle("moves", tool === "move");
    for (const one of document.querySelectorAll("[data-tool]")) one.ariaPressed = String(one === button);
  });
  get("put")?.addEventListener("submit", (event) => {
    event.preventDefault();
    const category = get("put-name").value.trim();
    const hidden = event.submitter.hidden; // Enter presses the first button, even a hidden one
    if (category) act(hidden ? "label" : event.submitter.value, category);
  });
  new ResizeObserver(measure).observe(canvas);
  dark.addEventListener("change", () => listCategories() ?? draw());
  document.body.addEventListener("zsvec:changed", () => load());
}

if (canvas) {
  listen();
  load();
}
