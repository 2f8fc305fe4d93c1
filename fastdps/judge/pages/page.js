// The page of one person. It shows a triplet, sends the answer, and shows the next one once the server has it on disk.
"use strict";

const $ = (id) => document.getElementById(id);
const MILESTONES = [10, 20, 50, 100, 200, 500, 1000, 2000, 5000];
const PRAISE = {
  10: "10 answers. Your first metric is saved.",
  20: "20 answers. It begins to see as you do.",
  50: "50 answers. A good time for a short break.",
  100: "100 answers. More still help, but each one less.",
};
const KEYS = { ArrowLeft: "left", ArrowRight: "right", " ": "neither" };
const RETRY_MS = 1000, POLL_MS = 700, POLLS = 8, TOAST_MS = 3500, CHOSEN_MS = 130;
const TOO_SOON_MS = 100; // an answer that follows a new triplet faster was meant for the one before

let person = null; // the name, once the session has begun
let state = null; // as the server sent it
let practice = null; // {step, triplets}
let busy = false; // an answer is on its way
let shownAt = 0;
let probe = null;
let polls = 0;
let lastOrder = "";

// ---- the server ----

class Refused extends Error {
  constructor(status, content) {
    super(content.error || `The server answered ${status}.`);
    this.status = status;
    this.content = content;
  }
}

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  const response = await fetch(path, options); // throws a TypeError without a connection
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, content);
  return content;
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Send until the server answers, so that no answer is lost while it is down. A request that is sent twice counts once.
async function insist(path, body) {
  for (;;) {
    try {
      const content = await ask(path, body);
      banner("");
      return content;
    } catch (error) {
      const passing = !(error instanceof Refused) || error.status === 503 || error.status === 507;
      if (!passing) { banner(""); throw error; }
      banner(error instanceof Refused ? error.message
        : "No connection to the server. Your answer is kept, and sent when the server is back.");
      await pause(RETRY_MS);
    }
  }
}

// An answer that is on its way survives a reload of the page.
const pendingKey = () => `fastdps-judge-pending-${person}`;
const remember = (pending) => pending ? localStorage.setItem(pendingKey(), JSON.stringify(pending))
  : localStorage.removeItem(pendingKey());

function pendingAnswer() {
  try { return JSON.parse(localStorage.getItem(pendingKey())); } catch { return null; }
}

// ---- showing ----

const address = (number) => `/image/${number}?v=${state.images}`;

function show(next) {
  state = next;
  const { current } = practice ? { current: practice.triplets[practice.step] } : state;
  $("enter").hidden = true;
  $("judge").hidden = !current;
  $("done").hidden = Boolean(current);
  $("who").textContent = person;
  $("skip").hidden = !practice;
  $("judge").classList.toggle("practice", Boolean(practice));
  $("undo").disabled = practice ? practice.step !== 3 : !state.undo;
  $("question").textContent = practice ? practice.texts[practice.step] : "Which one is closer to this?";
  showProgress();
  if (!current) return;
  $("left").classList.remove("chosen");
  $("right").classList.remove("chosen");
  const pictures = [["ref", current.ref], ["left-image", current.left], ["right-image", current.right]];
  for (const [id, number] of pictures) if ($(id).getAttribute("src") !== address(number)) $(id).src = address(number);
  if ($("judge").dataset.triplet !== current.id || practice) {
    $("judge").dataset.triplet = current.id;
    $("judge").classList.add("fresh");
    Promise.all(pictures.map(([id]) => $(id).decode().catch(() => {}))).then(async () => {
      shownAt = performance.now();
      await pause(TOO_SOON_MS);
      $("judge").classList.remove("fresh");
    });
  }
  for (const triplet of [state.current, state.next]) preload(triplet);
}

const preloaded = new Map();

function preload(triplet) {
  for (const number of triplet ? [triplet.ref, triplet.left, triplet.right] : []) {
    if (preloaded.has(number)) continue;
    const image = new Image();
    image.src = address(number);
    preloaded.set(number, image);
    if (preloaded.size > 24) preloaded.delete(preloaded.keys().next().value);
  }
}

function showProgress() {
  const n = state.answers;
  const limit = state.count === null ? Infinity : state.count;
  const goal = Math.min(MILESTONES.find((m) => m > n) || 10000, Math.max(limit, n));
  const start = Math.max(0, ...MILESTONES.filter((m) => m <= n));
  $("fill").style.width = practice ? "0" : `${goal > start ? Math.max(3, 100 * (n - start) / (goal - start)) : 100}%`;
  $("count").textContent = practice ? "practice" : `${n} of ${goal}`;
  $("progress").setAttribute("aria-valuenow", n);
  $("progress").setAttribute("aria-valuemax", goal);
}

