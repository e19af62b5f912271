/* The bins that the report holds: filters over the rows of all of them. */
const SHOWN = 12;
const every = data.browser.flatMap((bin) => bin.rows);

function showBins() {
  if (!data.browser.length) { at("bin-controls").hidden = true; at("rows").textContent = "The dataset has no bins in this page."; return; }
  const counts = new Map();
  for (const row of every) for (const kind of row.kinds) counts.set(kind, (counts.get(kind) || 0) + 1);
  options(at("row-kind"), [["", `anything (${whole(every.length)})`], ...data.kinds.filter((kind) => counts.has(kind)).map((kind) => [kind, `${kind} (${whole(counts.get(kind))})`])]);
  const sources = [...new Set(every.map((row) => row.source))];
  const names = shortNames(sources);
  options(at("row-source"), [["", "all"], ...sources.map((source) => [source, names.get(source)])]);
  options(at("bin-select"), [["", `all ${whole(data.browser.length)} shown`], ...data.browser.map((b) => [b.bin, `${b.bin} (${plural(b.rows.length + b.more, "row")}, ${plural(b.tokens, "token")})`])]);
  const verdicts = [...new Set(every.map((row) => row.verdict).filter(Boolean))].sort();
  at("verdict-label").hidden = !verdicts.length;
  options(at("row-verdict"), [["", "all"], ...verdicts.map((verdict) => [verdict, verdict])]);
  for (const row of every) row.searched = `${row.source}:${row.line} ${textOf(row)}`.toLowerCase();
  const inputs = ["row-search", "row-kind", "row-source", "row-verdict", "row-least", "row-most", "bin-select"];
  const update = () => showRows(Object.fromEntries(inputs.map((id) => [id, at(id).value])));
  for (const id of inputs) at(id).addEventListener(at(id).tagName === "SELECT" ? "change" : "input", update);
  at("bin-controls").addEventListener("submit", (event) => event.preventDefault());
  at("bin-controls").addEventListener("reset", () => setTimeout(update));  // after the controls have their values back
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) return;
    event.preventDefault();
    at("row-search").focus();
  });
  update();
}

function showRows(wanted) {
  const text = wanted["row-search"].toLowerCase(), least = Number(wanted["row-least"]) || 0, most = Number(wanted["row-most"]) || Infinity;
  const fitting = every.filter((row) =>
    (!wanted["row-kind"] || row.kinds.includes(wanted["row-kind"])) && (!wanted["row-source"] || row.source === wanted["row-source"])
    && (!wanted["row-verdict"] || row.verdict === wanted["row-verdict"]) && (wanted["bin-select"] === "" || row.bin === Number(wanted["bin-select"]))
    && row.tokens >= least && row.tokens <= most && (!text || row.searched.includes(text)));
  const more = data.browser.reduce((sum, bin) => sum + bin.more, 0);
  at("row-count").textContent = `${whole(fitting.length)} of ${plural(every.length, "row")} in ${plural(data.browser.length, "bin")} of ${whole(data.totals.bins)}${more ? `; ${whole(more)} more rows of these bins are not in this page` : ""}`;
  at("rows").replaceChildren();
  const next = () => {
    const shown = at("rows").querySelectorAll(".row").length;
    const last = at("rows").querySelector("button.more");
    if (last) last.remove();
    const nodes = fitting.slice(shown, shown + SHOWN).map((row) => drawRow(row));
    at("rows").append(...nodes);
    const left = fitting.length - shown - nodes.length;
    if (left > 0) at("rows").append(button(`Show ${whole(Math.min(left, SHOWN))} more of ${whole(left)}`, next, { class: "more" }));
    if (last && nodes.length) nodes[0].querySelector(".chat").focus({ preventScroll: true });  // so that the keyboard goes on there
  };
  next();
}

showReport(showExamples);
showBins();
document.documentElement.dataset.ready = "1";
