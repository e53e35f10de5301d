// Updates the page. Values from events are set as text, never as HTML.
"use strict";

const EVERY_MS = 2000;
const PATIENCE_MS = 10000;
const TYPING_MS = 200; // a pause in typing

const product = new URLSearchParams(location.search).get("product");
const ofProduct = product ? `product=${encodeURIComponent(product)}` : "";

const byId = (id) => document.getElementById(id);

function setText(element, text) {
  if (element && element.textContent !== text) element.textContent = text;
}

function setLevel(element, level) {
  if (level) element.dataset.level = level;
  else delete element.dataset.level;
}

function filled(made, cell) {
  if (/^(\/|https?:)/.test(cell.href)) {
    const link = document.createElement("a");
    link.href = cell.href;
    link.textContent = cell.text;
    made.append(link);
  } else {
    made.textContent = cell.text;
  }
  return made;
}

function cellOf(cell, tag, label) {
  const made = document.createElement(tag);
  if (tag === "th") made.scope = "row";
  made.dataset.label = label; // for a narrow screen
  setLevel(made, cell.level);
  return filled(made, cell);
}

function showTable(name, rows, notes) {
  const table = document.querySelector(`[data-table="${name}"]`);
  if (!table) return;
  const unknown = notes[table.dataset.source]?.level;
  setLevel(table, unknown);
  const empty = document.querySelector(`[data-empty="${name}"]`);
  setText(empty, unknown ? "Not known." : empty.dataset.known);
  const wanted = JSON.stringify(rows);
  if (table.shown === wanted) return;
  const body = table.tBodies[0];
  if (body.contains(document.activeElement)) return; // a link in it has the keyboard's focus: update next time
  table.shown = wanted;
  const headings = table.tHead.rows[0].cells;
  body.replaceChildren(...rows.map((row) => {
    const line = document.createElement("tr");
    line.append(...row.map((cell, at) => cellOf(cell, at ? "td" : "th", headings[at]?.textContent ?? "")));
    return line;
  }));
  empty.hidden = rows.length > 0;
}

function show(now) {
  setLevel(byId("condition"), now.level);
  setText(byId("headline"), now.headline);
  document.title = `shopflow: ${now.headline}`;
  const list = byId("sentences");
  const sentences = JSON.stringify(now.sentences);
  if (list.shown !== sentences) {
    list.shown = sentences;
    list.replaceChildren(...now.sentences.map((sentence) => {
      const item = document.createElement("li");
      setLevel(item, sentence.level);
      return filled(item, sentence);
    }));
  }
  for (const item of document.querySelectorAll("[data-service]")) {
    const cell = now.services[item.dataset.service];
    setText(item.querySelector("strong"), cell.text);
    setLevel(item, cell.level);
  }
  for (const item of document.querySelectorAll("[data-number]")) setText(item, now.numbers[item.dataset.number]);
  for (const [name, rows] of Object.entries(now.tables)) showTable(name, rows, now.notes);
  for (const note of document.querySelectorAll("[data-note]")) {
    const cell = now.notes[note.dataset.note];
    if (!cell) continue;
    setText(note, cell.text);
    setLevel(note, cell.level);
  }
  for (const item of document.querySelectorAll("[data-fact]")) {
    if (item.dataset.fact in now.facts) setText(item, now.facts[item.dataset.fact]);
  }
  byId("empty").hidden = !now.empty;
  setText(byId("time"), now.time);
  // The page was rendered before the product was known: render it again.
  if (Object.keys(now.facts).length && !document.querySelector("[data-fact]")) location.reload();
}

function lost(why) {
  const banner = byId("lost");
  if (banner.hidden) {
    banner.hidden = false;
    banner.textContent =
      `Connection lost: the worker at ${location.host} no longer answers${why}. ` +
      `The page shows the state of ${byId("time").textContent}. It updates itself when the worker is back.`;
    document.title = "shopflow: connection lost";
    document.body.dataset.lost = "";
  }
}

function found() {
  byId("lost").hidden = true;
  byId("lost").textContent = "";
  delete document.body.dataset.lost;
}

async function refresh() {
  try {
    const answer = await fetch(`/page/data.json?${ofProduct}`, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!answer.ok) {
      lost(` as it should (status ${answer.status})`);
    } else {
      const now = await answer.json();
      found();
      show(now);
    }
  } catch {
    lost("");
  }
  setTimeout(refresh, EVERY_MS);
}

// "1 234,56": Bokeh knows only "1,234.56", whatever its `language`.
function writeNumbersAsThePage(formatter) {
  const { doFormat } = formatter;
  formatter.doFormat = function format(...ticks) {
    return doFormat.apply(this, ticks).map((text) => text.replaceAll(",", "\u00a0").replace(".", ","));
  };
}

async function draw() {
  Bokeh.set_log_level("error");
  writeNumbersAsThePage(Bokeh.Models.get("NumeralTickFormatter").prototype);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", () => location.reload());
  const wide = matchMedia("(min-width: 60rem)").matches;
  byId("charts").classList.toggle("wide", wide);
  const wanted = `dark=${dark.matches ? 1 : 0}&wide=${wide ? 1 : 0}`;
  await embed(`/page/charts.json?${wanted}`, "charts");
  if (byId("product-chart")) await embed(`/page/charts.json?${wanted}&${ofProduct}`, "product-chart");
}

async function embed(address, target) {
  const answer = await fetch(address);
  if (answer.ok) await Bokeh.embed.embed_item(await answer.json(), target);
}

function drawSafely() {
  draw().catch((error) => lost(` the charts: ${error.message}`));
}

// While a name is typed, the names that have it are shown below the field, as links; arrows lead to them and back.
function suggest(input) {
  const list = byId(`${input.name}-matches`);
  let typed = 0;
  input.addEventListener("input", async () => {
    const mine = ++typed;
    await new Promise((resolve) => { setTimeout(resolve, TYPING_MS); });
    if (mine !== typed) return;
    const text = input.value.trim();
    const answer = text && await fetch(`/page/matches.json?${input.name}=${encodeURIComponent(text)}`).catch(() => null);
    const cells = answer?.ok ? await answer.json() : [];
    if (mine !== typed) return;
    list.replaceChildren(...cells.map((cell) => filled(document.createElement("li"), cell)));
  });
  input.form.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const stops = [input, ...list.querySelectorAll("a")];
    const next = stops[stops.indexOf(document.activeElement) + step];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
}

// A wide screen shows everything; on a narrow one each part opens when it is wanted.
function unfold(narrow) {
  for (const part of document.querySelectorAll(".fold")) {
    part.open = !narrow || `#${part.id}` === location.hash;
    part.querySelector("summary").tabIndex = narrow ? 0 : -1;
  }
}

const narrow = matchMedia("(max-width: 45rem)");
unfold(narrow.matches);
narrow.addEventListener("change", () => unfold(narrow.matches));
addEventListener("hashchange", () => { if (byId(location.hash.slice(1))?.matches(".fold")) byId(location.hash.slice(1)).open = true; });
document.querySelectorAll("form:has(.matches) input").forEach(suggest);
if (byId("charts")) {
  if (window.Bokeh) drawSafely();
  else byId("bokeh").addEventListener("load", drawSafely);
}
setTimeout(refresh, EVERY_MS);
