// The live front: draws with the plotly.js that came with the kernel's package, and tells which point was clicked.
// What is drawn is decided in Python (workbench/ui/live_front.py).

let library = null;

function plotly(bytes) {
  if (!library) {
    const text = new TextDecoder().decode(bytes);
    const script = `const module = undefined, exports = undefined, define = undefined;\n${text}\nexport default self.Plotly;`;
    const address = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
    library = import(address).then((loaded) => loaded.default);
  }
  return library;
}

// A browser takes twice as long for the first figure as for the next ones: this small one, never seen, is the first.
async function warm(Plotly, place) {
  const bars = { type: "data", array: [1, 1] };
  const points = { x: [1, 2], y: [1, 2], text: ["a", "b"], mode: "markers+text", error_x: bars, error_y: bars };
  await Plotly.newPlot(place, [points, { x: [1, 2], y: [2, 1], mode: "lines" }], { width: 400, height: 300 });
  Plotly.purge(place);
}

function render({ model, el }) {
  const place = document.createElement("div");
  place.className = "wb-front";
  place.setAttribute("role", "group");
  el.appendChild(place);
  let drawn = false;
  let before = "";

  async function draw() {
    const bytes = model.get("library");
    const figure = model.get("figure");
    place.setAttribute("aria-label", model.get("words"));
    place.style.display = figure.data ? "" : "none";
    if (!figure.data || !bytes || !bytes.byteLength) return;
    const Plotly = await plotly(bytes);
    if (!place.isConnected) return;
    const buttons = [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]];
    const config = { displaylogo: false, modeBarButtons: buttons };
    const narrow = place.clientWidth > 0 && place.clientWidth < 520;
    // Names would cover each other in a narrow panel: there a legend holds them.
    const data = narrow ? figure.data.map((trace) => ({ ...trace, mode: trace.mode.replace("+text", "") })) : figure.data;
    const layout = { ...figure.layout, width: place.clientWidth || undefined, showlegend: narrow || figure.layout.showlegend,
      legend: narrow ? { orientation: "h", y: -0.3 } : figure.layout.legend, margin: { ...figure.layout.margin, l: narrow ? 48 : 64, r: narrow ? 8 : 24 } };
    // A long title would be cut off at both ends.
    if (narrow) layout.xaxis = { ...layout.xaxis, title: { ...layout.xaxis.title, text: layout.xaxis.title.text.replace(": ", ":<br>") } };
    // A change of what is drawn moves smoothly; one of how many, or of the room that it has, is drawn at once.
    const shape = `${data.length} ${layout.showlegend} ${place.clientWidth}`;
    if (shape !== before) delete layout.transition;
    before = shape;
    await Plotly.react(place, data, layout, config);
    if (!drawn) {
      drawn = true;
      place.on("plotly_click", (event) => {
        const point = event.points.find((one) => one.customdata);
        if (point) { model.set("selected", String(point.customdata)); model.save_changes(); }
      });
      place.on("plotly_hover", () => { place.querySelectorAll(".draglayer .drag").forEach((one) => (one.style.cursor = "pointer")); });
      place.on("plotly_unhover", () => { place.querySelectorAll(".draglayer .drag").forEach((one) => (one.style.cursor = "")); });
    }
  }

  // A hidden tab has no width: the plot is made to fit when it is first seen.
  const seen = new ResizeObserver(() => { if (place.clientWidth) draw(); });
  seen.observe(el);
  const again = () => draw();
  const idle = window.requestIdleCallback ?? setTimeout;
  const prepare = () => {
    const bytes = model.get("library");
    if (!bytes?.byteLength) return;
    idle(async () => {
      const Plotly = await plotly(bytes);
      await new Promise((next) => idle(next));  // a figure may have come while the library was read
      if (!model.get("figure").data) await warm(Plotly, document.createElement("div"));
      draw();
    });
  };
  model.on("change:figure", again);
  model.on("change:library", prepare);
  // The app is on the screen by then; who opens a study next does not wait for the library.
  if (!model.get("library")?.byteLength) idle(() => model.send("library"));
  prepare();
  draw();
  return () => {
    seen.disconnect();
    model.off("change:figure", again);
    model.off("change:library", prepare);
    library?.then((Plotly) => Plotly.purge(place));
  };
}

export default { render };
