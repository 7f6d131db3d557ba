// A table to work in: sorted by its headings, searched, with columns to choose, a first column that stays, and rows to select.
// Everything that it shows came as text and stays text.

function node(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function render({ model, el }) {
  const set = (key, value) => { model.set(key, value); model.save_changes(); };
  const search = node("input", { type: "search", placeholder: "Search in all columns", "aria-label": model.get("search_label"),
    oninput: () => fill() });
  const count = node("span", { class: "wb-quiet", role: "status" });
  const picker = node("details", { class: "wb-columns" });
  const table = node("table", { "aria-label": model.get("label") });
  const area = node("div", { class: "wb-scroll wb-sticky", tabindex: "0", role: "region", "aria-label": model.get("label") }, table);
  const whole = node("div", {}, node("div", { class: "wb-table-tools" }, search, picker, count), area);
  el.append(whole);

  const visible = () => {
    const hidden = new Set(model.get("hidden"));
    return model.get("columns").map((column, place) => ({ ...column, place })).filter((one) => one.place === 0 || !hidden.has(one.heading));
  };

  function sorted(rows) {
    const { heading, descending } = model.get("sort");
    const place = model.get("columns").findIndex((one) => one.heading === heading);
    if (place < 0) return rows;
    const sign = descending ? -1 : 1;
    const isNumber = rows.some((row) => typeof row.cells[place]?.order === "number");
    const isEmpty = (cell) => isNumber ? typeof cell.order !== "number" : !cell.text || cell.text === "–";
    return [...rows].sort((one, other) => {
      const [a, b] = [one.cells[place] ?? {}, other.cells[place] ?? {}];
      if (isEmpty(a) !== isEmpty(b)) return isEmpty(a) ? 1 : -1;
      return sign * (isNumber ? (a.order ?? 0) - (b.order ?? 0) : a.text.localeCompare(b.text));
    });
  }

  function choose(key, add) {
    const chosen = model.get("selected");
    if (!model.get("multiple")) set("selected", [key]);
    else set("selected", chosen.includes(key) ? chosen.filter((one) => one !== key) : [...chosen, key]);
  }

  function turn(heading) {
    const { heading: now, descending } = model.get("sort");
    const next = now !== heading ? { heading, descending: false } : !descending ? { heading, descending: true } : { heading: "", descending: false };
    set("sort", next);
  }

  function head() {
    const { heading, descending } = model.get("sort");
    const cells = visible().map((column) => {
      const is = column.heading === heading;
      const label = column.unit ? `${column.heading} (${column.unit})` : column.heading;
      const button = node("button", { type: "button", title: column.hint || `Sort by ${label}`, onclick: () => turn(column.heading) },
        label, node("span", { "aria-hidden": "true" }, is ? (descending ? " ▼" : " ▲") : ""));
      return node("th", { scope: "col", class: column.numeric ? "wb-number" : "", "aria-sort": is ? (descending ? "descending" : "ascending") : "none" }, button);
    });
    return node("thead", {}, node("tr", {}, ...cells));
  }

  function line(row) {
    const isChosen = model.get("selected").includes(row.key);
    const cells = visible().map((column) => {
      const cell = row.cells[column.place] ?? { text: "" };
      const full = cell.title || [cell.text, cell.detail].filter(Boolean).join(" ");
      const inner = node("span", { class: "wb-cell", title: full }, cell.text);
      const detail = cell.detail ? [node("small", {}, cell.detail)] : [];
      if (column.place) return node("td", { class: `${column.numeric ? "wb-number" : ""} ${cell.mood ? "wb-mood-" + cell.mood : ""}` }, inner, ...detail);
      const pick = node("button", { type: "button", class: "wb-pick", "aria-pressed": String(isChosen), title: full,
        onclick: (event) => { event.stopPropagation(); choose(row.key); } }, cell.text);
      return node("th", { scope: "row" }, pick, ...detail);
    });
    return node("tr", { class: `${isChosen ? "wb-chosen" : ""} ${row.mark ? "wb-best" : ""}`, onclick: () => choose(row.key) }, ...cells);
  }

  function fill() {
    const focused = table.contains(document.activeElement) ? [...table.querySelectorAll("button")].indexOf(document.activeElement) : -1;
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = model.get("rows");
    const kept = rows.filter((row) => {
      const text = row.cells.map((cell) => `${cell.text} ${cell.detail || ""}`).join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    });
    const body = sorted(kept).map(line);
    table.replaceChildren(head(), node("tbody", {}, ...body));
    count.textContent = kept.length === rows.length ? `${rows.length} rows` : `${kept.length} of ${rows.length} rows`;
    whole.style.display = rows.length ? "" : "none";
    if (focused >= 0) table.querySelectorAll("button")[focused]?.focus();
  }

  function columns() {
    const hidden = new Set(model.get("hidden"));
    const boxes = model.get("columns").slice(1).map((column) => node("label", {},
      node("input", { type: "checkbox", checked: !hidden.has(column.heading), onchange: (event) => {
        const now = new Set(model.get("hidden"));
        if (event.target.checked) now.delete(column.heading); else now.add(column.heading);
        set("hidden", [...now]);
      } }), ` ${column.heading}`));
    picker.replaceChildren(node("summary", {}, "Columns"), node("div", {}, ...boxes));
  }

  // Many rows take longer than all else of a page: on a tab that is not shown they are made when they are first seen.
  const stale = new Set(["columns"]);
  const draw = () => {
    if (!el.clientWidth || !stale.size) return;
    if (stale.has("columns")) columns();
    stale.clear();
    fill();
  };
  const marks = Object.fromEntries(["columns", "hidden", "rows", "sort", "selected"].map((key) => [`change:${key}`, () => stale.add(key)]));
  for (const [event, mark] of Object.entries(marks)) model.on(event, mark);
  model.on("change", draw);
  const seen = new ResizeObserver(draw);
  seen.observe(el);
  draw();
  return () => {
    seen.disconnect();
    model.off("change", draw);
    for (const [event, mark] of Object.entries(marks)) model.off(event, mark);
  };
}

export default { render };
