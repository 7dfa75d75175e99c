// Dragging of pictures by mouse, pen or touch. Touch drags after a long press, and scrolls otherwise.

const FAR = 6; // pixels that a mouse moves before a drag begins
const RESTS = 350; // milliseconds of a long press
const EDGE = 70; // pixels from an edge where the page scrolls
const STEP = 14;

// Calls `drop` with a picture and the category that the picture is dropped on, and `begin` and `end` around each drag.
export function dragPictures({ begin, drop, end }) {
  let held = null; // { picture, pointer, x, y, timer, ghost, over }

  document.addEventListener("pointerdown", (event) => {
    const picture = event.target.closest("[data-reference]");
    if (!picture || !event.isPrimary || event.button !== 0) return;
    held = { picture, pointer: event.pointerId, x: event.clientX, y: event.clientY };
    if (event.pointerType === "touch") held.timer = setTimeout(start, RESTS);
  });

  function start() {
    const ghost = held.picture.querySelector(".thumb").cloneNode(true);
    ghost.classList.add("ghost");
    document.body.append(ghost);
    document.body.classList.add("dragging");
    held.ghost = ghost;
    held.picture.classList.add("lifted");
    begin(held.picture);
    place();
    requestAnimationFrame(scroll);
    navigator.vibrate?.(15);
  }

  function place() {
    const [right, down] = held.timer ? [-40, -95] : [8, 8]; // keeps the drop target visible
    held.ghost.style.transform = `translate(${held.x + right}px, ${held.y + down}px)`;
    const under = document.elementFromPoint(held.x, held.y)?.closest("[data-drop]") ?? null;
    const target = under?.dataset.drop === held.picture.dataset.category ? null : under;
    if (target === held.over) return;
    held.over?.classList.remove("over");
    target?.classList.add("over");
    held.over = target;
  }

  function scroll() {
    if (!held?.ghost) return;
    const list = document.elementFromPoint(held.x, held.y)?.closest(".targets ul");
    const box = list?.getBoundingClientRect() ?? { top: 0, bottom: innerHeight };
    const step = held.y < box.top + EDGE ? -STEP : held.y > box.bottom - EDGE ? STEP : 0;
    (list ?? window).scrollBy(0, step);
    if (step) place();
    requestAnimationFrame(scroll);
  }

  function release(dropped) {
    if (!held) return;
    const { picture, ghost, over, timer } = held;
    clearTimeout(timer);
    held = null;
    if (!ghost) return;
    ghost.remove();
    over?.classList.remove("over");
    picture.classList.remove("lifted");
    document.body.classList.remove("dragging");
    end();
    if (dropped && over) drop(picture, over.dataset.drop);
    // Ignores the click that follows, which would open the picture.
    const swallow = (event) => event.stopPropagation() ?? event.preventDefault();
    document.addEventListener("click", swallow, { capture: true, once: true });
    setTimeout(() => document.removeEventListener("click", swallow, { capture: true }), 50);
  }

  document.addEventListener("pointermove", (event) => {
    if (event.pointerId !== held?.pointer) return;
    const moved = Math.hypot(event.clientX - held.x, event.clientY - held.y);
    if (!held.ghost) {
      if (moved < FAR) return;
      if (event.pointerType === "touch") return release(false); // a scroll
      start();
    }
    held.x = event.clientX;
    held.y = event.clientY;
    place();
  });
  document.addEventListener("pointerup", (event) => event.pointerId === held?.pointer && release(true));
  document.addEventListener("pointercancel", (event) => event.pointerId === held?.pointer && release(false));
  document.addEventListener("keydown", (event) => event.key === "Escape" && release(false));
  document.addEventListener("touchmove", (event) => held?.ghost && event.preventDefault(), { passive: false });
  document.addEventListener("contextmenu", (event) => held?.timer && event.preventDefault());
}
