/* Any bin of the dataset, asked for from the server that sent this page. */
async function ask(path, parameters) {
  let answer;
  try {
    answer = await fetch(`${path}?${new URLSearchParams(parameters)}`);
  } catch {
    throw new Error("The server does not answer; was it stopped?");
  }
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}
function fault(error) {
  at("fault").hidden = !error;
  at("fault").textContent = error ? visible(error.message) : "";
}
/* Run what asks the server for one part of the page; of two such that run at once only the later one is drawn. */
const asked = {};
async function latest(part, action) {
  const mine = asked[part] = (asked[part] || 0) + 1;
  const current = () => mine === asked[part];
  at(part).setAttribute("aria-busy", "true");
  try {
    await action(current);
    if (current()) fault(null);
  } catch (error) {
    if (current()) fault(error);
  }
  if (current()) at(part).removeAttribute("aria-busy");
}

/* The address says what is shown (#bin=3&row=12), so that back, forward and links work. */
const place = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
let jumping = false;  // whether the reader asked for a place, and is led there
function go(bin, row) {
  jumping = true;
  const hash = "#" + new URLSearchParams(row ? { bin, row } : { bin });
  if (location.hash === hash) showPlace();
  else location.hash = hash;
}
function showPlace() {
  const { bin, row } = place();
  if (bin === undefined && location.hash && location.hash !== "#browser") return;  // a link to a section of the page
  latest("rows", (current) => showBin(Number(bin) || 0, Number(row) || 0, current));
}

async function showBin(number, first, current) {
  const part = await ask("bin", { bin: number, first });
  if (!current()) return;
  at("bin-number").value = part.bin;
  at("bin-before").disabled = part.bin === 0;
  at("bin-after").disabled = part.bin === part.bins - 1;
  at("row-count").textContent = `Bin ${whole(part.bin)} (of 0 to ${whole(part.bins - 1)}): ${plural(part.count, "row")}, ${plural(part.tokens, "token")}`;
  at("rows").replaceChildren();
  if (part.first) at("rows").append(button(`Show the ${plural(part.first, "row")} before`, () => go(part.bin), { class: "more" }));
  append(part);
  if (jumping) at("row-count").scrollIntoView();
  jumping = false;
}
function append(part) {
  const nodes = part.rows.map((row) => drawRow(row, whole_row));
  at("rows").append(...nodes);
  if (part.next === null) return;
  const more = button(`Show more of ${plural(part.count - part.next, "row")} left`, () => latest("rows", async (current) => {
    const following = await ask("bin", { bin: part.bin, first: part.next });
    if (!current()) return;
    more.remove();
    append(following);
    const next = at("rows").querySelector(`[data-row="${following.rows[0].bin}:${following.rows[0].start}"] .chat`);
    next.focus({ preventScroll: true });
  }), { class: "more" });
  at("rows").append(more);
}
function whole_row(row) {
  latest("rows", async () => {
    const full = await ask("row", { bin: row.bin, row: row.position });
    at("rows").querySelector(`[data-row="${row.bin}:${row.start}"]`).replaceWith(drawRow(full));
  });
}

/* Find rows */
const FIELDS = { text: "find-text", kind: "find-kind", source: "find-source", status: "find-status", least: "find-least", most: "find-most" };
let found = [];
let wanted = {};
function find(after) {
  latest("found", async (current) => {
    const answer = await ask("find", after === undefined ? wanted : { ...wanted, after });
    if (!current()) return;
    found = after === undefined ? answer.rows : found.concat(answer.rows);
    const names = shortNames([...new Set(found.map((row) => row.source))]);
    const open = (row) => button(`${names.get(row.source)}:${row.line}`, () => goTo(`${row.source}:${row.line}`), { class: "link", title: `${row.source}:${row.line}` });
    const rejected = (row) => make("span", { title: row.source }, `${names.get(row.source)}:${row.line}`);
    table(at("found"), ["row", "holds", "tokens", "bin", wanted.text ? "text" : "status"], found.map((row) =>
      [row.bin === null ? rejected(row) : open(row), row.held.join(", ") || (row.length === null ? "" : "text alone"), row.length === null ? "" : whole(row.length), row.bin === null ? "" : whole(row.bin),
        wanted.text ? row.snippet : row.status + (row.code ? `: ${row.code}` : "")]), [2, 3]);
    at("found").hidden = !found.length;
    at("find-count").textContent = wanted.text
      ? `${plural(found.length, "row")} with the text in ${whole(answer.searched)} of ${plural(answer.bins, "bin")}`
      : `${whole(answer.total)} of ${plural(answer.of, "row")}${answer.next === null ? "" : `, the first ${whole(found.length)} below`}`;
    at("find-more").hidden = answer.next === null;
    at("find-more").textContent = wanted.text ? "Search on" : "Find more";
    at("find-more").onclick = () => find(answer.next);
  });
}
function goTo(name) {
  latest("browser", async (current) => {
    const row = await ask("place", { name });
    if (!current()) return;
    if (row.bin === null) throw new Error(`${row.source}:${row.line} is in no bin: ${row.status}${row.code ? ` (${row.code})` : ""}`);
    go(row.bin, row.position);
  });
}

/* Rejects, page by page */
let waiting = 0;
function showAllRejects() {
  clearTimeout(waiting);
  waiting = setTimeout(() => rejectsFrom(0), at("reject-list").children.length ? 250 : 0);
}
function rejectsFrom(offset) {
  latest("reject-list", async (current) => {
    const part = await ask("rejects", { code: at("reject-code").value, text: at("reject-search").value, offset });
    if (!current()) return;
    const nodes = part.rejects.map(drawReject);
    if (offset) at("reject-list").append(...nodes);
    else at("reject-list").replaceChildren(...nodes);
    const shown = at("reject-list").children.length;
    at("reject-count").textContent = part.next === null ? plural(shown, "reject") : `the first ${whole(shown)}`;
    at("reject-more").hidden = part.next === null;
    at("reject-more").onclick = () => rejectsFrom(part.next);
  });
}

function startBrowser() {
  options(at("find-kind"), [["", "anything"], ...data.kinds.map((kind) => [kind, kind])]);
  const names = shortNames(data.source_names);
  options(at("find-source"), [["", "all"], ...data.source_names.map((source) => [source, names.get(source)])]);
  options(at("find-status"), [["", "all"], ...data.statuses.map((status) => [status, status])]);
  at("bin-number").max = data.totals.bins - 1;
  const submit = (id, action) => at(id).addEventListener("submit", (event) => { event.preventDefault(); action(); });
  submit("bin-form", () => go(Number(at("bin-number").value)));
  submit("name-form", () => goTo(at("row-name").value.trim()));
  submit("find-form", () => { wanted = Object.fromEntries(Object.entries(FIELDS).map(([name, id]) => [name, at(id).value.trim()])); find(); });
  at("bin-before").addEventListener("click", () => go(Number(at("bin-number").value) - 1));
  at("bin-after").addEventListener("click", () => go(Number(at("bin-number").value) + 1));
  window.addEventListener("hashchange", showPlace);
  if (data.totals.bins) showPlace();
  else { at("rows").textContent = "The dataset has no bins."; fault(null); }
}

showReport(showAllRejects);
startBrowser();
document.documentElement.dataset.ready = "1";
