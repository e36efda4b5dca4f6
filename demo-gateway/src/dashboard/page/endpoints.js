// The endpoints: a row each, and a sheet in which one is steered.

import { admin, toast } from './admin.js';
import { breakerWord, endpointState, serves } from './states.js';
import { store } from './store.js';
import { $, attr, DASH, fill, icon, keyed, ms, pairs, percent, plain, put, rate, stamp, tone } from './tools.js';

let open = null; // the endpoint in the sheet

const rows = keyed($('endpoint-rows'), item => {
  const row = stamp('t-endpoint');
  put(row.f.id, item.id);
  put(row.f.manageId, ` ${item.id}`);
  attr(row.el, 'data-endpoint', item.id);
  row.f.manage.addEventListener('click', () => show(item.id));
  return row;
});

export function drawEndpoints() {
  const { endpoints } = store.tick, top = Math.max(0.25, ...endpoints.map(e => e.share || 0));
  rows(endpoints, e => e.id, ({ el, f }, e) => {
    const info = store.endpoints.get(e.id) ?? {}, [name, word, level] = endpointState(e);
    tone(el, level);
    put(f.sub, e.note ?? info.url ?? '');
    f.sub.title = f.sub.textContent;
    icon(f.icon, name);
    put(f.state, word);
    put(f.breaker, breakerWord(e));
    tone(f.breaker, e.forced ? 'info' : e.breaker === 'open' ? 'bad' : e.breaker === 'half_open' ? 'warn' : '');
    put(f.inflight, info.max_in_flight ? `${e.in_flight} / ${info.max_in_flight}` : `${e.in_flight}`);
    fill(f.inflightBar, info.max_in_flight ? e.in_flight / info.max_in_flight : 0);
    put(f.share, percent(e.share, e.share > 0 && e.share < 0.01 ? 1 : 0));
    fill(f.shareBar, e.share / top);
    put(f.p50, ms(e.p50_ms));
    put(f.p95, ms(e.p95_ms));
    put(f.errors, percent(e.error_ratio, 1));
    tone(f.errors, e.error_ratio > 0.01 ? 'bad' : '');
    put(f.weight, plain(e.weight ?? 1));
  });
  const more = store.tick.endpoints_more ?? 0;
  $('endpoints-more').hidden = !more;
  put($('endpoints-more'), `And ${more} more, all serving; /health lists each.`);
  $('endpoints-empty').hidden = endpoints.length > 0;
  $('endpoint-table').hidden = !endpoints.length;
  if (open) drawSheet();
}

// ---- the sheet ----
const facts = pairs($('sheet-facts'));
const current = () => store.tick.endpoints.find(e => e.id === open);
const report = (level, text) => { tone($('sheet-result'), level); put($('sheet-result'), text); };

function show(id) {
  open = id;
  report('', '');
  $('weight').value = current()?.weight ?? 1;
  drawSheet();
  if (open) $('sheet').showModal();
}

function drainNote(e) {
  if (e.state === 'draining') return 'Takes requests again.';
  const last = store.tick.endpoints.filter(serves).length === 1 && serves(e);
  return last ? 'Careful: the last one serving. Callers would get 503.' : 'Takes no new request; those in flight finish.';
}

function drawSheet() {
  const e = current();
  if (!e) { open = null; if ($('sheet').open) $('sheet').close(); return; }
  const info = store.endpoints.get(open) ?? {}, [name, word, level] = endpointState(e), state = $('sheet-state');
  put($('sheet-title'), e.id);
  tone(state, level);
  icon(state.querySelector('use'), name);
  put(state.querySelector('b'), word);
  put(state.querySelector('span'), e.note ?? '');
  facts('Address', info.url ?? DASH);
  facts('Zone', info.zone ?? DASH);
  facts('Breaker', breakerWord(e));
  facts('In flight', `${e.in_flight} of ${info.max_in_flight ?? '∞'}`);
  facts('Attempts', `${rate(e.rps)} /s, ${percent(e.share)}`);
  facts('Errors', percent(e.error_ratio, 1));
  facts('Latency', `p50 ${ms(e.p50_ms)}, p95 ${ms(e.p95_ms)}`);
  put($('act-drain'), e.state === 'draining' ? 'Put back' : 'Drain');
  put($('drain-note'), drainNote(e));
  const held = e.forced ? e.breaker : 'auto';
  for (const button of document.querySelectorAll('[data-breaker]')) attr(button, 'aria-pressed', `${button.dataset.breaker === held}`);
}

const act = (kind, body) => admin(`/admin/${kind}/${encodeURIComponent(open)}`, body, report);
$('act-drain').addEventListener('click', () => act('backends', { drain: current()?.state !== 'draining' }));
$('act-weight').addEventListener('submit', event => { event.preventDefault(); act('backends', { weight: Number($('weight').value) }); });
for (const button of document.querySelectorAll('[data-breaker]')) {
  button.addEventListener('click', () => act('circuit-breaker', { state: button.dataset.breaker }));
}
$('sheet').addEventListener('close', () => { open = null; });

// ---- how traffic is shared among them ----
const strategy = $('strategy');
strategy.addEventListener('change', async () => {
  strategy.dataset.busy = 'yes';
  await admin('/admin/strategy', { strategy: strategy.value }, toast);
  delete strategy.dataset.busy;
  if (store.tick) strategy.value = store.tick.strategy;
});

export function drawStrategy() {
  const names = store.snapshot.gateway.strategies;
  if (strategy.options.length !== names.length) strategy.replaceChildren(...names.map(name => new Option(name)));
  const held = strategy.dataset.busy || document.activeElement === strategy;
  if (!held && strategy.value !== store.tick.strategy) strategy.value = store.tick.strategy;
}
