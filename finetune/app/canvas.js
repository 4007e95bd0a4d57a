// The surface to draw on. Gradio gives `element` and `trigger`. Strokes are kept as points, from which Python makes the
// network's picture, so that neither the size of this canvas nor the width of its pen matters.
const canvas = element.querySelector("canvas");
const context = canvas.getContext("2d");
const UNITS = 280; // of the canvas's sides, whatever its size on the screen
const PEN = 20;
let strokes = [];
let current = null;

function at(event) {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * UNITS, ((event.clientY - box.top) / box.height) * UNITS];
}

function paint() {
  const side = Math.round(canvas.clientWidth * (window.devicePixelRatio || 1));
  if (!side) return;
  if (canvas.width !== side || canvas.height !== side) canvas.width = canvas.height = side;
  context.setTransform(side / UNITS, 0, 0, side / UNITS, 0, 0);
  context.clearRect(0, 0, UNITS, UNITS);
  context.strokeStyle = getComputedStyle(canvas).color;
  context.lineWidth = PEN;
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) {
    context.beginPath();
    context.moveTo(...stroke[0]);
    for (const point of stroke) context.lineTo(...point);
    context.stroke();
  }
  element.querySelector(".hint").hidden = strokes.length > 0;
}

function changed() {
  paint();
  trigger("input", { strokes });
}

function finish() {
  if (current) changed();
  current = null;
}

canvas.addEventListener("pointerdown", (event) => {
  if (current || event.button !== 0) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  current = [at(event)];
  strokes.push(current);
  paint();
});
canvas.addEventListener("pointermove", (event) => {
  if (!current) return;
  const passed = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
  current.push(...(passed.length ? passed : [event]).map(at));
  paint();
});
canvas.addEventListener("pointerup", finish);
canvas.addEventListener("pointercancel", finish);
element.querySelector(".undo").addEventListener("click", () => {
  strokes.pop();
  changed();
});
element.querySelector(".clear").addEventListener("click", () => {
  strokes = [];
  changed();
});
new ResizeObserver(paint).observe(canvas);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTimeout(paint, 100));
