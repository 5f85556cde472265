"use strict";
// A row's lines (measured, published, difference) are one tbody, so that they stay together.
for (const button of document.querySelectorAll(".results th > button")) {
  button.addEventListener("click", () => {
    const header = button.parentElement;
    const table = header.closest("table");
    const direction = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of table.tHead.querySelectorAll("[aria-sort]")) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const cell = (group) => group.rows[0].cells[header.cellIndex];
    const compare = header.classList.contains("number") ? byNumber : byText;
    table.append(...[...table.tBodies].sort((a, b) => compare(cell(a), cell(b), sign)));
  });
}

function byText(a, b, sign) {
  return sign * a.textContent.localeCompare(b.textContent, "en", { numeric: true });
}

function byNumber(a, b, sign) {
  const missing = (a.dataset.value === undefined) - (b.dataset.value === undefined);
  return missing || sign * (Number(a.dataset.value) - Number(b.dataset.value)) || 0; // not measured: always last
}
