"use strict";

// The page of a rater: shows a task, lets the rater order its candidates, and sends the order to the server.
// A candidate is known by its place on the page only.

const IMAGES = Number(document.body.dataset.images);
const CROPS = Number(document.body.dataset.crops);
const REFERENCE = document.body.dataset.reference === "true";
const SIDE = 80;
const RETRY_AFTER = 1000;

const element = (id) => document.getElementById(id);
const cards = element("cards");

let task = null;      // what the server says of the task that is shown
let ranks = [];       // place -> rank from 1, or 0
let former = [];      // earlier ranks, for undo
let current = 0;      // the candidate that the keyboard is at
let busy = true;

// --- the server ---

function say(text, problem = false) {
  element("status").textContent = text;
  element("status").classList.toggle("problem", problem);
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// Asks until there is an answer: a server that is started anew must not cost the rater what stands on the page.
async function ask(address, content) {
  const options = content === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content),
  };
  for (;;) {
    let reply;
    try {
      reply = await fetch(address, options);
    } catch {
      say(`${content ? "Not saved yet: the" : "The"} server does not answer. Trying again …`, true);
      await pause(RETRY_AFTER);
      continue;
    }
    if (reply.ok) return reply.json();
    throw Object.assign(new Error((await reply.text()).trim()), { status: reply.status });
  }
}

const picture = (number, place, crop) => `images/${number}/${place}/${crop}.png`;

function places(candidates) {
  const numbers = [...Array(candidates).keys()];
  return REFERENCE ? ["reference", ...numbers] : numbers;
}

function crops(number, place) {
  return [...Array(CROPS).keys()].map((crop) => {
    const image = new Image(SIDE, SIDE);
    image.alt = "";
    image.draggable = false;
    image.src = picture(number, place, crop);
    return image;
  });
}

// --- showing a task ---

async function open(number, message = "") {
  busy = true;
  refresh();
  try {
    const found = await ask(`tasks/${number}`);
    const shown = places(found.candidates).map((place) => [place, crops(number, place)]);
    await Promise.all(shown.flatMap(([, images]) => images).map((image) => image.decode()));
    task = found;
    ranks = Array(task.candidates).fill(0);
    task.ranking.forEach((place, index) => { ranks[place] = index + 1; });
    former = [];
    current = 0;
    cards.replaceChildren(...shown.map(([place, images]) => card(place, images)));
    element("done").hidden = true;
    cards.hidden = element("question").hidden = false;
    say(message);
  } catch (error) {
    say(`This image cannot be shown: ${error.message}`, true);
    return;
  }
  busy = false;
  arrange();
  refresh();
  focusCard(0);
  // the next pictures are there when they are wanted
  if (task.next !== null && task.next !== number) places(task.candidates).forEach((place) => crops(task.next, place));
}

function finish(message) {
  task = null;
  busy = false;
  cards.replaceChildren();
  cards.hidden = element("question").hidden = true;
  element("done").hidden = false;
  say(message);
  refresh(IMAGES);
  element("done").focus();
}

const letter = (place) => String.fromCharCode(65 + place);

function card(place, images) {
  const isReference = place === "reference";
  const made = document.createElement(isReference ? "figure" : "button");
  const head = document.createElement(isReference ? "figcaption" : "span");
  const name = document.createElement("span");
  name.textContent = isReference ? "Reference" : letter(place);
  head.className = "head";
  head.append(name);
  made.className = isReference ? "card reference" : "card";
  if (isReference) {
    images.forEach((image, crop) => { image.alt = `Part ${crop + 1} of the original`; });
  } else {
    const rank = document.createElement("span");
    rank.className = "rank";
    head.append(rank);
    made.type = "button";
    made.dataset.place = place;
    made.addEventListener("click", () => choose(place));
    made.addEventListener("focus", () => { current = place; });
  }
  made.append(head, ...images);
  return made;
}

// Pixels become squares of whole pixels of the screen: as large as lets all candidates stand in one row, if any does.
function arrange() {
  if (task === null) return;
  const count = places(task.candidates).length;
  const density = window.devicePixelRatio || 1;
  const width = cards.parentElement.clientWidth - 2 * parseFloat(getComputedStyle(cards.parentElement).paddingLeft);
  const height = window.innerHeight - 250;
  const style = getComputedStyle(cards);
  const gap = parseFloat(style.columnGap);
  const frame = 2 * (parseFloat(style.getPropertyValue("--padding")) + parseFloat(style.getPropertyValue("--border")));
  const columns = (side) => Math.max(1, Math.min(count, Math.floor((width + gap) / (side + frame + gap))));
  const sides = [...Array(Math.ceil(4 * density)).keys()].map((factor) => SIDE * (factor + 1) / density);
  const whole = sides.filter((side) => columns(side) === count && CROPS * side <= height);
  const wrapped = sides.filter((side) => side <= 2 * SIDE && columns(side) >= 2);
  const side = whole.at(-1) >= 1.5 * SIDE ? whole.at(-1) : wrapped.at(-1) ?? SIDE;
  cards.style.setProperty("--side", `${side}px`);
  cards.style.setProperty("--columns", columns(side));
}

