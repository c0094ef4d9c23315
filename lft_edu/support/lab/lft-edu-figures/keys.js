// Animated figures by keyboard: Tab reaches them, ← and → move the slider, the space bar plays and pauses.
// One file for JupyterLab, which loads it as an extension, and for pages. It works with what plotly has drawn, because
// JupyterLab's copy of plotly cannot be reached from outside.
(() => {
  const ANIMATED = '.js-plotly-plot:has(.slider-rail-touch-rect)', INSET = 10;  // pixels that a rail leaves at its ends

  function move(figure, step) {
    const {active, steps} = figure._fullLayout.sliders[0], next = active + step;
    if (!steps[next]) return;
    const rail = figure.querySelector('.slider-rail-touch-rect'), {x, y, width, height} = rail.getBoundingClientRect();
    const clientX = x + INSET + (width - 2 * INSET) * next / (steps.length - 1);
    const there = {bubbles: true, clientX, clientY: y + height / 2};
    rail.dispatchEvent(new MouseEvent('mousedown', there));
    figure.dispatchEvent(new MouseEvent('mouseup', there));
  }

  function play(figure) {
    const {_animationRaf, _timeToNext} = figure._transitionData || {};  // a jump of the slider waits for no next frame
    const button = _animationRaf && _timeToNext > 0 ? '❚❚' : '▶';
    [...figure.querySelectorAll('.updatemenu-button')].find(each => each.textContent.startsWith(button))
      ?.dispatchEvent(new MouseEvent('click', {bubbles: true}));
  }

  const KEYS = {ArrowLeft: figure => move(figure, -1), ArrowRight: figure => move(figure, 1), ' ': play};

  addEventListener('keydown', event => {
    const figure = event.target.matches?.(ANIMATED) && event.target, act = KEYS[event.key];
    if (!figure || !act || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    event.stopImmediatePropagation();  // in JupyterLab the same keys go from cell to cell and scroll
    act(figure);
  }, true);

  function reach() {
    waiting = false;
    for (const figure of document.querySelectorAll(`${ANIMATED}:not([aria-keyshortcuts])`)) {
      figure.tabIndex = 0;
      figure.setAttribute('aria-keyshortcuts', 'ArrowLeft ArrowRight Space');
      if (figure.hasAttribute('aria-label')) continue;
      figure.setAttribute('role', 'group');
      figure.setAttribute('aria-label', figure.querySelector('.gtitle')?.textContent || 'animated figure');
    }
  }
  let waiting = false;
  new MutationObserver(() => { if (!waiting) waiting = !!setTimeout(reach, 300); })
    .observe(document.documentElement, {childList: true, subtree: true});

  if (document.getElementById('jupyter-config-data')) {
    const plugin = {id: 'lft-edu-figures:keys', autoStart: true, activate() {}};
    (window._JUPYTERLAB ??= {})['lft-edu-figures'] = {init() {}, get: async () => () => ({__esModule: true, default: plugin})};
  }
})();
