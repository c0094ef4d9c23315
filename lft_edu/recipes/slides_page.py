"""Look and behavior of the slides that :mod:`lft_edu.recipes.slides` writes.

Without JavaScript, and in print, slides follow each other, one per page. ``--u`` is a hundredth of a slide's width; all
sizes are multiples of it, so a slide looks the same at every size: full screen, in the overview, beside its notes.
"""

STYLE = """
:root { --paper: #fff; --ink: #1a1d21; --soft: #5a626c; --line: #d5dae0; --mark: #4338ca; --wash: #eef0f3 }
* { box-sizing: border-box }
body { margin: 0; background: var(--wash); color: var(--ink); font-family: system-ui, "Segoe UI", Roboto, sans-serif }
section { --u: min(1vw, 1.7778vh); display: flex; flex-direction: column; gap: .8em; position: relative; outline: none;
  width: calc(100 * var(--u)); height: calc(56.25 * var(--u)); padding: 1.5em 2.4em .9em; margin: 0 auto;
  font-size: calc(2.15 * var(--u)); line-height: 1.4; background: var(--paper); overflow: hidden }
h2 { font-size: 1.5em; line-height: 1.2; margin: 0; text-wrap: balance; font-weight: 650 }
.star h2::before { content: ""; display: block; width: 2.2em; height: .16em; margin-bottom: .35em;
  background: var(--mark) }
.body > :first-child { margin-top: 0 } .body > :last-child { margin-bottom: 0 }
.body:empty { display: none }
.body:nth-last-child(3) { flex: 1; display: flex; flex-direction: column; justify-content: center; gap: .6em }
.body:nth-last-child(3) math[display=block] { font-size: 1.45em; margin: .4em 0 }
.figures { flex: 1; min-height: 0; display: flex; gap: 1em }
.figures img { flex: 1; min-width: 0; width: 100%; height: 100%; object-fit: contain }
/* Figures are wide: two stand one above the other, beside the words. */
section:has(.figures :nth-child(2)) { display: grid; grid-template: auto 1fr auto / 22% 1fr; column-gap: 1.5em }
section:has(.figures :nth-child(2)) > :is(h2, footer) { grid-column: 1 / -1 }
section:has(.figures :nth-child(2)) > .body { align-self: center }
section > .figures:has(:nth-child(2)) { flex-direction: column; gap: .4em }
.figures:has(:nth-child(2)) img { min-height: 0; height: 0 }
table { border-collapse: collapse; align-self: center; margin: .4em auto; font-size: .95em }
th, td { padding: .4em .9em; text-align: left; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums }
td:not(:first-child) { white-space: nowrap }
th { color: var(--soft); font-weight: 600; font-size: .88em }
code { font-size: .92em; background: var(--wash); padding: 0 .2em; border-radius: .2em }
a { color: var(--mark) }
footer { font-size: .62em; color: var(--soft); margin-top: auto }
aside, nav { display: none }
nav button { all: unset; cursor: pointer; padding: .35em .6em; color: var(--soft) }
nav button:focus-visible { outline: 2px solid var(--mark); border-radius: .3em }
@media screen {
  .dark { --paper: #1a1a1a; --ink: #e9eaec; --soft: #a2a9b2; --line: #3b4048; --mark: #a5b4fc; --wash: #101112 }
  /* Figures are drawn on white: turned around in lightness, their ground becomes the paper; hues stay. */
  .dark img { filter: invert(.9) hue-rotate(180deg) }
  .guest section:not(.star) { display: none }
  .live nav { display: flex; position: fixed; right: .5em; bottom: .4em; z-index: 1; font-size: 1.1rem; opacity: .25 }
  .live nav:hover, .live nav:focus-within { opacity: 1; background: var(--paper); border-radius: .4em }
  .live main { min-height: 100vh; display: grid; place-content: center }
  .live:not(.overview) section:not(.now) { display: none }
  .live.overview main { grid-template-columns: repeat(auto-fill, max(15vw, 15rem)); gap: 1vw; padding: 1vw }
  .live.overview section { --u: max(.15vw, .15rem); cursor: pointer }
  .overview section.now { outline: 3px solid var(--mark) }
  .notes:not(.overview) main { place-content: start }
  .notes:not(.overview) section { --u: min(.62vw, 1.7vh); margin: 0 }
  .notes:not(.overview) section.now aside { display: block; position: fixed; overflow: auto; top: 0; right: 0;
    width: 37vw; height: 100vh; padding: 0 1.4rem; font-size: max(1.35vw, 1rem); line-height: 1.5 }
  aside h3 { font-size: .85em; color: var(--soft); font-weight: 600 }
  #next { display: none }
  .notes:not(.overview) #next { display: block; position: fixed; left: 1.4rem; bottom: 3rem; color: var(--soft);
    width: 58vw; font-size: max(1.2vw, 1rem) }
}
@media screen and (orientation: portrait) {
  .notes:not(.overview) section { --u: 1vw }
  .notes:not(.overview) section.now aside { top: 57vw; width: 100vw; height: auto; bottom: 5rem }
  .notes:not(.overview) #next { display: none }
}
@page { size: 13.333in 7.5in; margin: 0 }
@media print {
  section { --u: .13333in; break-after: page; break-inside: avoid }
  section:last-of-type { break-after: auto }
  .guest section:not(.star), #next { display: none }
  body { background: none; print-color-adjust: exact }
  /* With notes, for the lecturer: on sheets of A4, each slide with its notes below. */
  .notes section { page: sheet; --u: 1.75mm; width: auto; height: auto; overflow: visible; padding: 0 0 8mm;
    break-after: auto }
  .notes section > .figures { flex: none; height: 60mm }
  .notes aside { display: block; grid-column: 1 / -1; border-top: 1px solid var(--line); font-size: 11pt;
    line-height: 1.5 }
}
@page sheet { size: A4; margin: 15mm }
"""

