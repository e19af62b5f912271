"use strict";
/* What every page of omniprep is made of: elements, numbers as people read them, tables, the theme, hints on hover. */
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);

/* Characters that would move, hide or turn around the text beside them are shown as Python writes them. The same set as
   omniprep/printable.py, but for line ends and tabs. */
const UNSAFE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]/gu;
function visible(text) {
  return String(text).replace(UNSAFE, (character) => {
    const code = character.codePointAt(0);
    if (character === "\r") return "\\r";
    return code < 0x100 ? "\\x" + code.toString(16).padStart(2, "0") : "\\u" + code.toString(16).padStart(4, "0");
  });
}

/* Elements: text goes in as text, never as markup. */
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, visible(value));
  for (const child of children) node.append(child instanceof Node ? child : visible(child));
  return node;
}
function button(text, action, attributes = {}) {
  const node = make("button", { type: "button", ...attributes }, text);
  node.addEventListener("click", action);
  return node;
}
const whole = (n) => Math.round(n).toLocaleString("en");
const plural = (n, one, many = one + "s") => `${whole(n)} ${n === 1 ? one : many}`;
function short(n) {
  for (const [size, mark] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) if (n >= size) return (n / size).toPrecision(3).replace(/\.?0+$/, "") + mark;
  return String(Math.round(n * 100) / 100);
}
function bytes(n) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) { if (Math.abs(n) < 1024) return (unit === "B" ? n : n.toFixed(1)) + " " + unit; n /= 1024; }
  return n.toFixed(1) + " TiB";
}
const percent = (part, all, digits = 1) => (all ? (100 * part / all).toFixed(digits) : "0") + " %";

/* A table; on a phone each line becomes a card: its first cell, and below it the others, each with the head of its column. */
function table(node, head, rows, numeric = []) {
  const cell = (tag, role, value, column) => {
    const made = make(tag, { role, ...(numeric.includes(column) ? { class: "num" } : {}), ...(tag === "td" ? { "data-label": head[column] } : {}) });
    made.append(value instanceof Node ? value : visible(value));
    return made;
  };
  node.setAttribute("role", "table");
  node.replaceChildren(
    make("thead", {}, make("tr", { role: "row" }, ...head.map((text, column) => cell("th", "columnheader", text, column)))),
    make("tbody", {}, ...rows.map((row) => make("tr", { role: "row" }, ...row.map((value, column) => cell("td", "cell", value, column))))),
  );
}
function options(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => make("option", { value }, text)));
}

/* Of each path the shortest end that no other path has; the whole path shows on hover. */
function shortNames(paths) {
  const end = (path, parts) => path.split("/").slice(-parts).join("/");
  const names = new Map(paths.map((path) => [path, end(path, 1)]));
  for (let parts = 2; parts <= 6; parts += 1) {
    const counts = new Map();
    for (const name of names.values()) counts.set(name, (counts.get(name) || 0) + 1);
    for (const [path, name] of names) if (counts.get(name) > 1) names.set(path, end(path, parts));
  }
  return names;
}
const named = (names, path) => make("bdi", { title: path }, names.get(path));

function cards(node, entries) {
  node.replaceChildren(...entries.map(([value, name, note]) =>
    make("div", { class: "card" }, make("b", {}, value), name, make("div", { class: "dim" }, note || ""))));
}

/* Hints of what the mouse is over, or what was tapped last. */
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

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
}
setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
at("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
tips();
