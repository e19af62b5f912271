"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const KINDS = ["text", "image", "audio", "video", "mixed"];

/* Elements: text goes in as text, never as markup. */
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  for (const child of children) node.append(child);
  return node;
}
const whole = (n) => Math.round(n).toLocaleString("en");
function short(n) {
  for (const [size, mark] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) if (n >= size) return (n / size).toPrecision(3).replace(/\.?0+$/, "") + mark;
  return String(Math.round(n * 100) / 100);
}
function bytes(n) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) { if (n < 1024) return (unit === "B" ? n : n.toFixed(1)) + " " + unit; n /= 1024; }
  return n.toFixed(1) + " TiB";
}
const percent = (part, all, digits = 1) => (all ? (100 * part / all).toFixed(digits) : "0") + " %";

function table(node, head, rows, numeric = []) {
  const cell = (tag, value, column) => {
    const made = make(tag, numeric.includes(column) ? { class: "num" } : {});
    made.append(value);
    return made;
  };
  node.replaceChildren(
    make("thead", {}, make("tr", {}, ...head.map((text, column) => cell("th", text, column)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((value, column) => cell("td", value, column))))),
  );
}

/* Head and totals */
function showTotals() {
  const t = data.totals;
  document.title = data.name + ": omniprep report";
  at("title").textContent = data.name;
  at("subtitle").textContent = `${data.family}, tokenizer and settings of ${data.model}`;
  const items = Object.entries(t.items).filter(([, n]) => n).map(([name, n]) => `${whole(n)} ${name}`).join(", ");
  const cards = [
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
  for (const [name, [what, note]] of Object.entries(apart)) if (t.rows[name]) cards.push([whole(t.rows[name]), what, note]);
  if (t.rows_without_labels) cards.push([whole(t.rows_without_labels), "rows teach nothing", "no trained token"]);
  const noted = { surplus_tags: ["rows with surplus tags", "more media tags than media"], ignored_options: ["rows with limits of their own", "ignored, as in the reference"] };
  for (const [name, [what, note]] of Object.entries(noted)) if (t.notes[name]) cards.push([whole(t.notes[name]), what, note]);
  if (t.notes.unread_columns) {
    const columns = Object.entries(t.unread_columns).map(([name, c]) => `${name} (${whole(c.rows)}${c.option ? `; --columns ${c.option}` : ""})`);
    cards.push([whole(t.notes.unread_columns), "rows with columns that nobody reads", columns.join(", ")]);
  }
  at("totals").replaceChildren(...cards.map(([value, name, note]) =>
    make("div", { class: "card" }, make("b", {}, value), name, make("div", { class: "dim" }, note))));
}

/* Of each path the shortest end that no other path has; the whole path shows on hover. */
function shortNames(paths) {
  const end = (path, parts) => path.split("/").slice(-parts).join("/");
  return new Map(paths.map((path) => {
    let parts = 1;
    while (parts < 6 && paths.some((other) => other !== path && end(other, parts) === end(path, parts))) parts += 1;
    return [path, end(path, parts)];
  }));
}
const named = (names, path) => make("span", { title: path }, names.get(path));

/* Facts beside the plots; the plots themselves are drawn already. */
function showFacts() {
  const lengths = data.lengths;
  const facts = Object.entries(lengths.quantiles).map(([name, n]) => `${name} ${whole(n)}`);
  at("length-facts").textContent = facts.length ? `${facts.join(", ")}, mean ${whole(lengths.mean)}` : "no rows";
  const names = shortNames(data.sources.map((s) => s.source));
  table(at("table-sources"), ["source", "rows", "rejected", "tokens", "trained"], data.sources.map((s) =>
    [named(names, s.source), whole(s.rows), whole(s.rejected), whole(s.tokens), percent(s.trained, s.tokens)]), [1, 2, 3, 4]);
  table(at("table-balance"), ["ranks", "steps", "balanced order", "random order"], data.bins.balance.map((b) =>
    [whole(b.ranks), whole(b.steps), b.balanced.toFixed(3), b.random.toFixed(3)]), [0, 1, 2, 3]);
  const media = data.media;
  if (media) at("media-facts").textContent = media.bins < media.of ? `from ${whole(media.bins)} of ${whole(media.of)} bins, evenly spread` : `from all ${whole(media.of)} bins`;
}

/* Rejects */
function showRejects() {
  const { codes, examples } = data.rejects;
  if (!codes.length) {
    at("table-codes").replaceWith(make("p", {}, "No row was rejected."));
    at("reject-controls").hidden = true;
    return;
  }
  table(at("table-codes"), ["code", "rows", "meaning"], codes.map((c) => [make("code", {}, c.code), whole(c.count), c.doc]), [1]);
  at("reject-code").append(make("option", { value: "" }, "all"), ...codes.map((c) => make("option", { value: c.code }, `${c.code} (${whole(c.count)})`)));
  const update = () => {
    const code = at("reject-code").value, text = at("reject-search").value.toLowerCase();
    const fitting = examples.filter((e) => (!code || e.code === code) && (!text || `${e.source}:${e.line} ${e.message} ${e.row}`.toLowerCase().includes(text)));
    at("reject-count").textContent = `${fitting.length} of ${examples.length} examples`;
    at("reject-list").replaceChildren(...fitting.map((e) => make("details", { class: "reject" },
      make("summary", {}, make("span", { class: "tag" }, e.code), make("span", { class: "dim" }, `${e.source}:${e.line} `), e.message),
      make("pre", {}, e.row))));
  };
  at("reject-code").addEventListener("change", update);
  at("reject-search").addEventListener("input", update);
  update();
}

/* Bins */
const kindOf = (row) => { const found = new Set(row.media.map((m) => m.modality)); return found.size === 0 ? "text" : found.size > 1 ? "mixed" : [...found][0]; };
const textOf = (row) => row.parts.map((p) => (p.t ? p.t.join("") : p.m)).join("");

function showBins() {
  const select = at("bin-select");
  if (!data.browser.length) { at("rows").textContent = "The dataset has no bins."; return; }
  select.append(...data.browser.map((b, n) => make("option", { value: n }, `${b.bin} (${b.rows.length + b.more} rows, ${whole(b.tokens)} tokens)`)));
  at("row-kind").append(make("option", { value: "" }, "anything"), ...KINDS.map((kind) => make("option", { value: kind }, kind === "text" ? "text alone" : kind)));
  const rich = data.browser.findIndex((b) => b.rows.some((row) => row.media.some((m) => m.picture)));
  select.value = String(Math.max(rich, 0));
  const update = () => {
    const bin = data.browser[Number(select.value)], kind = at("row-kind").value, text = at("row-search").value.toLowerCase();
    const fitting = bin.rows.filter((row) => (!kind || kindOf(row) === kind) && (!text || (row.source + ":" + row.line + " " + textOf(row)).toLowerCase().includes(text)));
    const more = bin.more ? `; ${bin.more} more in the bin` : "";
    at("row-count").textContent = `${fitting.length} of ${bin.rows.length} rows${more}`;
    at("rows").replaceChildren(...fitting.map(drawRow));
  };
  for (const [id, event] of [["bin-select", "change"], ["row-kind", "change"], ["row-search", "input"]]) at(id).addEventListener(event, update);
  update();
}

function drawRow(row) {
  const place = make("span", {}, make("b", {}, `${row.source.split("/").pop()}:${row.line}`));
  place.title = `${row.source}:${row.line}`;
  const head = make("div", { class: "head" }, place, make("span", { class: "dim" }, `${whole(row.tokens)} tokens, ${percent(row.trained, row.tokens, 0)} trained, starts at ${whole(row.start)}`));
  const node = make("div", { class: "row" }, head);
  if (row.media.length) node.append(make("div", { class: "pictures" }, ...row.media.map(drawMedia)));
  node.append(drawChat(row));
  return node;
}
function drawMedia(media) {
  const facts = [media.modality];
  if (media.width) facts.push(`${media.width} × ${media.height}`);
  if (media.grid) facts.push(`grid ${media.grid.join(" × ")}`);
  if (media.seconds) facts.push(`${media.seconds} s`);
  const figure = make("figure");
  if (media.picture) figure.append(make("img", { src: media.picture, alt: facts.join(", "), decoding: "async" }));
  figure.append(make("figcaption", {}, facts.join(" · ")));
  return figure;
}

/* A message begins at <|im_start|>; what follows to the line's end is its role. A chat of another template is drawn in
   what the model is given (prompt) and what it learns to write (assistant). */
function drawChat(row) {
  const chat = make("div", { class: "chat" });
  const chatml = row.parts.some((part) => part.t && part.t.includes("<|im_start|>"));
  let place = 0, message = null, box = chat, side = null;
  for (const part of row.parts) {
    const trained = part.m === undefined ? Boolean(part.y) : side === true;
    if (!chatml && side !== trained) {
      side = trained;
      box = make("div", { class: trained ? "message assistant" : "message user" }, make("div", { class: "role" }, trained ? "assistant" : "prompt"));
      chat.append(box);
    }
    if (part.m !== undefined) {
      box.append(mediaRun(part, place));
      place += part.n;
      continue;
    }
    part.t.forEach((text, n) => {
      const before = place;
      if (text === "<|im_start|>") {
        box = make("div", { class: "role" });
        message = make("div", { class: "message" }, box);
        chat.append(message);
        message.dataset.waits = "1";
      } else if (message && message.dataset.waits && text.trim()) {
        delete message.dataset.waits;
        const role = text.trim();
        if (/^[a-z]+$/.test(role)) message.classList.add(role);
        box.append(token(text, part, before, before - part.first));
        box = message;
        message.dataset.fresh = "1";
        place += part.n ? part.n[n] : 1;
        return;
      } else if (message && message.dataset.fresh) {
        delete message.dataset.fresh;
        if (text === "\n") { place += part.n ? part.n[n] : 1; return; }
      }
      box.append(token(text, part, before, before - part.first));
      place += part.n ? part.n[n] : 1;
    });
  }
  if (row.cut) chat.append(make("p", { class: "dim" }, `… ${whole(row.cut)} more tokens: omniprep inspect --row ${row.source}:${row.line}`));
  return chat;
}
function token(text, part, place, step) {
  const control = /^<\|.*\|>$/.test(text) ? " control" : "";
  const [t, h, w] = part.p.map((p) => p + step);
  const weight = part.w !== undefined ? `, weight ${part.w}` : "";
  const span = make("span", { class: (part.y ? "y" : "n") + control, "data-p": `token ${place}, position ${t === h && h === w ? t : `${t}, ${h}, ${w}`}${weight}` });
  span.textContent = text;
  return span;
}
function mediaRun(part, place) {
  const [p, q] = [part.p, part.q];
  const where = ["time", "height", "width"].map((name, n) => `${name} ${p[n]}${q[n] > p[n] ? "–" + q[n] : ""}`).join(", ");
  return make("span", { class: "media-run" + (part.y ? " y" : ""), "data-p": `tokens ${place}–${place + part.n - 1}, positions: ${where}` }, `${part.m} × ${whole(part.n)}`);
}
function firstPlaces() {
  for (const bin of data.browser) for (const row of bin.rows) {
    let place = 0;
    for (const part of row.parts) {
      part.first = place;
      place += part.m !== undefined ? part.n : part.n ? part.n.reduce((a, b) => a + b, 0) : part.t.length;
    }
  }
}
function tips() {
  const tip = at("tip");
  const show = (event) => {
    const target = event.target.closest && event.target.closest("[data-p]");
    tip.hidden = !target;
    if (!target) return;
    tip.textContent = target.dataset.p;
    const x = Math.min(event.clientX + 12, window.innerWidth - tip.offsetWidth - 8);
    const y = event.clientY + 34 + tip.offsetHeight > window.innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18;
    tip.style.left = `${Math.max(4, x)}px`;
    tip.style.top = `${y}px`;
  };
  document.addEventListener("mouseover", show);
  document.addEventListener("click", show);
}

/* Config */
function showConfig() {
  const say = (name, value) => (value === null ? "default" : Array.isArray(value) ? value.join(" ") || "none" : name.endsWith("_size") ? bytes(value) : String(value));
  const changed = new Set(data.changed);
  const options = Object.entries(data.config).sort(([a], [b]) => changed.has(b) - changed.has(a));
  table(at("table-config"), ["option", "value"], options.map(([name, value]) => ["--" + name.replaceAll("_", "-"), say(name, value)]));
  at("table-config").querySelectorAll("tbody tr").forEach((row, n) => row.classList.toggle("changed", changed.has(options[n][0])));
  table(at("table-versions"), ["what shaped the bytes", "version"], [...Object.entries(data.versions), ["config hash", data.config_sha256]]);
  const names = shortNames(data.inputs.map((i) => i.source));
  table(at("table-inputs"), ["input", "size"], data.inputs.map((i) => [named(names, i.source), i.bytes === undefined ? "" : bytes(i.bytes)]), [1]);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
}
setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
at("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
firstPlaces();
showTotals();
showFacts();
showRejects();
showBins();
showConfig();
tips();
document.documentElement.dataset.ready = "1";
