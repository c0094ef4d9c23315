// The figures of a page. Each is a box around its JSON, drawn when it comes near the screen.
(() => {
  function draw(box) {
    const source = box.querySelector('script[type="application/json"]');
    if (!source) return;  // drawn already
    const figure = JSON.parse(source.textContent);
    source.remove();
    Plotly.newPlot(box, figure.data, figure.layout, {...figure.config, responsive: true})
      .then(() => Plotly.addFrames(box, figure.frames || []))
      .then(() => { box.dataset.drawn = 'true'; });
    box.tabIndex = 0;  // arrow keys do what the mouse does on the slider
    box.addEventListener('keydown', event => {
      const slider = box._fullLayout.sliders?.[0], step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      const frame = slider && step && figure.frames[slider.active + step];
      if (!frame) return;
      event.preventDefault();
      Plotly.animate(box, [frame.name], {mode: 'immediate', frame: {duration: 0}, transition: {duration: 0}});
    });
  }

  addEventListener('DOMContentLoaded', () => {
    const boxes = [...document.querySelectorAll('.lft-figure')];
    const near = new IntersectionObserver(seen => {
      for (const {isIntersecting, target} of seen) {
        if (!isIntersecting) continue;
        near.unobserve(target);
        draw(target);
      }
    }, {rootMargin: '1000px'});
    boxes.forEach(box => near.observe(box));
    addEventListener('beforeprint', () => boxes.forEach(draw));
  });
})();
