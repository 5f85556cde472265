"use strict";
// A row's lines (measured, published, difference) are one tbody, so that they stay together.
for (const button of document.querySelectorAll("th > button")) {
  button.addEventListener("click", () => {
    const header = button.parentElement;
    const table = header.closest("table");
    const direction = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of table.tHead.querySelectorAll("[aria-sort]")) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const isGrouped = table.classList.contains("results");
    const [place, rows] = isGrouped ? [table, table.tBodies] : [table.tBodies[0], table.tBodies[0].rows];
    const key = (row) => value((isGrouped ? row.rows[0] : row).cells[header.cellIndex]);
    place.append(...[...rows].sort((a, b) => compare(key(a), key(b), sign)));
  });
}

function value(cell) {
  if (cell.classList.contains("none")) return "";
  return cell.dataset.value ?? cell.querySelector("data")?.value ?? cell.textContent.trim();
}

function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === ""); // not measured: always last
  return sign * (a - b || a.localeCompare(b, "en", { numeric: true }));
}

for (const figure of document.querySelectorAll(".plot")) {
  const points = [...figure.querySelectorAll("title")].map((title) => title.parentElement);
  figure.querySelector("svg").addEventListener("click", ({ clientX, clientY }) => {
    const distance = (point) => {
      const { x, y, width, height } = point.getBoundingClientRect();
      return Math.hypot(x + width / 2 - clientX, y + height / 2 - clientY);
    };
    const nearest = points.reduce((a, b) => (distance(b) < distance(a) ? b : a)); // a finger covers several
    figure.querySelector("output").textContent = nearest.querySelector("title").textContent;
  });
}
