// Images that are chosen, dropped or pasted.

// Calls `take` with the files, and with the element that they were dropped on, if any.
export function takeFiles(take) {
  document.addEventListener("click", (event) => {
    const picker = event.target.closest("[data-picks]");
    if (picker) document.getElementById(picker.dataset.picks).click();
  });
  document.addEventListener("change", (event) => {
    const input = event.target;
    if (input.type !== "file" || !document.querySelector(`[data-picks="${input.id}"]`)) return;
    const files = [...input.files];
    input.value = ""; // the same file may be chosen again
    if (files.length) take(files, input);
  });
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (!files.length) return;
    event.preventDefault();
    take(files, null);
  });
  let over = null;
  const leave = () => {
    over?.classList.remove("over");
    over = null;
    document.body.classList.remove("dropping");
  };
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    const target = event.target.closest("[data-takes-files]");
    if (target !== over) {
      leave();
      over = target;
      over?.classList.add("over");
    }
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) leave();
  });
  document.addEventListener("drop", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    leave();
    const files = [...event.dataTransfer.files];
    if (files.length) take(files, event.target);
  });
}
