"use strict";

// What the page can do with a script: its tables are sorted and filtered. Without one they stand
// there as they were written, all rows shown.

function upgrade(section) {
  const table = section.querySelector("table");
  const form = section.querySelector("form.filters");
  if (!table || !form) return;
  // A video is a body of two rows: its values, and its evidence.
  const videos = Array.from(table.tBodies);
  const cells = videos.map((video) => video.rows[0].cells);
  // Names, labels and errors stand in <bdi>; the rest is numbers and our own words.
  const texts = videos.map((video) =>
    Array.from(video.querySelectorAll("bdi"), (text) => text.textContent).join("\n").toLowerCase());
  const status = form.querySelector("output");

  function filter() {
    const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const outcome = form.elements.outcome.value;
    const least = form.elements.score.value === "" ? null : Number(form.elements.score.value);
    let shown = 0;
    videos.forEach((video, i) => {
      const score = cells[i][1].dataset.value;
      video.hidden = !(
        words.every((word) => texts[i].includes(word)) &&
        (!outcome || video.dataset.outcome === outcome) &&
        (least === null || (score !== undefined && Number(score) >= least))
      );
      shown += video.hidden ? 0 : 1;
    });
    status.textContent =
      `${shown.toLocaleString("en")} of ${videos.length.toLocaleString("en")} shown`;
  }

  function sort(header, direction) {
    const column = header.cellIndex;
    const sign = direction === "ascending" ? 1 : -1;
    const isNumber = header.dataset.kind === "number";
    const keyed = videos.map((video, i) => [cells[i][column].dataset.value, video]);
    keyed.sort(([a], [b]) => {
      // Videos without a value stand last in either direction.
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      return sign * (isNumber ? a - b : a.localeCompare(b, "en", { numeric: true }));
    });
    table.append(...keyed.map(([, video]) => video));
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction);
  }

  for (const header of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    button.addEventListener("click", () => {
      const before = header.getAttribute("aria-sort");
      const opposite = before === "ascending" ? "descending" : "ascending";
      sort(header, before ? opposite : header.dataset.first || "ascending");
    });
    header.replaceChildren(button);
  }
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();
}

document.querySelectorAll("section.videos").forEach(upgrade);