function banner(text) {
  $("banner").textContent = text;
  $("banner").hidden = !text;
}

let toastTimer = 0;

function toast(text) {
  $("toast").textContent = text;
  $("toast").classList.add("shown");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => $("toast").classList.remove("shown"), TOAST_MS);
}

// ---- practice: the same image three times, so that the keys are learned without judging ----

function beginPractice() {
  if (state.answers || !state.current || sessionStorage.getItem(`fastdps-judge-practiced-${person}`)) return;
  const { ref, left, right } = state.next || state.current;
  const step = (l, r) => ({ id: "practice", ref, left: l, right: r });
  const touch = matchMedia("(pointer: coarse)").matches;
  practice = {
    step: 0,
    triplets: [step(ref, left), step(right, ref), step(ref, ref), step(ref, ref)],
    wanted: ["left", "right", "neither", "undo"],
    texts: touch ? [
      "Practice. The left image is the one above: tap it.",
      "Now it is the right one: tap it.",
      "Here you cannot say: both are the same.",
      "One more button: Undo takes the last answer back.",
    ] : [
      "Practice. The left image is the one above: press ←",
      "Now it is the right one: press →",
      "Here you cannot say, both are the same: press space",
      "z takes the last answer back: press z",
    ],
  };
}

function practise(choice) {
  if (choice !== practice.wanted[practice.step]) {
    toast("Almost. " + practice.texts[practice.step]);
    return;
  }
  practice.step += 1;
  if (practice.step === practice.triplets.length) endPractice("That is all. From now on your answers count.");
  else show(state);
}

function endPractice(text) {
  practice = null;
  sessionStorage.setItem(`fastdps-judge-practiced-${person}`, "1");
  toast(text);
  show(state);
}

// ---- answers ----

async function choose(choice) {
  if (busy || !state || $("judge").hidden || $("judge").classList.contains("fresh")) return;
  if (practice) { practise(choice); return; }
  if (!state.current) return;
  const seconds = Math.min(1e5, (performance.now() - shownAt) / 1000);
  $("judge").classList.add("waiting");
  if (choice !== "neither") $(choice).classList.add("chosen");
  const pending = { person, triplet: state.current.id, choice, seconds };
  remember(pending);
  await send("/api/answer", pending, pause(matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : CHOSEN_MS));
  if (PRAISE[state.answers]) toast(PRAISE[state.answers]);
}

async function undo() {
  if (practice) { if (!$("judge").classList.contains("fresh")) practise("undo"); return; }
  if (busy || !state || !state.undo) return;
  await send("/api/undo", { person, answer: state.undo });
}

async function send(path, body, atLeast) {
  busy = true;
  let next = state;
  try {
    [next] = await Promise.all([insist(path, body), atLeast]);
  } catch (error) {
    if (error.status === 409) {
      next = error.content.state;
      toast(error.message + " Here is where you are.");
    } else if (error.status === 401) {
      banner(error.message);
    } else {
      toast(error.message);
    }
  }
  remember(null);
  busy = false;
  $("judge").classList.remove("waiting");
  show(next);
  follow();
}

// ---- what the metric learns ----

function follow() {
  const idle = polls === 0;
  polls = POLLS;
  if (idle) poll();
}

async function poll() {
  while (polls > 0) {
    polls -= 1;
    await learn().catch(() => {});
    await pause(POLL_MS);
  }
}

async function learn() {
  if (!person || !state || $("learning").dataset.folded) return;
  if (probe === null && state.current) probe = state.current.ref;
  const found = await ask(`/api/learning?person=${encodeURIComponent(person)}&probe=${probe || 0}`);
  $("learning").hidden = practice !== null;
  $("fold").hidden = practice !== null;
  if (found.status === "features") polls = Math.max(polls, 2);
  showBars(found);
  showNearest(found.nearest);
}

function bar(name, rate, kind) {
  const label = document.createElement("span"), outer = document.createElement("div");
  const inner = document.createElement("div"), value = document.createElement("span");
  label.textContent = name;
  outer.className = `bar ${kind}`;
  inner.style.width = `${100 * rate.value}%`;
  value.className = "value";
  value.textContent = `${Math.round(100 * rate.value)} %`;
  outer.append(inner);
  return [label, outer, value];
}

function showBars(found) {
  const parts = [];
  if (found.foreseen && found.foreseen_by_base) {
    parts.push(...bar("Your metric", found.foreseen, "own"), ...bar("Before", found.foreseen_by_base, "base"));
    const of = document.createElement("span");
    of.className = "of";
    of.textContent = `of ${found.foreseen.of} answers, foreseen before you gave them`;
    parts.push(of);
  }
  $("bars").replaceChildren(...parts);
  $("forecast").textContent = found.text;
}

