// A box on a photo, drawn by the pointer or typed in four fields, and the part of the photo in the box as a file.

import { open, sayProblem } from "./page.js";

const dialog = document.getElementById("part-dialog");
const area = dialog.querySelector(".part-area");
const [photo, box] = area.children;
const fields = [...dialog.querySelectorAll("input[type=number]")]; // left, top, width, height, in pixels of the photo
let file = null;

const within = (value, low, high) => Math.round(Math.min(Math.max(value, low), high));

// Returns left, top, width and height in the fields, within the photo.
function sides() {
  const [left, top, width, height] = fields.map((field) => Number(field.value));
  const [x, y] = [within(left, 0, photo.naturalWidth - 1), within(top, 0, photo.naturalHeight - 1)];
  return [x, y, within(width, 1, photo.naturalWidth - x), within(height, 1, photo.naturalHeight - y)];
}

function draw(values) {
  values?.forEach((value, i) => (fields[i].value = value));
  const whole = [photo.naturalWidth, photo.naturalHeight];
  ["left", "top", "width", "height"].forEach((side, i) => (box.style[side] = `${(100 * sides()[i]) / whole[i % 2]}%`));
}

// Returns where the pointer is, in pixels of the photo.
function at(event) {
  const shown = photo.getBoundingClientRect();
  const along = (from, length, pixels) => within(((from / length) * pixels), 0, pixels);
  return [along(event.clientX - shown.left, shown.width, photo.naturalWidth), along(event.clientY - shown.top, shown.height, photo.naturalHeight)];
}

area.addEventListener("pointerdown", (event) => {
  event.preventDefault();
  area.setPointerCapture(event.pointerId);
  const from = at(event);
  const stretch = (moved) => {
    const to = at(moved);
    draw([0, 1].map((i) => Math.min(from[i], to[i])).concat([0, 1].map((i) => Math.max(Math.abs(from[i] - to[i]), 1))));
  };
  area.addEventListener("pointermove", stretch);
  area.addEventListener("lostpointercapture", () => area.removeEventListener("pointermove", stretch), { once: true });
});
for (const field of fields) {
  field.addEventListener("input", () => draw());
  field.addEventListener("change", () => draw(sides()));
}

// Shows a photo, with its middle half in the box, once it is loaded: later, the box would replace what is typed.
export function showPart(chosen) {
  file = chosen;
  photo.onload = () => {
    const whole = [photo.naturalWidth, photo.naturalHeight];
    draw([0, 1, 2, 3].map((i) => within(whole[i % 2] / (i < 2 ? 4 : 2), i < 2 ? 0 : 1, Infinity)));
    open(dialog);
  };
  photo.onerror = () => sayProblem("This browser cannot show the photo.", "Save it as JPEG or PNG, then choose it again.");
  photo.src = URL.createObjectURL(file);
  dialog.addEventListener("close", () => URL.revokeObjectURL(photo.src), { once: true });
}

// Returns the part in the box without loss, named as the regions of the command line are.
export async function cutPart() {
  const [left, top, width, height] = sides();
  const whole = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").drawImage(whole, -left, -top);
  whole.close();
  const name = `${file.name}#xywh=${left},${top},${width},${height}`;
  return new File([await canvas.convertToBlob()], name, { type: "image/png", lastModified: file.lastModified });
}
