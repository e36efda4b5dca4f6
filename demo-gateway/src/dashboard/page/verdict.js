// Healthy or not, and why not; the four places to look at; and the gateway itself.

import { store } from './store.js';
import { endpointState, serves, VERDICT } from './states.js';
import { $, attr, clock, DASH, icon, keyed, known, make, N0, N2, pairs, percent, put, span, tone } from './tools.js';

const posts = keyed($('posts'), () => ({ el: make('i') }));
const strip = pairs($('gateway'));
let said = null;

function check(id, level, text) {
  const link = $(id);
  icon(link.querySelector('use'), level);
  tone(link, level);
  put(link.querySelector('b'), text);
}

function checks() {
  const { endpoints, slo, limits, gateway } = store.tick;
  const serving = endpoints.filter(serves).length;
  const lost = endpoints.some(e => endpointState(e)[2] === 'bad');
  check('check-endpoints', !serving || lost ? 'bad' : serving < endpoints.length ? 'warn' : 'ok', `${serving} of ${endpoints.length} serving`);
  posts(endpoints.slice(0, 12), e => e.id, (row, e) => tone(row.el, endpointState(e)[2]));

  const left = Math.min(...slo.map(o => o.budget_left));
  const firing = slo.flatMap(o => o.firing.map((on, i) => on && store.snapshot.alerts[i].kind).filter(Boolean));
  const level = firing.includes('page') ? 'bad' : firing.length || left <= 0 ? 'warn' : 'ok';
  check('check-objectives', level, slo.length ? `${percent(Math.max(0, left))} left` : 'none set');

  const over = limits.filter(l => l.rejected > 0).length, near = limits.filter(l => l.used >= 0.8 * l.limit).length;
  check('check-limits', over ? 'warn' : 'ok', over ? `${over} over` : near ? `${near} near` : 'all clear');

  // Room is only known when each has a bound; those out of choice have none to give.
  const bounds = endpoints.filter(serves).map(e => store.endpoints.get(e.id)?.max_in_flight);
  const room = bounds.length && bounds.every(known) ? bounds.reduce((sum, n) => sum + n, 0) : 0;
  const busy = gateway.in_flight / room;
  check('check-capacity', busy > 0.9 || gateway.queued > 20 ? 'warn' : 'ok', room ? `${percent(busy)} in use` : `${N0.format(gateway.in_flight)} in flight`);
}

export function drawVerdict() {
  const { verdict, at_ms } = store.tick;
  const [sign, word, level] = VERDICT[verdict.state] ?? ['wait', verdict.state, 'mute'];
  tone($('verdict'), level);
  icon($('verdict').querySelector('.sign use'), sign);
  put($('word'), word);
  put($('since'), `for ${span((at_ms - verdict.since_ms) / 1000)}`);
  put($('why'), verdict.text);
  document.title = `${level === 'ok' ? '✓' : level === 'bad' ? '✕' : '!'} ${word} · palisade`;
  if (said !== verdict.state) {
    if (said) put($('announce'), `${word}. ${verdict.text}`);
    said = verdict.state;
  }
  checks();
}

// Old news is no news: the verdict is withdrawn, in its own place, so that nothing moves.
export function withdrawVerdict(age, tries) {
  const { tick } = store, retrying = `Trying again, attempt ${tries}.`;
  tone($('verdict'), 'mute');
  icon($('verdict').querySelector('.sign use'), 'unknown');
  put($('word'), 'Unknown');
  put($('since'), age ? `nothing heard for ${span(age / 1000)}` : '');
  const was = tick && (VERDICT[tick.verdict.state]?.[1] ?? tick.verdict.state).toLowerCase();
  put($('why'), tick ? `At ${clock(tick.at_ms)} it was ${was}; every figure below is from then. ${tries ? retrying : ''}` : `The gateway does not answer. ${retrying}`);
  document.title = '? Unknown · palisade';
}

export function drawStrip() {
  const { gateway: g, at_ms, total_requests } = store.tick;
  const own = g.overhead_us?.p99;
  strip('In flight', N0.format(g.in_flight));
  strip('Queued', known(g.queued) ? N0.format(g.queued) : DASH, g.queued > 20 ? 'warn' : '');
  strip('Gateway’s own time, p99', known(own) ? (own >= 9950 ? `${N0.format(own / 1000)} ms` : `${N0.format(own)} µs`) : DASH);
  strip('Attempts per request', known(g.attempts_per_request) ? N2.format(g.attempts_per_request) : DASH);
  strip('Retries left', known(g.retries_left) ? N0.format(g.retries_left) : null, g.retries_left === 0 ? 'warn' : '');
  strip('Requests in all', N0.format(total_requests));
  strip('Up for', span((at_ms - store.snapshot.gateway.started_ms) / 1000));
  strip('Log rows dropped', g.log_dropped ? N0.format(g.log_dropped) : null, 'warn');
  attr($('gateway'), 'data-total', `${total_requests}`);
}
