// Says the numbers of the round under the pointer. Without it the page shows all the same.
for (const chart of document.querySelectorAll("svg.lines")) {
  const { first, last, left, right, lines } = JSON.parse(chart.dataset.chart);
  const cursor = chart.querySelector(".cursor");
  const tip = chart.parentElement.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.hidden = true;

  const show = (line, at) => {
    const [low, high] = line.ends.map((end) => end[at]);
    const row = document.createElement("div");
    row.appendChild(document.createElement("i")).style.background = line.colour;
    row.append(`${line.name}: ${line.values[at]}` + (low < high ? ` (${low} to ${high})` : ""));
    return row;
  };
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
    const round = Math.round(first + ((x - left) / (right - left)) * (last - first));
    const shown = lines
      .map((line) => [line, line.rounds.indexOf(round)])
      .filter(([line, at]) => at >= 0 && line.values[at] !== null)
      .filter(([line]) => getComputedStyle(chart.querySelector(`.line[data-method="${line.method}"]`)).display !== "none")
      .sort(([a, i], [b, j]) => b.values[j] - a.values[i]);
    tip.hidden = shown.length === 0;
    cursor.style.visibility = tip.hidden ? "hidden" : "visible";
    if (tip.hidden) return;
    const place = left + ((round - first) / (last - first)) * (right - left);
    cursor.setAttribute("x1", place);
    cursor.setAttribute("x2", place);
    tip.replaceChildren(`round ${round}`, ...shown.map(([line, at]) => show(line, at)));
    const beside = (place / chart.viewBox.baseVal.width) * box.width;
    tip.style.top = "30px";
    tip.style.left = beside < box.width / 2 ? `${beside + 12}px` : "";
    tip.style.right = beside < box.width / 2 ? "" : `${box.width - beside + 12}px`;
  });
  chart.addEventListener("pointerleave", () => {
    tip.hidden = true;
    cursor.style.visibility = "hidden";
  });
}
document.documentElement.dataset.ready = "yes";
