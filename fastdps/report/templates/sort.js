// A click on a heading sorts a table of class "sortable"; without this script tables keep the order of the page.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const rising = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const key = (row) => row.cells[column].textContent;
      const isNumber = heading.classList.contains("number");
      const compare = isNumber
        ? (a, b) => parseFloat(key(a).replace("\u2212", "-")) - parseFloat(key(b).replace("\u2212", "-"))
        : (a, b) => key(a).localeCompare(key(b));
      const rows = [...table.tBodies[0].rows].sort(compare);
      table.tBodies[0].append(...(rising ? rows : rows.reverse()));
    });
  });
}
