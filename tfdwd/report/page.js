for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = head.closest("table").tBodies[0], rows = [...body.rows];
    const key = row => row.cells[column].textContent;
    const number = text => parseFloat(text.replaceAll(",", ""));
    const numeric = rows.every(row => key(row) === "" || !isNaN(number(key(row))));
    rows.sort((a, b) => numeric
      ? (key(a) === "" ? -Infinity : number(key(a))) - (key(b) === "" ? -Infinity : number(key(b)))
      : key(a).localeCompare(key(b)));
    body.append(...(down ? rows.reverse() : rows));
  });
}
