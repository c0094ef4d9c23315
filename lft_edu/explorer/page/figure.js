// Runs plotly's own widget (the trait _bundle), which takes seconds to load on a slow machine: anywidget gives up after
// two, so this module is ready at once and hands over later. All figures of a page share one copy of plotly.

const UPDATES = ["addTraces", "deleteTraces", "moveTraces", "restyle", "relayout", "update", "animate"];
const NAMES = [...UPDATES, "removeLayoutProps", "removeTraceProps"].map((name) => `_py2js_${name}`);

async function load(source) {
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  try {
    return await import(url);
  } finally {
    URL.revokeObjectURL(url);
  }
}

export default () => {
  let widget;
  return {
    initialize({ model }) {
      const missed = []; // updates that come before plotly is there
      const listeners = NAMES.map((name) => [
        `change:${name}`,
        () => model.get(name) !== null && missed.push([name, model.get(name)]),
      ]);
      for (const [event, listener] of listeners) model.on(event, listener);
      globalThis.lftPlotly ??= load(model.get("_bundle")).catch((error) => {
        delete globalThis.lftPlotly; // the next figure tries again
        throw error;
      });
      widget = globalThis.lftPlotly.then((module) => {
        for (const [event, listener] of listeners) model.off(event, listener);
        const made = module.default();
        made.initialize({ model });
        for (const [name, value] of missed) {
          model.set(name, value);
          model.set(name, null);
        }
        return made;
      });
    },
    async render({ model, el }) {
      el.classList.add("lft-figure");
      return (await widget).render({ model, el });
    },
  };
};
