/* Head and totals */
function showTotals() {
  const t = data.totals;
  document.title = `${visible(data.name)}: omniprep ${data.served ? "serve" : "report"}`;
  at("title").textContent = visible(data.name);
  at("subtitle").textContent = visible(`${data.family}, tokenizer and settings of ${data.model}`);
  const items = Object.entries(t.items).filter(([, n]) => n).map(([name, n]) => `${whole(n)} ${name}`).join(", ");
  const shown = [
    [short(t.tokens), "tokens", whole(t.tokens)],
    [percent(t.trained, t.tokens), "of them trained", whole(t.trained)],
    [whole(t.rows.packed), "rows packed", `of ${whole(t.rows.read)} read`],
    [whole(t.rows.rejected), "rows rejected", percent(t.rows.rejected, t.rows.read, 2)],
    [whole(t.bins), "bins", `of ${whole(t.bin_length)} tokens`],
    [(100 * t.fill).toFixed(2) + " %", "fill", ""],
    [bytes(t.bytes), t.shards === 1 ? "in 1 shard" : `in ${whole(t.shards)} shards`, t.tokens ? `${(t.bytes / t.tokens).toFixed(0)} B a token` : ""],
    [items ? whole(Object.values(t.items).reduce((a, b) => a + b, 0)) : "0", "media items", items],
  ];
  const apart = { removed: ["rows removed", "by omniprep remove"], filtered: ["rows left out", "by --where, not read"], other_part: ["rows of the other part", "--split-by, not read"] };
  for (const [name, [what, note]] of Object.entries(apart)) if (t.rows[name]) shown.push([whole(t.rows[name]), what, note]);
  const verdicts = Object.entries(t.preference).filter(([name, n]) => n && name !== "ordinary");
  if (verdicts.length) shown.push([whole(verdicts.reduce((sum, [, n]) => sum + n, 0)), "preference rows", verdicts.map(([name, n]) => `${whole(n)} ${name}`).join(", ")]);
  if (t.rows_without_labels) shown.push([whole(t.rows_without_labels), "rows teach nothing", "no trained token"]);
  const noted = { surplus_tags: ["rows with surplus tags", "more media tags than media"], ignored_options: ["rows with limits of their own", "ignored, as in the reference"] };
  for (const [name, [what, note]] of Object.entries(noted)) if (t.notes[name]) shown.push([whole(t.notes[name]), what, note]);
  if (t.notes.unread_columns) {
    const columns = Object.entries(t.unread_columns).map(([name, c]) => `${name} (${whole(c.rows)}${c.option ? `; ${c.option.startsWith("--") ? "" : "--columns "}${c.option}` : ""})`);
    shown.push([whole(t.notes.unread_columns), "rows with columns that nobody reads", columns.join(", ")]);
  }
  cards(at("totals"), shown);
}

/* Facts beside the plots; the plots themselves are drawn already. */
function showFacts() {
  const lengths = data.lengths;
  const facts = Object.entries(lengths.quantiles).map(([name, n]) => `${name} ${whole(n)}`);
  at("length-facts").textContent = facts.length ? `${facts.join(", ")}, mean ${whole(lengths.mean)}` : "no rows";
  const names = shortNames(data.sources.map((s) => s.source));
  const removed = data.sources.some((s) => s.removed);
  table(at("table-sources"), ["source", "rows", "rejected", ...(removed ? ["removed"] : []), "tokens", "trained"], data.sources.map((s) =>
    [named(names, s.source), whole(s.rows), whole(s.rejected), ...(removed ? [whole(s.removed)] : []), whole(s.tokens), percent(s.trained, s.tokens)]), [1, 2, 3, 4, 5]);
  table(at("table-balance"), ["ranks", "steps", "balanced order", "random order"], data.bins.balance.map((b) =>
    [whole(b.ranks), whole(b.steps), b.balanced.toFixed(3), b.random.toFixed(3)]), [0, 1, 2, 3]);
  at("table-balance").hidden = !data.bins.balance.length;
  const media = data.media;
  if (media) at("media-facts").textContent = media.bins < media.of ? `from ${whole(media.bins)} of ${whole(media.of)} bins, evenly spread` : `from all ${whole(media.of)} bins`;
}

/* What was done to the dataset since it was built */
function showChanges() {
  at("changes").hidden = !data.generations.length;
  const signed = (g, n) => (g.command === "remove" && n ? "−" : "") + whole(n);
  table(at("table-changes"), ["command", "rows", "rejected", "tokens", "bins", "fill", "inputs"], data.generations.map((g) =>
    [g.command, signed(g, g.rows.packed), whole(g.rows.rejected), signed(g, g.tokens), whole(g.bins), g.fill ? (100 * g.fill).toFixed(2) + " %" : "", g.inputs]), [1, 2, 3, 4, 5]);
}

/* Rejects: examples of each code in a report; all of them, page by page, from a server (served.js). */
function showRejects(fill) {
  const { codes } = data.rejects;
  if (!codes.length) {
    at("table-codes").replaceWith(make("p", {}, "No row was rejected."));
    at("reject-controls").hidden = true;
    return;
  }
  table(at("table-codes"), ["code", "rows", "meaning"], codes.map((c) => [make("code", {}, c.code), whole(c.count), c.doc]), [1]);
  options(at("reject-code"), [["", "all"], ...codes.map((c) => [c.code, `${c.code} (${whole(c.count)})`])]);
  at("reject-code").addEventListener("change", fill);
  at("reject-search").addEventListener("input", fill);
  fill();
}
function showExamples() {
  const { examples } = data.rejects, code = at("reject-code").value, text = at("reject-search").value.toLowerCase();
  const fitting = examples.filter((e) => (!code || e.code === code) && (!text || `${e.source}:${e.line} ${e.message} ${e.row}`.toLowerCase().includes(text)));
  at("reject-count").textContent = `${whole(fitting.length)} of ${plural(examples.length, "example")}`;
  at("reject-list").replaceChildren(...fitting.map(drawReject));
}
const drawReject = (e) => make("details", { class: "reject" },
  make("summary", {}, make("span", { class: "tag" }, e.code), make("span", { class: "dim" }, make("bdi", {}, e.source), `:${e.line} `), e.message), make("pre", {}, e.row));

/* Config */
function showConfig() {
  const say = (name, value) => (value === null ? "default" : Array.isArray(value) ? value.join(" ") || "none" : name.endsWith("_size") ? bytes(value) : String(value));
  const changed = new Set(data.changed);
  const given = Object.entries(data.config).sort(([a], [b]) => changed.has(b) - changed.has(a));
  table(at("table-config"), ["option", "value"], given.map(([name, value]) => ["--" + name.replaceAll("_", "-"), say(name, value)]));
  at("table-config").querySelectorAll("tbody tr").forEach((row, n) => row.classList.toggle("changed", changed.has(given[n][0])));
  table(at("table-versions"), ["what shaped the bytes", "version"], [...Object.entries(data.stored).map(([name, codec]) => [`${name} stored as`, codec]), ...Object.entries(data.versions), ["config hash", data.config_sha256]]);
  const names = shortNames(data.inputs.map((i) => i.source));
  table(at("table-inputs"), ["input", "size"], data.inputs.map((i) => [named(names, i.source), i.bytes === undefined || i.bytes === null ? "" : bytes(i.bytes)]), [1]);
}

function showReport(fillRejects) {
  showTotals();
  showFacts();
  showChanges();
  showRejects(fillRejects);
  showConfig();
}
