// What all panels share: how figures are written, and how the DOM is kept in step with them.

export const $ = id => document.getElementById(id);

// ---- figures ----
const number = digits => new Intl.NumberFormat('en', { minimumFractionDigits: digits, maximumFractionDigits: digits });
export const [N0, N1, N2] = [0, 1, 2].map(number);
const short = new Intl.NumberFormat('en', { maximumFractionDigits: 2, useGrouping: true });
export const DASH = '–';
export const known = x => typeof x === 'number' && Number.isFinite(x);

export function rate(x) {
  if (!known(x)) return DASH;
  if (x >= 10000) return `${N1.format(x / 1000)}k`;
  return x >= 100 ? N0.format(x) : N1.format(x);
}
export function ms(x) {
  if (!known(x)) return DASH;
  if (x >= 9950) return `${N1.format(x / 1000)} s`;
  if (x >= 995) return `${N2.format(x / 1000)} s`;
  return x > 0 && x < 9.95 ? `${N1.format(x)} ms` : `${N0.format(x)} ms`;
}
export const percent = (x, digits = 0) => known(x) ? `${[N0, N1, N2][digits].format(x * 100)} %` : DASH;
export const times = x => known(x) ? `${x >= 100 ? N0.format(x) : N1.format(x)}×` : DASH;
export const plain = x => known(x) ? short.format(x) : DASH;

export function span(s) {
  s = Math.max(0, Math.round(s));
  const pair = (a, ua, b, ub) => b ? `${a} ${ua} ${b} ${ub}` : `${a} ${ua}`;
  if (s < 60) return `${s} s`;
  if (s < 3600) return pair(Math.floor(s / 60), 'min', s % 60, 's');
  if (s < 86400) return pair(Math.floor(s / 3600), 'h', Math.floor(s % 3600 / 60), 'min');
  return pair(Math.floor(s / 86400), 'd', Math.floor(s % 86400 / 3600), 'h');
}
export function windowOf(s) {
  if (s >= 86400 && s % 86400 === 0) return `${s / 86400} d`;
  if (s >= 3600 && s % 3600 === 0) return `${s / 3600} h`;
  if (s >= 60 && s % 60 === 0) return `${s / 60} min`;
  return `${plain(s)} s`;
}
const clockFormat = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit' });
export const clock = at => clockFormat.format(at);

// ---- the DOM: text only through textContent, styles only through CSSOM ----
export function put(node, text) { if (node.textContent !== text) node.textContent = text; }
export function attr(node, name, value) { if (node.getAttribute(name) !== value) node.setAttribute(name, value); }
export function icon(use, name) { attr(use, 'href', `#i-${name}`); }
export function tone(node, value) { if (node.dataset.tone !== value) node.dataset.tone = value; }
export function fill(bar, share) { bar.style.transform = `scaleX(${Math.min(1, Math.max(0, share || 0)).toFixed(3)})`; }
export function make(tag, text) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  return node;
}

// A copy of a template, with its parts by name.
export function stamp(id) {
  const el = $(id).content.firstElementChild.cloneNode(true);
  return { el, f: Object.fromEntries([...el.querySelectorAll('[data-f]')].map(node => [node.dataset.f, node])) };
}

// Keeps the children of `parent` in step with a list, moving only what moved.
export function keyed(parent, create) {
  const rows = new Map();
  return (items, key, update) => {
    const seen = new Set();
    let at = parent.firstElementChild;
    for (const item of items) {
      const k = key(item);
      if (seen.has(k)) continue;
      seen.add(k);
      let row = rows.get(k);
      if (!row) rows.set(k, row = create(item));
      if (row.el === at) at = at.nextElementSibling; else parent.insertBefore(row.el, at);
      update(row, item);
    }
    for (const [k, row] of rows) if (!seen.has(k)) { row.el.remove(); rows.delete(k); }
  };
}

// A <dl> with fixed terms: the function that it returns puts a text beside a term, `null` takes the term away.
export function pairs(list) {
  const values = new Map();
  return (term, text, level = '') => {
    let group = values.get(term);
    if (text === null) { group?.remove(); values.delete(term); return; }
    if (!group) {
      group = list.appendChild(make('div'));
      group.append(make('dt', term), make('dd'));
      values.set(term, group);
    }
    put(group.lastChild, text);
    tone(group, level);
  };
}
