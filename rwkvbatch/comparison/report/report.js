"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const names = Object.keys(data.conversations);
  const scoreAt = data.metrics.findIndex((metric) => metric.name === "score");
  const nllAt = data.metrics.findIndex((metric) => metric.name === "nll");

  // Invisible characters and those that reorder text, shown as the rest of the page and the terminal show them.
  const HIDDEN = /[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]|\p{gc=Cs}/gu;
  function escaped(character) {
    const code = character.charCodeAt(0).toString(16);
    return code.length > 2 ? `\\u${code.padStart(4, "0")}` : `\\x${code.padStart(2, "0")}`;
  }
  const printable = (text) => String(text).replace(HIDDEN, escaped);

  // Text enters the page through these two, or printable as an attribute: nothing that a model wrote is parsed as HTML.
  const textNode = (text) => document.createTextNode(printable(text));
  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined && text !== null) element.textContent = printable(text);
    return element;
  }

  // Colours: the system's, or what the button says.
  const theme = byId("theme");
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (systemDark.matches ? "dark" : "light")) === "dark";
  const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  theme.hidden = false;
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    nameTheme();
  });
  systemDark.addEventListener("change", nameTheme);
  nameTheme();

  // Figures: one metric at a time.
  for (const controls of document.querySelectorAll("[data-figures]")) {
    const kind = controls.dataset.figures;
    byId(`${kind}-metric`).addEventListener("change", (event) => {
      for (const figure of document.querySelectorAll(`figure.${kind}`)) {
        figure.hidden = figure.dataset.name !== event.target.value;
      }
    });
  }

  // The table of differences: sort and filter.
  function compareCells(a, b) {
    const x = Number(a), y = Number(b);
    if (a !== "" && b !== "" && !Number.isNaN(x) && !Number.isNaN(y)) return x - y;
    const aMissing = a === "" || a === "nan", bMissing = b === "" || b === "nan";
    if (aMissing !== bMissing) return aMissing ? 1 : -1;
    return a.localeCompare(b);
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = head.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
        const rows = [...table.tBodies[0].rows].sort((a, b) => compareCells(value(a), value(b)));
        if (descending) rows.reverse();
        table.tBodies[0].append(...rows);
      });
    });
  }
  // On paper nobody can open the settings of the runs. The style sheet leaves other closed sections out.
  const settings = document.querySelector("#manifest details");
  let wasOpen = false;
  window.addEventListener("beforeprint", () => { wasOpen = settings.open; settings.open = true; });
  window.addEventListener("afterprint", () => { settings.open = wasOpen; });
  function filterComparisons() {
    const pair = byId("pair-filter") ? byId("pair-filter").value : "";
    const metric = byId("metric-filter") ? byId("metric-filter").value : "";
    const beyond = byId("only-significant").checked;
    for (const row of byId("comparisons").tBodies[0].rows) {
      const certain = ["better", "worse", "differs"].includes(row.dataset.verdict);
      row.hidden = (pair !== "" && row.dataset.pair !== pair)
        || (metric !== "" && row.dataset.metric !== metric) || (beyond && !certain);
    }
  }
  if (byId("comparisons")) {
    byId("only-significant").addEventListener("change", filterComparisons);
    for (const id of ["pair-filter", "metric-filter"]) {
      if (byId(id)) byId(id).addEventListener("change", filterComparisons);
    }
    filterComparisons();
  }

  // Word diff: the longest common subsequence of words.
  const MAX_CELLS = 4e6;
  function words(text) { return text.match(/[\p{L}\p{N}_]+|\s+|[^\p{L}\p{N}_\s]/gu) || []; }
  function wordDiff(before, after) {
    const a = words(before), b = words(after);
    let start = 0, aEnd = a.length, bEnd = b.length;
    while (start < aEnd && start < bEnd && a[start] === b[start]) start += 1;
    while (aEnd > start && bEnd > start && a[aEnd - 1] === b[bEnd - 1]) { aEnd -= 1; bEnd -= 1; }
    const pieces = [];
    const push = (kind, text) => {
      if (!text) return;
      const last = pieces[pieces.length - 1];
      if (last && last.kind === kind) last.text += text; else pieces.push({ kind, text });
    };
    push("same", a.slice(0, start).join(""));
    const rows = aEnd - start, columns = bEnd - start;
    if (rows * columns > MAX_CELLS) {
      push("gone", a.slice(start, aEnd).join(""));
      push("new", b.slice(start, bEnd).join(""));
    } else {
      const width = columns + 1;
      const longest = new Uint32Array((rows + 1) * width);
      for (let i = rows - 1; i >= 0; i -= 1) {
        for (let j = columns - 1; j >= 0; j -= 1) {
          longest[i * width + j] = a[start + i] === b[start + j]
            ? longest[(i + 1) * width + j + 1] + 1
            : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
        }
      }
      let i = 0, j = 0;
      while (i < rows || j < columns) {
        if (i < rows && j < columns && a[start + i] === b[start + j]) {
          push("same", a[start + i]); i += 1; j += 1;
        } else if (j >= columns || (i < rows && longest[(i + 1) * width + j] >= longest[i * width + j + 1])) {
          push("gone", a[start + i]); i += 1;
        } else {
          push("new", b[start + j]); j += 1;
        }
      }
    }
    push("same", a.slice(aEnd).join(""));
    return pieces;
  }

  // Conversations.
  const state = { pair: 0, selected: null, repeat: null, key: null, descending: false };
  const pairs = data.pairs.length ? data.pairs : [{ baseline: null, variant: 0, changes: {} }];
  const rowsOf = (name, variant) => data.conversations[name].rows[variant] || [];
  // As the page's own tables: no minus before a zero, and a true minus sign before all else.
  const number = (value, digits) => {
    if (value === null || value === undefined) return "—";
    const text = value.toFixed(digits);
    return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "\u2212");
  };
  // A share or score between 0 and 1 is never shown as 0 or 1.
  const share = (value) => {
    const text = number(value, 2);
    return value > 0 && value < 1 && ["0.00", "1.00"].includes(text) ? String(value) : text;
  };
  // Whole percent, with as many decimals as tell a share from 0 and 100.
  const percentage = (share) => {
    let digits = 0;
    while (share > 0 && share < 1 && [0, 100].includes(Number((100 * share).toFixed(digits)))) digits += 1;
    return (100 * share).toFixed(digits);
  };
  const signed = (value, digits) => {
    const text = number(value, digits);
    return value > 0 && Number(text) !== 0 ? `+${text}` : text;
  };
  function mean(name, variant, at) {
    const values = at < 0 ? [] : rowsOf(name, variant).map((row) => row.numbers[at]).filter((value) => value !== null);
    return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
  }
  const tables = pairs.map((pair) => names
    .filter((name) => rowsOf(name, pair.variant).length)
    .map((name, order) => {
      const change = pair.changes[name];
      const text = [name, Object.hasOwn(data.systems, name) ? data.systems[name] : "", ...data.conversations[name].tags, ...Object.values(data.conversations[name].asked).map((asked) => asked[0])];
      for (const variant of [pair.baseline, pair.variant]) {
        if (variant !== null) for (const row of rowsOf(name, variant)) text.push(row.reply);
      }
      return {
        name, order, text: text.join("\n").toLowerCase(),
        score: pair.baseline === null ? mean(name, pair.variant, scoreAt) : change ? change[0] : null,
        nll: pair.baseline === null ? mean(name, pair.variant, nllAt) : change ? change[1] : null,
        changed: change ? change[2] : null,
      };
    }));
  for (const [at, table] of tables.entries()) {
    const place = new Map(Object.keys(pairs[at].changes).map((name, index) => [name, index]));
    for (const item of table) item.order = place.has(item.name) ? place.get(item.name) : names.length + item.order;
  }

  function visible() {
    const wanted = byId("search").value.trim().toLowerCase();
    const which = byId("which").value;
    const shown = tables[state.pair].filter((item) =>
      (!wanted || item.text.includes(wanted))
      && (which !== "changed" || item.changed > 0)
      && (which !== "better" || item.score > 1e-9)
      && (which !== "worse" || (item.score !== null && item.score < -1e-9)));
    const key = state.key;
    shown.sort((a, b) => {
      if (!key) return a.order - b.order;
      const x = a[key], y = b[key];
      if (x === null || y === null) return (x === null) - (y === null);
      const order = key === "name" ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
      return state.descending ? -order : order;
    });
    return shown;
  }
  function drawList() {
    const shown = visible();
    const body = byId("talk-list");
    const paired = pairs[state.pair].baseline !== null;
    body.replaceChildren(...shown.map((item) => {
      const row = make("tr");
      row.dataset.name = item.name;
      row.tabIndex = -1;
      row.setAttribute("aria-selected", String(item.name === state.selected));
      const name = make("td", "name", item.name);
      name.title = printable(item.name);
      const good = item.score > 1e-9 ? " better" : item.score < -1e-9 ? " worse" : "";
      row.append(
        name,
        make("td", `num${paired ? good : ""}`, paired ? signed(item.score, 2) : share(item.score)),
        make("td", "num", paired ? signed(item.nll, 2) : number(item.nll, 2)),
        make("td", "num", item.changed === null ? "–" : `${percentage(item.changed)} %`),
      );
      row.addEventListener("click", () => select(item.name));
      return row;
    }));
    if (!shown.length) {
      const row = make("tr"), cell = make("td", "empty", "Nothing matches.");
      cell.colSpan = 4;
      row.append(cell);
      body.append(row);
    }
    if (body.rows.length) ([...body.rows].find((row) => row.dataset.name === state.selected) || body.rows[0]).tabIndex = 0;
    byId("count").textContent = `${shown.length} of ${tables[state.pair].length}`;
    return shown;
  }
  function select(name, focus) {
    if (name !== state.selected) state.repeat = null;
    state.selected = name;
    for (const row of byId("talk-list").rows) {
      const own = row.dataset.name === name;
      row.setAttribute("aria-selected", String(own));
      row.tabIndex = own ? 0 : -1;
      if (own && focus) { row.focus({ preventScroll: true }); row.scrollIntoView({ block: "nearest" }); }
    }
    drawTalk();
  }
  function step(by) {
    const rows = [...byId("talk-list").rows].filter((row) => row.dataset.name !== undefined);
    const at = rows.findIndex((row) => row.dataset.name === state.selected);
    const next = rows[Math.min(rows.length - 1, Math.max(0, at + by))];
    if (next) select(next.dataset.name, true);
  }

  function side(label, row, pieces, kinds) {
    const box = make("div", "side");
    if (label) box.append(make("p", "who", label));
    if (!row) { box.append(make("p", "reply noise", "not in this run")); return box; }
    const reply = make("p", row.error ? "reply failed" : "reply");
    if (row.error) reply.append(textNode(row.error));
    else if (pieces) {
      for (const piece of pieces) {
        if (!kinds.includes(piece.kind)) continue;
        const tag = { gone: "del", new: "ins" }[piece.kind];
        reply.append(tag ? make(tag, "", piece.text) : textNode(piece.text));
      }
    } else reply.append(textNode(row.reply));
    if (!row.error && !row.reply) reply.append(make("span", "noise", "(empty)"));
    const figures = make("dl", "figures");
    const add = (name, value, className) => {
      const item = make("div");
      item.append(make("dt", "", name), make("dd", className, value));
      figures.append(item);
    };
    data.metrics.forEach((metric, at) => {
      if (row.numbers[at] !== null && data.shown.includes(metric.name)) {
        add(metric.title, (metric.is_share ? share : number)(row.numbers[at], Math.min(metric.digits, 2)));
      }
    });
    add("ended by", row.finish_reason);
    for (const [kind, passed, detail] of row.checks) {
      const verdict = passed === null ? "no verdict" : passed ? "passed" : "failed";
      add(kind, verdict + (detail ? `: ${detail}` : ""), passed === null ? "" : passed ? "better" : "worse");
    }
    box.append(reply, figures);
    return box;
  }
  function drawTalk() {
    const place = byId("talk");
    place.replaceChildren();
    const talk = state.selected === null ? null : data.conversations[state.selected];
    if (!talk) return;
    const pair = pairs[state.pair];
    const after = rowsOf(state.selected, pair.variant);
    const before = pair.baseline === null ? null : rowsOf(state.selected, pair.baseline);
    const repeats = [...new Set([...after, ...(before || [])].map((row) => row.repeat))].sort((a, b) => a - b);
    if (state.repeat === null || !repeats.includes(state.repeat)) {
      const differs = (repeat) => before && after.some((row) => row.repeat === repeat
        && before.some((other) => other.repeat === repeat && other.turn === row.turn && other.reply !== row.reply));
      state.repeat = repeats.find(differs) ?? repeats[0];
    }
    const head = make("div", "head");
    head.append(make("h3", "", state.selected));
    if (repeats.length > 1) {
      const label = make("label", "noise", "Repeat ");
      const choice = make("select");
      choice.id = "repeat";
      for (const repeat of repeats) {
        const option = make("option", "", repeat);
        option.value = repeat;
        option.selected = repeat === state.repeat;
        choice.append(option);
      }
      choice.addEventListener("change", () => { state.repeat = Number(choice.value); drawTalk(); byId("repeat").focus(); });
      label.append(choice);
      head.append(label);
    }
    place.append(head);
    if (talk.tags.length) {
      const tags = make("div", "tags");
      talk.tags.forEach((tag) => tags.append(make("span", "tag", tag)));
      place.append(tags);
    }
    const system = Object.hasOwn(data.systems, state.selected) ? data.systems[state.selected] : null;
    if (system) {
      const box = make("p", "system");
      box.append(make("small", "", "system"), textNode(system));
      place.append(box);
    }
    for (const turn of Object.keys(talk.asked).map(Number).sort((a, b) => a - b)) {
      const of = (rows) => rows && rows.find((row) => row.turn === turn && row.repeat === state.repeat);
      const left = of(before), right = of(after);
      if (!left && !right) continue;
      const [asked, reference, probeAfter] = talk.asked[turn];
      const box = make("article", "turn");
      const question = make("p", "asked");
      const position = probeAfter === null ? `turn ${turn}` : `probe after turn ${probeAfter}`;
      question.append(make("small", "", position), textNode(asked));
      box.append(question);
      const sides = make("div", before ? "sides" : "sides single");
      const pieces = left && right && !left.error && !right.error ? wordDiff(left.reply, right.reply) : null;
      if (before) sides.append(side(data.variants[pair.baseline], left, pieces, ["same", "gone"]));
      sides.append(side(before ? data.variants[pair.variant] : "", right, pieces, ["same", "new"]));
      box.append(sides);
      if (reference) box.append(make("p", "reference", `reference: ${reference}`));
      for (const [variant, name, repeat, at] of data.blame) {
        if (name === state.selected && repeat === state.repeat && at === turn) {
          box.append(make("p", "blame", `${data.variants[variant]} went wrong here: it passes after the script's replies`));
        }
      }
      place.append(box);
    }
  }

  if (pairs.length > 1) {
    byId("pair-choice").hidden = false;
    pairs.forEach((pair, at) => {
      const option = make("option", "", `${data.variants[pair.variant]} against ${data.variants[pair.baseline]}`);
      option.value = at;
      byId("pair").append(option);
    });
  }
  byId("pair").addEventListener("change", () => {
    state.pair = Number(byId("pair").value);
    state.repeat = null;
    drawList();
    drawTalk();
  });
  byId("search").addEventListener("input", drawList);
  byId("which").addEventListener("change", drawList);
  for (const button of document.querySelectorAll(".list th button")) {
    button.addEventListener("click", () => {
      state.descending = state.key === button.dataset.key ? !state.descending : false;
      state.key = button.dataset.key;
      for (const head of document.querySelectorAll(".list th")) head.removeAttribute("aria-sort");
      button.closest("th").setAttribute("aria-sort", state.descending ? "descending" : "ascending");
      drawList();
    });
  }
  document.addEventListener("keydown", (event) => {
    const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
    if (event.key === "Escape" && event.target.id === "search") { event.target.blur(); return; }
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const inList = event.target.closest && event.target.closest("#talk-list");
    if (event.key === "/") { event.preventDefault(); byId("search").focus(); }
    else if (event.key === "j" || (inList && event.key === "ArrowDown")) { event.preventDefault(); step(1); }
    else if (event.key === "k" || (inList && event.key === "ArrowUp")) { event.preventDefault(); step(-1); }
    else if (inList && event.key === "Enter") select(event.target.closest("tr").dataset.name);
  });

  const first = drawList()[0];
  if (first) select(first.name);
})();
