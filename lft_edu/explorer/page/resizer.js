// Invisible: makes figures follow the width of the column they are in. Plotly draws a widget before it is in the page,
// 700 pixels wide, and again only when the window changes.

export default {
  render({ el }) {
    el.style.display = "none";
    let width = 0;
    const again = () => window.dispatchEvent(new Event("resize"));
    const observer = new ResizeObserver(([{ contentRect }]) => {
      if (Math.abs(contentRect.width - width) < 1) return;
      width = contentRect.width;
      again();
    });
    const figures = new MutationObserver(again); // plotly may come late
    const wait = setInterval(() => {
      const box = el.closest(".lft-columns");
      if (!box || !box.clientWidth) return;
      clearInterval(wait);
      observer.observe(box);
      for (const figure of box.querySelectorAll(".lft-figure"))
        figures.observe(figure, { attributes: true, attributeFilter: ["class"] });
      for (const delay of [0, 400, 1500]) setTimeout(again, delay);
    }, 50);
    return () => {
      clearInterval(wait);
      observer.disconnect();
      figures.disconnect();
    };
  },
};
