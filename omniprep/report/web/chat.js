/* A packed row as a chat: its text token by token, trained or not, and its media. */
const textOf = (row) => row.parts.map((p) => (p.t ? p.t.join("") : p.m)).join("");

/* `more` is called where a row is cut; without it the command line says where the rest is. */
function drawRow(row, more) {
  const place = make("span", { title: `${row.source}:${row.line}` }, make("b", {}, make("bdi", {}, row.source.split("/").pop()), `:${row.line}`));
  const facts = [plural(row.tokens, "token"), `${percent(row.trained, row.tokens, 0)} trained`, `bin ${whole(row.bin)} from token ${whole(row.start)}`];
  const head = make("div", { class: "head" }, place, make("span", { class: "dim" }, facts.join(", ")));
  for (const kind of row.kinds) if (kind !== "text alone") head.append(make("span", { class: "tag" }, kind));
  if (row.verdict) head.append(make("span", { class: "tag " + row.verdict }, row.pair === undefined ? row.verdict : `${row.verdict}, pair ${row.pair}`));
  const node = make("article", { class: "row", "data-row": `${row.bin}:${row.start}` }, head);
  if (row.media.length) node.append(make("div", { class: "pictures" }, ...row.media.map(drawMedia)));
  node.append(drawChat(row, more));
  return node;
}

function drawMedia(media) {
  const facts = [media.modality];
  if (media.width) facts.push(`${media.width} × ${media.height}`);
  if (media.grid) facts.push(`grid ${media.grid.join(" × ")}`);
  if (media.seconds) facts.push(`${media.seconds} s`);
  if (media.frames > 1) facts.push(`${whole(media.frames)} frames`);
  const figure = make("figure");
  const alt = facts.join(", ");
  if (media.picture) figure.append(make("img", { src: media.picture, alt, decoding: "async" }));
  if (media.url) figure.append(drawFrames(media, alt));
  figure.append(make("figcaption", {}, facts.join(" · ")));
  return figure;
}

/* Frames that the server makes one at a time: few at first, all on demand. */
const FRAMES = 8;
function drawFrames(media, alt) {
  const strip = make("div", { class: "frames" });
  const frame = (number, label) => {
    const image = make("img", { src: `${media.url}&frame=${number}`, alt: label, loading: "lazy", decoding: "async" });
    // Known before it is loaded, so that nothing moves; a spectrogram is as high as the server draws it.
    image.style.height = media.height ? `min(200px, ${media.height}px)` : "96px";
    if (media.height) image.style.aspectRatio = `${media.width} / ${media.height}`;
    return make("a", { href: `${media.url}&frame=${number}`, target: "_blank", title: "as stored, pixel by pixel" }, image);
  };
  const show = (numbers) => strip.replaceChildren(...numbers.map((number) => frame(number, numbers.length > 1 ? `${alt}, frame ${number}` : alt)));
  const every = [...Array(media.frames).keys()];
  const few = every.filter((frame) => Math.floor(frame * FRAMES / media.frames) !== Math.floor((frame - 1) * FRAMES / media.frames));
  show(media.frames > FRAMES ? few : every);
  if (media.frames <= FRAMES) return strip;
  const all = button(`All ${whole(media.frames)} frames`, () => { show(every); all.remove(); });
  return make("div", {}, strip, all);
}

/* A message begins at <|im_start|>; what follows to the line's end is its role. A chat of another template is drawn in
   what the model is given (prompt) and what it learns to write (assistant). */
function drawChat(row, more) {
  const chat = make("div", { class: "chat", tabindex: "0", role: "group", "aria-label": `text of ${row.source}:${row.line}` });
  const chatml = row.parts.some((part) => part.t && part.t.includes("<|im_start|>"));
  let place = 0, message = null, box = chat, side = null;
  for (const part of row.parts) {
    const first = place;
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
      const span = token(text, part, place, place - first);
      place += part.n ? part.n[n] : 1;
      if (text === "<|im_start|>") {
        box = make("div", { class: "role" });
        message = make("div", { class: "message" }, box);
        chat.append(message);
        message.dataset.waits = "1";
      } else if (message && message.dataset.waits && text.trim()) {
        delete message.dataset.waits;
        if (/^[a-z]+$/.test(text.trim())) message.classList.add(text.trim());
        box.append(span);
        box = message;
        message.dataset.fresh = "1";
        return;
      } else if (message && message.dataset.fresh) {
        delete message.dataset.fresh;
        if (text === "\n") return;
      }
      box.append(span);
    });
  }
  if (row.cut) {
    const rest = `${plural(row.cut, "more token")}`;
    chat.append(more ? button(`… ${rest}`, () => more(row)) : make("p", { class: "dim" }, `… ${rest}: omniprep inspect --row ${row.source}:${row.line}`));
  }
  return chat;
}
function token(text, part, place, step) {
  const control = /^<\|.*\|>$/.test(text) ? " control" : "";
  const [t, h, w] = part.p.map((p) => p + step);
  const weight = part.w !== undefined ? `, weight ${part.w}` : "";
  return make("span", { class: (part.y ? "y" : "n") + control, "data-p": `token ${place}, position ${t === h && h === w ? t : `${t}, ${h}, ${w}`}${weight}` }, text);
}
function mediaRun(part, place) {
  const [p, q] = [part.p, part.q];
  const where = ["time", "height", "width"].map((name, n) => `${name} ${p[n]}${q[n] > p[n] ? "–" + q[n] : ""}`).join(", ");
  return make("span", { class: "media-run" + (part.y ? " y" : ""), "data-p": `tokens ${place}–${place + part.n - 1}, positions: ${where}` }, `${part.m} × ${whole(part.n)}`);
}
