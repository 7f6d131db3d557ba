"use strict";
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.order === undefined ? cell.textContent.trim() : Number(cell.dataset.order);
  };
  const sortable = (column) => column === 0 || [...body.rows].some((row) => row.cells[column].dataset.order !== undefined);
  headings.forEach((heading, column) => {
    if (!sortable(column)) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", direction);
      const sign = direction === "ascending" ? 1 : -1;
      const missing = (x) => typeof x === "string" && column !== 0;
      const rows = [...body.rows].sort((one, other) => {
        const a = value(one, column), b = value(other, column);
        if (missing(a) || missing(b)) return missing(a) - missing(b); // a dash stays at the end
        return sign * (a < b ? -1 : a > b ? 1 : 0);
      });
      body.append(...rows);
    });
  });
}
