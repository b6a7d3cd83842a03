"use strict";
// Tables of class filterable get a box over every column, and headers that sort.
// A box takes a text to find, or < > <= >= = and a number.
const narrow = window.matchMedia("(max-width: 40rem)").matches;
document.querySelectorAll("table.filterable").forEach((table) => {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const lines = [...body.rows];
  if (lines.length < 2) return;
  const count = document.createElement("p");
  count.className = "count";
  count.setAttribute("role", "status");
  table.parentElement.before(count);

  const filters = table.tHead.insertRow();
  filters.setAttribute("role", "row");
  filters.className = "filters";
  const boxes = heads.map((head) => {
    const place = document.createElement("th");
    place.setAttribute("role", "columnheader");
    const box = document.createElement("input");
    box.type = "search";
    box.setAttribute("aria-label", "filter by " + head.textContent);
    box.placeholder = narrow ? head.textContent : "filter";
    box.title = "a text to find, or < > <= >= = and a number";
    box.addEventListener("input", apply);
    place.append(box);
    filters.append(place);
    return box;
  });

  function fits(cell, wanted) {
    const asked = /^(<=|>=|<|>|=)\s*(-?[\d.]+(?:e-?\d+)?)(%?)$/.exec(wanted);
    if (asked && cell.dataset.value !== undefined) {
      const have = Number(cell.dataset.value);
      const number = Number(asked[2]) / (asked[3] ? 100 : 1);
      switch (asked[1]) {
        case "<": return have < number;
        case ">": return have > number;
        case "<=": return have <= number;
        case ">=": return have >= number;
        default: return have === number;
      }
    }
    // What is typed has plain spaces.
    const text = cell.textContent.replaceAll("\u00a0", " ");
    return text.toLowerCase().includes(wanted);
  }

  function apply() {
    const wanted = boxes.map((box) => box.value.trim().toLowerCase());
    let shown = 0;
    lines.forEach((line) => {
      const fit = wanted.every((text, n) => !text || fits(line.cells[n], text));
      line.hidden = !fit;
      shown += fit;
    });
    const filtered = wanted.some((text) => text);
    count.hidden = !filtered;
    count.textContent = filtered ? shown + " of " + lines.length + " lines" : "";
  }

  function order(cell) {
    return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  }

  heads.forEach((head, n) => {
    const button = document.createElement("button");
    button.type = "button";
    head.dataset.name = head.textContent;
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sign = down ? -1 : 1;
      const numeric = lines.some((line) => order(line.cells[n]) !== null);
      const sorted = [...lines].sort((a, b) => {
        if (!numeric) {
          return sign * a.cells[n].textContent.trim().localeCompare(
            b.cells[n].textContent.trim(), undefined, { numeric: true });
        }
        const x = order(a.cells[n]), y = order(b.cells[n]);
        // What has no number comes last, whichever way.
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (x - y);
      });
      body.append(...sorted);
    });
  });
  apply();
});
