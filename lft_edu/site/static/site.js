// Code of a lesson folds, one cell at a time or all at once; the choice stays for all lessons.
addEventListener('DOMContentLoaded', () => {
  const button = document.querySelector('.fold-code');
  const folds = [...document.querySelectorAll('.cell_input')].map(cell => {
    const fold = document.createElement('details'), summary = document.createElement('summary');
    const lines = cell.textContent.trim().split('\n').length;
    summary.textContent = `code, ${lines} ${lines === 1 ? 'line' : 'lines'}`;
    fold.className = 'code-fold';
    cell.replaceWith(fold);
    fold.append(summary, cell);
    return fold;
  });

  function setAll(open) {
    folds.forEach(fold => { fold.open = open; });
    button.textContent = open ? 'Fold code' : 'Show code';
    button.setAttribute('aria-pressed', String(!open));
  }

  if (button && folds.length) {
    button.hidden = false;
    setAll(localStorage.getItem('lft-code') !== 'folded');
    button.addEventListener('click', () => {
      const open = button.getAttribute('aria-pressed') === 'true';
      localStorage.setItem('lft-code', open ? 'shown' : 'folded');
      setAll(open);
    });
  } else {
    folds.forEach(fold => { fold.open = true; });
  }
});

// A page from a folder (file:) may not download the notebook beside it, so it runs a script that holds the notebook.
if (location.protocol === 'file:') {
  addEventListener('click', event => {
    const link = event.target.closest?.('a[download]');
    if (!link) return;
    event.preventDefault();
    window.lessonFile = text => {
      const save = document.createElement('a');
      save.href = URL.createObjectURL(new Blob([text], {type: 'application/x-ipynb+json'}));
      save.download = link.pathname.split('/').pop();
      save.dispatchEvent(new MouseEvent('click'));  // does not bubble to the listener above
      URL.revokeObjectURL(save.href);
    };
    const script = document.createElement('script');
    script.src = `${link.href}.js`;
    document.head.append(script);
  });
}

// Pages from a folder cannot read each other, so search results there are titles without the text around the words.
if (location.protocol === 'file:' && typeof DOCUMENTATION_OPTIONS !== 'undefined') {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}
