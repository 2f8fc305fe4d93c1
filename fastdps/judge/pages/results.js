// The page of the one who runs it: figures of all people, refreshed while it is open.
"use strict";

const $ = (id) => document.getElementById(id);
const REFRESH_MS = 4000;

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  const response = await fetch(path, options);
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(content.error || `The server answered ${response.status}.`);
  return content;
}

function cell(text, small) {
  const made = document.createElement("td");
  made.append(text);
  if (small) {
    const note = document.createElement("small");
    note.textContent = small;
    made.append(note);
  }
  return made;
}

const percent = (share) => `${Math.round(100 * share)} %`;
const rate = (found) => found ? cell(percent(found.value),
  `${Math.round(100 * found.low)}–${Math.round(100 * found.high)} % of ${found.of}`) : cell("–");

function row(...cells) {
  const made = document.createElement("tr");
  made.append(...cells);
  return made;
}

function tile(value, text) {
  const made = document.createElement("div"), number = document.createElement("b"), label = document.createElement("span");
  made.className = "tile";
  number.textContent = value;
  label.textContent = text;
  made.append(number, label);
  return made;
}

function show(found) {
  $("where").textContent = `${found.directory}, ${found.pictures.toLocaleString("en")} pictures`;
  const times = found.people.map((one) => one.median_s).filter((s) => s !== null);
  const best = found.people.map((one) => one.foreseen).filter(Boolean);
  const total = best.reduce((sum, one) => sum + one.of, 0);
  const mean = (of) => total ? percent(of.reduce((sum, one) => sum + one.value * one.of, 0) / total) : "–";
  const base = found.people.map((one) => one.foreseen_by_base).filter(Boolean);
  $("tiles").replaceChildren(
    tile(found.answers.toLocaleString("en"), "answers"),
    tile(found.people.length, found.people.length === 1 ? "person" : "people"),
    tile(times.length ? `${(times.reduce((a, b) => a + b, 0) / times.length).toFixed(1)} s` : "–", "per answer"),
    tile(mean(best), "foreseen by the metric"),
    tile(mean(base), "foreseen by the base"),
  );
  $("people").replaceChildren(...found.people.map((one) => row(
    cell(one.person), cell(one.answers, one.repeats ? `${one.repeats} repeats` : ""), cell(one.undecided),
    cell(one.median_s === null ? "–" : `${one.median_s.toFixed(1)} s`), rate(one.consistency), rate(one.left),
    rate(one.foreseen), rate(one.foreseen_by_base), rate(one.foreseen_random),
  )));
  $("agreement-section").hidden = found.agreement.length === 0;
  $("agreement").replaceChildren(...found.agreement.map((one) => row(
    cell(one.people.join(" and ")), cell(one.triplets), rate(one.agreement),
  )));
  $("learned").replaceChildren(...found.people.map((one) => {
    const made = row(cell(one.person), cell(one.learned.message || one.learned.text));
    made.lastChild.style.whiteSpace = "normal";
    made.lastChild.style.textAlign = "left";
    return made;
  }));
  $("use").textContent = found.run
    ? `import fastdps\n\nmetric = fastdps.load(${JSON.stringify(found.run)})`
      + (found.people.length > 1 ? `  # everyone's; context=${JSON.stringify(found.people[0].person)} for one person's` : "")
    : "The metric is saved after ten answers.";
}

async function refresh() {
  try {
    show(await ask("/api/results"));
    $("banner").hidden = true;
  } catch (error) {
    $("banner").textContent = error instanceof TypeError ? "No connection to the server." : error.message;
    $("banner").hidden = false;
  }
}

$("invite").addEventListener("click", async () => {
  try {
    $("link").textContent = `${(await ask("/api/invite", {})).link} (works once)`;
  } catch (error) {
    $("link").textContent = error.message;
  }
});
refresh();
setInterval(() => { if (!document.hidden) refresh(); }, REFRESH_MS);
