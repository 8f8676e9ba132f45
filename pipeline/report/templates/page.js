// Draws the plots in the colours of light or dark, and sorts tables by a click on a head.
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

function coloured(layout) {
  const style = getComputedStyle(document.documentElement);
  const [fg, line, card] = ["--fg", "--line", "--card"].map(name => style.getPropertyValue(name).trim());
  const axis = own => ({ gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, ...own });
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: fg, size: 12 }, margin: { l: 56, r: 12, t: 8, b: 44 },
    showlegend: false, legend: { orientation: "h", y: 1.12 }, hoverlabel: { bgcolor: card, font: { color: fg } },
    ...layout, xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis),
  };
}

function draw() {
  return Promise.all(figures.map(f => Plotly.react(f.id, f.data, coloured(f.layout), { responsive: true, displayModeBar: false })));
}

// A name of digits alone, such as 444e84, is no number: the head says which column holds numbers.
function value(row, head) {
  const text = row.cells[head.cellIndex].dataset.sort;
  const number = "number" in head.dataset && text !== "" ? Number(text) : NaN;
  return Number.isNaN(number) ? text : number;
}

function compare(a, b) {
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;  // what has no number comes last
  return typeof a === "number" ? a - b : a.localeCompare(b);
}

function sort(head) {
  const body = head.closest("table").tBodies[0], rows = [...body.rows];
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  rows.sort((a, b) => compare(value(a, head), value(b, head)) * (down ? -1 : 1));
  body.append(...rows);
}

document.addEventListener("click", event => {
  const head = event.target.closest("th");
  if (head) sort(head);
});
document.addEventListener("play", event => {  // one at a time
  for (const other of document.querySelectorAll("audio")) if (other !== event.target) other.pause();
}, true);
dark.addEventListener("change", draw);
draw().then(() => document.body.classList.add("drawn"));