function showNearest(nearest) {
  if (!nearest) return;
  if ($("probe-image").getAttribute("src") !== address(nearest.probe)) {
    $("probe-image").src = address(nearest.probe);
    lastOrder = "";
  }
  const order = nearest.pictures.join();
  if (order === lastOrder) return;
  const list = $("strip");
  const before = new Map([...list.children].map((item) => [item.dataset.number, item.getBoundingClientRect().left]));
  const items = new Map([...list.children].map((item) => [item.dataset.number, item]));
  list.replaceChildren(...nearest.pictures.map((number) => {
    const old = items.get(String(number));
    if (old) return old;
    const item = document.createElement("li"), image = document.createElement("img");
    item.dataset.number = number;
    image.src = address(number);
    image.alt = "";
    image.draggable = false;
    item.append(image);
    return item;
  }));
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  for (const item of still || !lastOrder ? [] : list.children) { // from where it was to where it is
    const from = before.get(item.dataset.number);
    const moved = from === undefined ? 60 : from - item.getBoundingClientRect().left;
    if (moved) item.animate([{ transform: `translateX(${moved}px)`, opacity: from === undefined ? 0 : 1 }, {}],
      { duration: 450, easing: "ease-out" });
  }
  lastOrder = order;
}

function nextProbe() {
  if (!state || !state.current) return;
  probe = practice || state.current.ref === probe ? state.current.left : state.current.ref;
  learn().catch(() => {});
}

function fold(hide) {
  $("learning").toggleAttribute("hidden", hide);
  if (hide) $("learning").dataset.folded = "1"; else delete $("learning").dataset.folded;
  $("fold").textContent = hide ? "Show what the metric has learned" : "Hide what the metric has learned";
  localStorage.setItem("fastdps-judge-folded", hide ? "1" : "");
}

// ---- people ----

async function enter(name, token) {
  const found = await insist("/api/enter", { person: name, token });
  $("results").toggleAttribute("inert", found.role !== "operator");
  if (!found.state) {
    person = null;
    $("judge").hidden = $("done").hidden = true;
    $("enter").hidden = false;
    $("fault").textContent = found.error || "";
    $("name").focus();
    return;
  }
  person = found.state.person;
  sessionStorage.setItem("fastdps-judge-person", person);
  state = found.state;
  const pending = pendingAnswer();
  if (pending) await send("/api/answer", pending);
  beginPractice();
  show(state);
  follow();
}

async function begin() {
  const query = new URLSearchParams(location.search);
  const token = query.get("token");
  if (token) history.replaceState(null, "", "/"); // it works once, and is of no use in the history
  fold(Boolean(localStorage.getItem("fastdps-judge-folded")));
  try {
    await enter(sessionStorage.getItem("fastdps-judge-person"), token);
  } catch (error) {
    sessionStorage.removeItem("fastdps-judge-person");
    banner(error.message);
  }
}

$("enter").addEventListener("submit", async (event) => {
  event.preventDefault();
  try { await enter($("name").value, null); } catch (error) { $("fault").textContent = error.message; }
});
$("who").addEventListener("click", () => {
  sessionStorage.removeItem("fastdps-judge-person");
  person = null;
  practice = null;
  $("judge").hidden = $("done").hidden = $("learning").hidden = $("fold").hidden = true;
  $("enter").hidden = false;
  $("fault").textContent = "";
  $("name").value = "";
  $("name").focus();
});
$("left").addEventListener("click", () => choose("left"));
$("right").addEventListener("click", () => choose("right"));
$("neither").addEventListener("click", () => choose("neither"));
$("undo").addEventListener("click", undo);
$("undo-done").addEventListener("click", undo);
$("skip").addEventListener("click", () => endPractice("From now on your answers count."));
$("probe").addEventListener("click", nextProbe);
$("fold").addEventListener("click", () => { fold(!$("learning").dataset.folded); follow(); });

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || !$("enter").hidden) return;
  if (KEYS[event.key]) { event.preventDefault(); choose(KEYS[event.key]); }
  else if (event.key === "z" || event.key === "Z") undo();
  else if (event.key === "n") nextProbe();
  else if (event.key === "Escape" && practice) endPractice("From now on your answers count.");
});
document.addEventListener("visibilitychange", async () => { // another tab may have gone on
  if (document.hidden || !person || busy || practice) return;
  try {
    const found = await ask(`/api/state?person=${encodeURIComponent(person)}`);
    if (!busy && found.current?.id !== state.current?.id) show(found);
  } catch { /* the next answer tells */ }
});

begin();
