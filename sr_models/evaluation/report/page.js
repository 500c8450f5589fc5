// Viewers: choose an image, flicker between two of them at the same place, zoom and move. Without this script the
// buttons of the images still work.
document.documentElement.classList.add("scripted");
for (const viewer of document.querySelectorAll(".viewer")) {
  const [stage, stack, seen] = [".stage", ".stack", ".seen"].map((name) => viewer.querySelector(name));
  const layers = [...viewer.querySelectorAll(".layer input")];
  const other = viewer.querySelector("select");
  const zooms = [...viewer.querySelectorAll(".zooms button")];
  let [zoom, x, y] = [1, 0.5, 0.5]; // the point of the image in the middle, from 0 to 1
  let before = null; // the layer that was seen when the flicker began

  const name = () => (seen.textContent = layers.find((layer) => layer.checked).dataset.name);
  const choose = (layer) => { if (layer) { layer.checked = true; name(); } };
  const flicker = (on) => {
    if (on === (before !== null)) return;
    const chosen = layers.find((layer) => layer.checked);
    const target = on ? layers[other.value] : before;
    before = on ? chosen : null;
    viewer.classList.toggle("flickering", on);
    choose(target);
  };
  const move = (toX, toY, toZoom = zoom) => {
    zoom = Math.min(Math.max(toZoom, 1), 16);
    const half = 0.5 / zoom;
    x = Math.min(Math.max(toX, half), 1 - half);
    y = Math.min(Math.max(toY, half), 1 - half);
    const { clientWidth: width, clientHeight: height } = stage;
    stack.style.transform = `translate(${(0.5 - x * zoom) * width}px, ${(0.5 - y * zoom) * height}px) scale(${zoom})`;
    stage.classList.toggle("zoomed", zoom > 1);
    for (const button of zooms) button.setAttribute("aria-pressed", String(Number(button.value) === zoom));
  };

  viewer.addEventListener("change", (event) => {
    if (!layers.includes(event.target)) return;
    before = null;
    viewer.classList.remove("flickering");
    name();
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target === other) return;
    const button = event.target.tagName === "BUTTON";
    const step = 0.1 / zoom;
    const onStage = event.target === stage && zoom > 1;
    const press = event.key === " " || (event.key === "Enter" && button);
    if (press && (!button || event.target.matches(".hold"))) flicker(true);
    else if (/^[1-9]$/.test(event.key)) { flicker(false); choose(layers[event.key - 1]); }
    else if (event.key === "+" || event.key === "=") move(x, y, zoom * 2);
    else if (event.key === "-") move(x, y, zoom / 2);
    else if (event.key === "0") move(0.5, 0.5, 1);
    else if (onStage && event.key === "ArrowLeft") move(x - step, y);
    else if (onStage && event.key === "ArrowRight") move(x + step, y);
    else if (onStage && event.key === "ArrowUp") move(x, y - step);
    else if (onStage && event.key === "ArrowDown") move(x, y + step);
    else return;
    event.preventDefault();
  });
  viewer.addEventListener("keyup", (event) => { if (event.key === " " || event.key === "Enter") flicker(false); });

  const hold = viewer.querySelector(".hold");
  let held = false; // by a pointer, whose press also moves the focus
  viewer.addEventListener("focusout", () => { if (!held) flicker(false); });
  hold.addEventListener("pointerdown", () => { held = true; flicker(true); });
  for (const type of ["pointerup", "pointercancel", "pointerleave"]) {
    hold.addEventListener(type, () => { held = false; flicker(false); });
  }
  hold.addEventListener("contextmenu", (event) => event.preventDefault());
  for (const button of zooms) button.addEventListener("click", () => move(x, y, Number(button.value)));

  let from = null;
  stage.addEventListener("pointerdown", (event) => {
    if (zoom === 1) return;
    from = [event.clientX, event.clientY, x, y];
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    if (!from) return;
    const [startX, startY, atX, atY] = from;
    const { clientWidth: width, clientHeight: height } = stage;
    move(atX - (event.clientX - startX) / width / zoom, atY - (event.clientY - startY) / height / zoom);
  });
  for (const type of ["pointerup", "pointercancel"]) stage.addEventListener(type, () => { from = null; });
  stage.addEventListener("dblclick", (event) => {
    const box = stage.getBoundingClientRect();
    const atX = x + ((event.clientX - box.left) / box.width - 0.5) / zoom;
    const atY = y + ((event.clientY - box.top) / box.height - 0.5) / zoom;
    if (zoom > 1) move(0.5, 0.5, 1); else move(atX, atY, 4);
  });
  addEventListener("resize", () => move(x, y));
  name();
}
