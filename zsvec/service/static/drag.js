// Pictures dragged by mouse, pen or finger. A finger rests on a picture first: else it would scroll.

const FAR = 6; // pixels before a mouse drags
const RESTS = 350; // milliseconds before a finger does
const EDGE = 70; // pixels from an edge where what is shown scrolls
const STEP = 14;

// Call `drop` with a picture and the element with data-drop where it was let go; `begin` and `end` around each drag.
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
    const [right, down] = held.timer ? [-40, -95] : [8, 8]; // where neither a finger nor it hides what is under it
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

  function let_go(dropped) {
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
    // The click that follows would open the picture.
    const swallow = (event) => event.stopPropagation() ?? event.preventDefault();
    document.addEventListener("click", swallow, { capture: true, once: true });
    setTimeout(() => document.removeEventListener("click", swallow, { capture: true }), 50);
  }

  document.addEventListener("pointermove", (event) => {
    if (event.pointerId !== held?.pointer) return;
    const moved = Math.hypot(event.clientX - held.x, event.clientY - held.y);
    if (!held.ghost) {
      if (moved < FAR) return;
      if (event.pointerType === "touch") return let_go(false); // it scrolls
      start();
    }
    held.x = event.clientX;
    held.y = event.clientY;
    place();
  });
  document.addEventListener("pointerup", (event) => event.pointerId === held?.pointer && let_go(true));
  document.addEventListener("pointercancel", (event) => event.pointerId === held?.pointer && let_go(false));
  document.addEventListener("keydown", (event) => event.key === "Escape" && let_go(false));
  document.addEventListener("touchmove", (event) => held?.ghost && event.preventDefault(), { passive: false });
  document.addEventListener("contextmenu", (event) => held?.timer && event.preventDefault());
}