function refresh(answered = task?.answered ?? 0) {
  const complete = task !== null && ranks.every((rank) => rank > 0);
  element("title").textContent = task === null ? `${IMAGES} images` : `Image ${task.task + 1} of ${IMAGES}`;
  element("progress").value = answered;
  element("progress").setAttribute("aria-valuetext", `${answered} of ${IMAGES} answered`);
  element("save").hidden = element("undo").hidden = task === null && !busy;
  element("save").disabled = busy || !complete;
  element("undo").disabled = busy || former.length === 0;
  element("keys").hidden = task === null && !busy;
  element("back").disabled = busy || (task !== null && task.task === 0);
  if (task === null) return;
  element("last").textContent = task.candidates;
  for (const button of cards.querySelectorAll("button")) {
    const place = Number(button.dataset.place), rank = ranks[place];
    button.classList.toggle("ranked", rank > 0);
    button.querySelector(".rank").textContent = rank || "–";
    button.setAttribute("aria-label", `Candidate ${letter(place)}: ${rank ? `rank ${rank}` : "no rank yet"}`);
  }
}

// --- ordering ---

function change(changed) {
  if (busy || task === null || changed.every((rank, place) => rank === ranks[place])) return;
  former.push(ranks);
  ranks = changed;
  const free = ranks.flatMap((rank, place) => (rank ? [] : [place]));
  say(free.length ? `${free.length} to go` : "Complete: Enter saves");
  refresh();
}

const lowestFree = (among) => among.findIndex((_, index) => !among.includes(index + 1)) + 1;

// Gives the next rank, or takes the rank away.
function choose(place) {
  const changed = [...ranks];
  changed[place] = ranks[place] ? 0 : lowestFree(ranks);
  // the last candidate has no choice
  const free = changed.flatMap((rank, other) => (rank ? [] : [other]));
  if (free.length === 1 && !ranks[place]) changed[free[0]] = lowestFree(changed);
  change(changed);
}

// Gives a certain rank; who had it gets the former one of this candidate.
function give(place, rank) {
  const changed = [...ranks];
  const holder = ranks.indexOf(rank);
  if (holder >= 0) changed[holder] = ranks[place];
  changed[place] = rank;
  change(changed);
}

function undo() {
  if (busy || former.length === 0) return;
  ranks = former.pop();
  say("Undone");
  refresh();
}

async function save() {
  if (busy || task === null || ranks.includes(0)) return;
  busy = true;
  refresh();
  say("Saving …");
  const ranking = ranks.map((_, index) => ranks.indexOf(index + 1));
  try {
    const stored = await ask(`tasks/${task.task}`, { ranking, revision: task.revision });
    const message = `Saved ✓ ${stored.answered} of ${IMAGES}`;
    if (stored.next === null) finish(message);
    else await open(stored.next, message);
  } catch (error) {
    if (error.status === 409) {
      await open(task.task);
      say(error.message, true);
    } else {
      busy = false;
      refresh();
      say(`Not saved: ${error.message}`, true);
    }
  }
}

function back() {
  if (busy) return;
  if (task === null) open(IMAGES - 1);
  else if (task.task > 0) open(task.task - 1);
}

// --- keyboard ---

function focusCard(place) {
  cards.querySelector(`button[data-place="${place}"]`)?.focus({ preventScroll: true });
}

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.metaKey) return;
  if (event.ctrlKey && event.key !== "z") return;
  const on = document.activeElement;
  const steps = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };
  if (event.key === "PageUp") back();
  else if (event.key === "Backspace" || event.key === "z" && event.ctrlKey) undo();
  else if (task === null || busy) return;
  else if (event.key in steps) {
    const place = on?.classList.contains("card") ? current + steps[event.key] : current;
    focusCard((place + task.candidates) % task.candidates);
  } else if (/^[1-9]$/.test(event.key) && Number(event.key) <= task.candidates) {
    focusCard(current);
    give(current, Number(event.key));
  } else if (event.key === "Enter" && (on === document.body || on?.classList.contains("card"))) save();
  else return;
  event.preventDefault();
});

element("back").addEventListener("click", back);
element("undo").addEventListener("click", undo);
element("save").addEventListener("click", save);
window.addEventListener("resize", arrange);

(async () => {
  try {
    const { next } = await ask("tasks/0");
    if (next === null) finish("");
    else await open(next);
  } catch (error) {
    say(error.message, true);
  }
})();