BUTTONS = """<p id="next"></p><nav aria-label="Slides">
<button data-key="ArrowLeft" aria-label="Back" title="Back (←)">‹</button>
<button data-key="ArrowRight" aria-label="Forward" title="Forward (→)">›</button>
<button data-key="o" aria-label="Overview" title="Overview (O)">▦</button>
<button data-key="n" aria-label="Speaker notes" title="Speaker notes (N)">✎</button>
<button data-key="d" aria-label="Dark or light" title="Dark or light (D)">◐</button></nav>"""

SCRIPT = """
const root = document.documentElement.classList, all = [...document.querySelectorAll('section')];
const began = Date.now();
let now = all[0], other = window.name === 'speaker' ? window.opener : null;
const inUse = () => root.contains('guest') ? all.filter(one => one.matches('.star')) : all;

function show(slide, told) {
  if (!slide) return;
  now = slide;
  all.forEach(one => one.classList.toggle('now', one === now));
  if (location.hash !== '#' + now.id) location.replace('#' + now.id);
  if (root.contains('overview')) now.scrollIntoView({block: 'nearest'});
  else { scrollTo(0, 0); now.focus({preventScroll: true}); }
  if (!told && other && !other.closed) other.postMessage(now.id, '*');
  tick();
}
function move(by) {
  const list = inUse(), place = list.indexOf(now);
  if (place >= 0) show(list[Math.max(0, Math.min(list.length - 1, place + by))]);
  else show(list.find(one => all.indexOf(one) > all.indexOf(now)) || list[0]);
}
function tick() {
  const list = inUse(), next = list[list.indexOf(now) + 1], seconds = Math.floor((Date.now() - began) / 1000);
  const clock = Math.floor(seconds / 60) + ':' + String(seconds % 60).padStart(2, '0');
  document.getElementById('next').textContent =
    clock + (next ? ' · next: ' + next.querySelector('h2').textContent : ' · last slide');
}
const keys = {
  ArrowRight: () => move(1), ArrowDown: () => move(1), PageDown: () => move(1), ' ': () => move(1),
  ArrowLeft: () => move(-1), ArrowUp: () => move(-1), PageUp: () => move(-1),
  Home: () => show(inUse()[0]), End: () => show(inUse().at(-1)),
  o: () => { root.toggle('overview'); show(now); }, Escape: () => keys.o(),
  Enter: () => { root.remove('overview'); show(now); },
  n: () => root.toggle('notes'), d: () => root.toggle('dark'),
  g: () => { root.toggle('guest'); if (!inUse().includes(now)) move(1); tick(); },
  f: () => document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen(),
  s: () => { other = open(location.href, 'speaker', 'width=1200,height=700'); },
};
addEventListener('keydown', event => {
  const button = event.target.closest?.('button'), key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, key)) return;
  if (button && (key === ' ' || key === 'Enter')) return;
  event.preventDefault();
  keys[key]();
});
addEventListener('click', event => {
  const button = event.target.closest('button'), slide = event.target.closest('section');
  if (button) keys[button.dataset.key]();
  else if (slide && root.contains('overview')) { root.remove('overview'); show(slide); }
});
let start = null;
addEventListener('touchstart', event => { start = event.touches.length === 1 ? event.touches[0] : null; });
addEventListener('touchend', event => {
  if (!start || root.contains('overview')) return;
  const x = event.changedTouches[0].clientX - start.clientX, y = event.changedTouches[0].clientY - start.clientY;
  if (Math.abs(x) > 40 && Math.abs(x) > 2 * Math.abs(y)) move(x < 0 ? 1 : -1);
});
const named = id => all.find(one => one.id === id);
addEventListener('message', event => { if (other && event.source === other) show(named(event.data), true); });
addEventListener('hashchange', () => { const one = named(location.hash.slice(1)); if (one !== now) show(one); });
root.add('live');
if (other || location.search === '?notes') root.add('notes');
if (matchMedia('(prefers-color-scheme: dark)').matches) root.add('dark');
setInterval(tick, 1000);
show(named(location.hash.slice(1)) || all[0]);
"""
