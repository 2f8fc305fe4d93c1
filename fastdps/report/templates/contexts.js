// The table of contexts and its chart: search, filter by rank, and a link between each row and its point. Without this
// script both show all contexts.
{
  const table = document.querySelector("table.contexts");
  const chart = document.querySelector("svg.contexts");
  if (table && chart) {
    const rows = new Map([...table.tBodies[0].rows].map((row) => [row.dataset.context, row]));
    const dots = new Map([...chart.querySelectorAll("[data-context]")].map((dot) => [dot.dataset.context, dot]));
    const { contexts } = JSON.parse(document.getElementById("data").textContent);
    const names = new Map([...rows.keys()].map((key) => [key, contexts[key].ranking]));
    const number = (key, column) => parseFloat(rows.get(key).cells[column].textContent.replace("\u2212", "-"));
    const shown = () => [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.dataset.context);
    const box = table.parentElement;
    const readout = document.getElementById("readout");
    const hint = readout.textContent;
    const ring = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    let selected = null;

    // ---- a context that is pointed at, and one that is selected ----

    function point(key) {
      const current = key ?? selected;
      for (const row of rows.values()) row.classList.toggle("current", row.dataset.context === current);
      ring.style.display = current === null ? "none" : "";
      if (current === null) { readout.textContent = hint; return; }
      const dot = dots.get(current);
      for (const name of ["cx", "cy"]) ring.setAttribute(name, dot.getAttribute(name));
      readout.textContent = dot.querySelector("title").textContent;
    }

    function select(key) {
      if (selected !== null) for (const one of [rows, dots]) one.get(selected).removeAttribute("aria-selected");
      selected = key;
      for (const one of [rows, dots]) one.get(key).setAttribute("aria-selected", "true");
      for (const place of document.querySelectorAll(".chosen")) place.textContent = names.get(key).join(",");
      setStop(key);
      point(key);
    }

    function reveal(key) { // scrolls the box of the table only, so that the chart stays where it is
      const row = rows.get(key);
      box.scrollTop = row.offsetTop - (box.clientHeight - row.offsetHeight) / 2;
    }

    // ---- keyboard: one stop for the chart and one for the table, arrow keys within ----

    const stops = [null, null];
    function setStop(key) {
      [dots, rows].forEach((one, place) => {
        if (stops[place] !== null) one.get(stops[place]).tabIndex = -1;
        one.get(key).tabIndex = 0;
        stops[place] = key;
      });
    }

    function move(keys, key, step) {
      const place = keys.indexOf(key);
      return keys[step === -Infinity ? 0 : step === Infinity ? keys.length - 1
        : Math.min(keys.length - 1, Math.max(0, place + step))];
    }

    const STEPS = { ArrowDown: -1, ArrowUp: 1, ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10,
      Home: -Infinity, End: Infinity };

    function onKey(event, elements, others, ordered) {
      const key = event.target.dataset?.context;
      if (key === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
      if (event.key === "Enter" || event.key === " ") {
        select(key);
        reveal(key);
        others.get(key).focus();
      } else if (event.key in STEPS) {
        const next = move(ordered(event.key), key, STEPS[event.key]);
        setStop(next);
        elements.get(next).focus();
      } else return;
      event.preventDefault();
    }

    // In the chart left and right follow the accuracy before, all other keys that after; in the table keys follow rows.
    const byColumn = (column) => shown().sort((a, b) => number(a, column) - number(b, column));
    chart.addEventListener("keydown", (event) =>
      onKey(event, dots, rows, (key) => byColumn(key === "ArrowLeft" || key === "ArrowRight" ? 1 : 2)));
    table.addEventListener("keydown", (event) =>
      onKey(event, rows, dots, (key) => key === "Home" || key === "End" ? shown() : shown().reverse()));
    for (const part of [chart, table]) {
      part.addEventListener("focusin", (event) => {
        if (event.target.dataset.context !== undefined) point(event.target.dataset.context);
      });
      part.addEventListener("focusout", () => point(null));
    }

    // ---- pointer: the nearest point of the chart, so that a finger need not hit it ----

    const REACH = 18; // in units of the chart, which is 360 wide
    function nearest(event) {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
      let found = null, least = REACH ** 2;
      for (const [key, dot] of dots) {
        if (rows.get(key).hidden) continue;
        const distance = (dot.cx.baseVal.value - at.x) ** 2 + (dot.cy.baseVal.value - at.y) ** 2;
        if (distance < least) [found, least] = [key, distance];
      }
      return found;
    }
    chart.addEventListener("pointermove", (event) => point(nearest(event)));
    chart.addEventListener("pointerleave", () => point(null));
    chart.addEventListener("click", (event) => {
      const key = nearest(event);
      if (key !== null) { select(key); reveal(key); }
    });
    const rowOf = (event) => event.target.closest("tbody tr")?.dataset.context ?? null;
    table.addEventListener("pointermove", (event) => point(rowOf(event)));
    table.addEventListener("pointerleave", () => point(null));
    table.addEventListener("click", (event) => { if (rowOf(event) !== null) select(rowOf(event)); });

    // ---- search and filter ----

    const filters = document.getElementById("filters"); // there are some if the table is long

    // Words follow each other in the order of the ranking, with any names between them.
    function hasInOrder(ranking, words) {
      let place = -1;
      return words.every((word) => {
        place = ranking.findIndex((name, at) => at > place && name.toLowerCase().startsWith(word));
        return place >= 0;
      });
    }

    function filter() {
      const words = filters.querySelector("input").value.toLowerCase().split(/[\s<>,]+/).filter(Boolean);
      const wanted = [...filters.querySelectorAll("select")].map((rank) => rank.value);
      const found = [];
      for (const [key, row] of rows) {
        const ranking = names.get(key);
        row.hidden = !(hasInOrder(ranking, words) && wanted.every((name, at) => !name || name === ranking[at]));
        dots.get(key).classList.toggle("out", row.hidden);
        if (!row.hidden) found.push(key);
      }
      const mean = (column) => (found.reduce((sum, key) => sum + number(key, column), 0) / found.length).toFixed(3);
      filters.querySelector("[role=status]").textContent = `${found.length} of ${rows.size} contexts` +
        (found.length ? `; mean ${mean(1)} before, ${mean(2)} after` : "");
      if (found.length && !found.includes(stops[1])) setStop(shown()[0]);
    }

    if (filters) {
      for (const kind of ["input", "change"]) filters.addEventListener(kind, filter);
      filters.addEventListener("submit", (event) => event.preventDefault());
      filters.addEventListener("reset", () => setTimeout(filter)); // once the fields are empty
      filters.hidden = false;
    }

    // ---- what a screen reader needs of the chart and the table once they take keys ----

    chart.setAttribute("role", "group");
    dots.values().next().value.parentElement.setAttribute("role", "listbox");
    dots.values().next().value.parentElement.setAttribute("aria-label", "Contexts; Enter shows the row");
    for (const dot of dots.values()) {
      dot.setAttribute("role", "option");
      dot.setAttribute("aria-label", dot.querySelector("title").textContent);
      dot.setAttribute("tabindex", "-1");
    }
    table.setAttribute("role", "grid");
    box.removeAttribute("tabindex"); // its rows take the focus
    for (const row of rows.values()) row.tabIndex = -1;
    ring.setAttribute("class", "ring");
    ring.setAttribute("r", "6");
    chart.append(ring);
    setStop(shown()[0]);
    if (filters) filter(); // a reloaded page keeps what its fields held
    point(null);
  }
}
