// Requests that ended lately, and why any was rejected.

import { REQUEST } from './states.js';
import { store } from './store.js';
import { $, attr, clock, DASH, icon, keyed, make, ms, N0, put, stamp, tone } from './tools.js';

const ROWS = matchMedia('(max-width: 700px)').matches ? 10 : 20;
const NOTE = 'A sample of each second; rejected and failed ones first.';
let shown = 'all', paused = false;

const body = $('request-rows');
const rows = keyed(body, () => stamp('t-request'));
const hovers = matchMedia('(hover: hover)');
const reading = () => paused || body.matches(':focus-within') || (hovers.matches && body.matches(':hover'));

function matches(r) {
  if (shown === 'rejected') return r.verdict === 'rejected';
  return shown === 'all' || r.verdict === 'failure' || r.verdict === 'overload';
}

function fillRow({ el, f }, r) {
  if (el.dataset.tone) return; // a record never changes
  const [name, word, level] = REQUEST[r.verdict] ?? ['info', r.verdict, 'mute'];
  tone(el, level);
  put(f.time, clock(r.at_ms));
  icon(f.icon, name);
  put(f.verdict, `${r.status} ${word}`);
  put(f.caller, r.caller ?? DASH);
  f.caller.title = r.caller ?? '';
  put(f.id, r.id);
  f.id.title = r.id;
  if (r.why) { // the reason takes the rest of the row
    f.why.colSpan = 5;
    for (const cell of [f.tries, f.first, f.total, f.tokens]) cell.hidden = true;
    f.why.append(make('b', r.reason ?? ''), ` ${r.why}${r.total_ms >= 50 ? `, after ${ms(r.total_ms)}` : ''}`);
    f.why.title = f.why.textContent;
    return;
  }
  put(f.why, [r.endpoint ?? DASH, r.model].filter(Boolean).join(' · '));
  put(f.tries, r.attempts ? `${r.attempts}` : DASH);
  put(f.first, ms(r.first_token_ms));
  put(f.total, ms(r.total_ms));
  put(f.tokens, r.tokens ? N0.format(r.tokens) : DASH);
}

export function drawRequests(force) {
  const held = reading() && !force;
  put($('requests-note'), held ? (paused ? 'Paused.' : 'Held still while you point at it.') : NOTE);
  if (held || document.hidden) return;
  const list = store.requests.filter(matches).slice(0, ROWS);
  rows(list, r => `${r.at_ms} ${r.id}`, fillRow);
  const none = $('requests-empty');
  none.hidden = list.length > 0;
  $('request-table').hidden = !list.length;
  put(none, shown === 'all' ? 'No request yet.' : `No ${shown} request among the latest ${store.requests.length}.`);
}

const filters = document.querySelectorAll('[data-show]');
for (const button of filters) {
  button.addEventListener('click', () => {
    shown = button.dataset.show;
    for (const other of filters) attr(other, 'aria-pressed', `${other === button}`);
    if (store.tick) drawRequests(true);
  });
}
$('pause').addEventListener('click', () => {
  paused = !paused;
  attr($('pause'), 'aria-pressed', `${paused}`);
  if (store.tick) drawRequests(!paused);
});
