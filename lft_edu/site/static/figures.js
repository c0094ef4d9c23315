// The figures of a page. Each is a box around its JSON, drawn when it comes near the screen.
(() => {
  // A title does not wrap by itself; one with markup is left alone.
  function wrapped(title, characters) {
    const text = title?.text;
    if (!text || text.includes('<')) return title;
    const lines = [''];
    for (const word of text.split(' ')) {
      if (lines.at(-1).length + word.length > characters) lines.push('');
      lines.push(`${lines.pop()} ${word}`.trim());
    }
    return {...title, text: lines.join('<br>')};
  }

  // On a phone the legend would take half of the width: there it stands under the figure, an entry per line.
  function narrowed(layout, entries) {
    const margin = {l: 80, b: 80, ...layout.margin}, legend = entries > 1 ? Math.min(30 * entries + 10, 300) : 0;
    const axes = Object.entries(layout).filter(([name]) => name.startsWith('xaxis'));
    return {
      ...layout, width: undefined, height: (layout.height || 450) + legend,
      font: {...layout.font, size: 11}, title: {...wrapped(layout.title, 48), font: {...layout.title?.font, size: 13}},
      margin: {...margin, l: Math.min(margin.l, 50), r: 15, b: margin.b + legend},
      legend: {
        ...layout.legend, orientation: 'v', x: 0, xanchor: 'left', yref: 'container', y: 0, yanchor: 'bottom',
        maxheight: legend,
      },
      ...Object.fromEntries(axes.map(([name, axis]) => [name, {...axis, title: wrapped(axis.title, 32)}])),
      annotations: layout.annotations?.map(note => ({...note, font: {...note.font, size: 11}})),
      updatemenus: layout.updatemenus?.map(menu => ({...menu, x: -0.13, font: {...menu.font, size: 10}})),
    };
  }

  // Labels beside marks would lie on each other: names stand in the legend (meta.narrow.legend: trace → name). Other
  // changes (meta.narrow.layout) are plotly's, such as fewer columns of a table, which is then dragged.
  function unlabeled(figure, names) {
    const bare = menu => ({...menu, buttons: menu.buttons.map(({args: [data, layout, ...rest], ...button}) => (
      {...button, args: [data, {...layout, annotations: []}, ...rest]}))});
    return {
      ...figure, data: figure.data.map((trace, i) => names[i] ? {...trace, name: names[i], showlegend: true} : trace),
      layout: {...figure.layout, annotations: [], legend: {...figure.layout.legend, xref: 'paper'}, updatemenus: figure.layout.updatemenus?.map(bare)},
    };
  }

  // Axes of equal scale shrink with the width: take away the height that they leave empty.
  function shortened(box) {
    const {height, _size, _subplots} = box._fullLayout;
    const domains = _subplots.yaxis.map(id => box._fullLayout[id.replace('y', 'yaxis')].domain);
    const empty = 1 - Math.max(...domains.map(d => d[1])) + Math.min(...domains.map(d => d[0]));
    return domains.length && empty > 0.1 ? Plotly.relayout(box, {height: height - empty * _size.h}) : null;
  }

  function draw(box) {
    const source = box.querySelector('script[type="application/json"]');
    if (!source) return;  // drawn already
    const stored = JSON.parse(source.textContent), narrow = box.clientWidth < 560;
    const less = narrow && stored.layout.meta?.narrow;
    source.remove();
    const figure = less?.legend ? unlabeled(stored, less.legend) : stored;
    const entries = figure.data.filter(trace => trace.name && trace.showlegend !== false).length;
    const layout = narrow ? narrowed(figure.layout, entries) : figure.layout;
    if (narrow) box.style.minHeight = '';
    Plotly.newPlot(box, figure.data, layout, {...figure.config, responsive: true})
      .then(() => less?.layout && Plotly.relayout(box, less.layout))
      .then(() => narrow && shortened(box))
      .then(() => Plotly.addFrames(box, figure.frames || []))
      .then(() => { box.dataset.drawn = 'true'; });
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
