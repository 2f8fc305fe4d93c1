// Buttons that save what the page shows: its data as JSON, or a list in it as CSV. They need no server.
{
  const source = document.getElementById("data");
  const data = source ? JSON.parse(source.textContent) : null;

  // Objects become columns with dots in their names, and a list of names one text.
  function flat(value, name = "", into = {}) {
    if (Array.isArray(value)) into[name] = value.join(",");
    else if (value !== null && typeof value === "object") {
      for (const [key, part] of Object.entries(value)) flat(part, name ? `${name}.${key}` : key, into);
    } else into[name] = value ?? "";
    return into;
  }

  function csv(entries) {
    const rows = entries.map((row) => flat(row));
    const columns = [...new Set(rows.flatMap(Object.keys))];
    const cell = (value) => /[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value);
    return [columns, ...rows.map((row) => columns.map((name) => row[name] ?? ""))]
      .map((row) => row.map(cell).join(",") + "\r\n").join("");
  }

  function save(text, type, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  // A list of the data by the names that lead to it; an object becomes a list of its values with their names.
  function list(names) {
    const found = names.split(".").reduce((part, name) => part[name], data);
    return Array.isArray(found) ? found : Object.entries(found).map(([name, row]) => ({ name, ...row }));
  }

  for (const button of document.querySelectorAll("button[data-file]")) {
    button.hidden = data === null;
    const names = button.dataset.list; // without it the button saves everything
    button.addEventListener("click", () => names ? save(csv(list(names)), "text/csv", button.dataset.file)
      : save(JSON.stringify(data, null, 1), "application/json", button.dataset.file));
  }
}
