/* Two datasets side by side */
const [A, B] = data.names;
const FORMS = {
  count: whole,
  share: (n) => (100 * n).toFixed(2) + " %",
  bytes,
  number: (n) => n.toLocaleString("en", { maximumFractionDigits: 3 }),
  text: String,
};
const say = (value, form) => (value === null || value === undefined ? "–" : FORMS[form](value));

/* How B differs from A: in the unit of the value, and in percent of A. */
function difference(a, b, form) {
  if (a === b) return "";
  if (a === null || b === null) return a === null ? "only in B" : "only in A";
  if (form === "text") return "differs";
  const share = relative(a, b);
  const size = form === "share" ? (100 * Math.abs(b - a)).toFixed(2) + " points" : FORMS[form](Math.abs(b - a));
  return (b > a ? "+" : "−") + size + (share && form !== "share" ? ` (${share})` : "");
}
const relative = (a, b) => (a ? `${b > a ? "+" : "−"}${(100 * Math.abs(b - a) / Math.abs(a)).toFixed(1)} %` : "");
/* The same for a card: short. */
const change = (a, b, form) => (a === b ? "equal" : (form !== "share" && relative(a, b)) || difference(a, b, form));
function compared(node, head, lines) {
  table(node, head, lines);
  node.querySelectorAll("tbody td").forEach((cell) => cell.classList.toggle("differs", /difference/.test(cell.dataset.label) && cell.textContent !== ""));
}
const lined = (lines) => lines.map((line) => [line.name, say(line.a, line.form), say(line.b, line.form), difference(line.a, line.b, line.form)]);
const HEAD = ["", `A: ${A}`, `B: ${B}`, "difference"];

function showCounts() {
  document.title = `${visible(A)} and ${visible(B)}: omniprep report`;
  at("title").textContent = visible(`${A} and ${B}`);
  at("subtitle").textContent = visible(`A is ${data.uris[0]}, B is ${data.uris[1]}; differences are of B against A`);
  const [a, b] = data.totals;
  const differing = data.options.filter((line) => line.differs).length;
  cards(at("totals"), [
    [change(a.tokens, b.tokens, "count"), "tokens", `${short(a.tokens)} and ${short(b.tokens)}`],
    [change(a.rows.packed, b.rows.packed, "count"), "rows packed", `${whole(a.rows.packed)} and ${whole(b.rows.packed)}`],
    [change(a.rows.rejected, b.rows.rejected, "count"), "rows rejected", `${whole(a.rows.rejected)} and ${whole(b.rows.rejected)}`],
    [change(a.fill, b.fill, "share"), "fill", `${say(a.fill, "share")} and ${say(b.fill, "share")}`],
    [change(a.bytes, b.bytes, "bytes"), "size", `${bytes(a.bytes)} and ${bytes(b.bytes)}`],
    [whole(differing), "options and versions differ", `of ${whole(data.options.length)}`],
  ]);
  compared(at("table-counts"), HEAD, lined(data.counts));
  compared(at("table-packing"), HEAD, lined(data.packing));
  if (data.rejects.length) compared(at("table-rejects"), HEAD, lined(data.rejects));
  else at("table-rejects").replaceWith(make("p", {}, "Neither dataset has rejected rows."));
}

function showOptions() {
  const update = () => {
    const lines = at("all-options").checked ? data.options : data.options.filter((line) => line.differs);
    at("options-count").textContent = `${whole(lines.length)} of ${whole(data.options.length)}`;
    compared(at("table-options"), ["option", ...HEAD.slice(1, 3)], lined(lines).map((cells) => cells.slice(0, 3)));
    at("table-options").querySelectorAll("tbody tr").forEach((row, n) => row.classList.toggle("changed", lines[n].differs));
    at("table-options").hidden = !lines.length;
  };
  at("all-options").addEventListener("change", update);
  update();
}

function showLengths() {
  const sums = ["a", "b"].map((side) => data.lengths.reduce((sum, step) => sum + step[side], 0));
  const most = Math.max(...data.lengths.flatMap((step) => [step.a / (sums[0] || 1), step.b / (sums[1] || 1)]), 0);
  const bar = (count, sum, side) => {
    const share = sum ? count / sum : 0;
    const node = make("i", { class: `bar-${side}` });
    node.style.width = `${most ? 78 * share / most : 0}%`;
    return make("div", { class: "measure", title: plural(count, "row") }, node, percent(count, sum));
  };
  at("length-bars").classList.add("bars");
  at("length-bars").replaceChildren(...data.lengths.flatMap((step) => [
    make("div", { class: "name" }, step.from === step.to ? whole(step.from) : `${whole(step.from)}–${whole(step.to)}`),
    make("div", { class: "pair" }, bar(step.a, sums[0], "a"), bar(step.b, sums[1], "b"))]));
  compared(at("table-lengths"), ["tokens of a row", ...HEAD.slice(1)], lined(data.quantiles));
}

function showSources() {
  const { both, a, b, shown } = data.source_counts;
  at("sources-count").textContent = `${plural(both, "source")} in both, ${whole(a)} only in A, ${whole(b)} only in B` + (shown < both + a + b ? `; the ${whole(shown)} largest` : "");
  const names = shortNames(data.sources.map((s) => s.source));
  const columns = ["rows", "rejected", "tokens"];
  compared(at("table-sources"), ["source", ...columns.flatMap((name) => [`${name}, A`, `${name}, B`]), "difference of tokens"], data.sources.map((s) =>
    [named(names, s.source), ...columns.flatMap((name) => s[name].map((value) => say(value, "count"))), difference(s.tokens[0], s.tokens[1], "count")]));
}

showCounts();
showOptions();
showLengths();
showSources();
document.documentElement.dataset.ready = "1";
