// The dashboard: GET /events in, DOM out. The feed is described in FEED.md.

import { drawFirst } from './first.js';
import { drawCharts, drawEvents, drawFigures, restyle } from './plots.js';
import { drawEndpoints, drawStrategy } from './endpoints.js';
import { drawLimits, drawObjectives } from './promises.js';
import { drawRequests } from './requests.js';
import { store, takeSnapshot, takeTick } from './store.js';
import { $, attr, icon, put, span, tone } from './tools.js';
import { drawStrip, drawVerdict, withdrawVerdict } from './verdict.js';

const STALE_MS = 3500; // without a message for this long, the figures are old
const GIVE_UP_MS = 10000; // and after this long the connection is made anew

let source, retry, lastMessage = 0, lastTry = 0, tries = 0, state = 'connecting';

function draw() {
  if (!store.tick) return;
  drawFirst(); drawVerdict(); drawStrip(); drawEndpoints(); drawStrategy(); drawObjectives(); drawLimits();
  drawEvents(); drawRequests(); drawFigures(); drawCharts();
}

function onSnapshot(next) {
  takeSnapshot(next);
  const { name, version } = next.gateway;
  put($('about'), `${name} ${version} at ${location.origin}`);
  draw();
}

function onTick(next) {
  if (!store.snapshot) return;
  takeTick(next);
  draw();
}

function connect() {
  clearTimeout(retry);
  source?.close();
  lastTry = performance.now();
  const mine = source = new EventSource('/events');
  const take = handle => event => {
    lastMessage = lastTry = performance.now();
    tries = 0;
    store.live = true;
    handle(JSON.parse(event.data));
    drawFeed();
  };
  mine.addEventListener('snapshot', take(onSnapshot));
  mine.addEventListener('tick', take(onTick));
  mine.addEventListener('error', () => {
    if (mine !== source) return;
    // Whatever went wrong, when to try again is told here and not by the browser.
    mine.close();
    again();
    drawFeed();
  });
}

function again() {
  tries++;
  clearTimeout(retry);
  retry = setTimeout(connect, Math.min(8000, 500 * 2 ** tries) * (0.75 + Math.random() / 2));
}

const FEED = { connecting: ['wait', 'mute'], live: ['ok', 'ok'], stale: ['warn', 'warn'] };

function drawFeed() {
  const age = lastMessage ? performance.now() - lastMessage : 0, before = state;
  state = !lastMessage && !tries ? 'connecting' : lastMessage && age <= STALE_MS ? 'live' : 'stale';
  store.live = state === 'live';
  const stale = state === 'stale', [name, level] = FEED[state];
  attr($('main'), 'data-feed', lastMessage ? state : 'connecting');
  tone($('feed'), level);
  icon($('feed').querySelector('use'), name);
  put($('feed-text'), stale ? (age ? `Stale, ${span(age / 1000)}` : 'No answer') : state === 'live' ? 'Live' : 'Connecting');
  $('reconnect').hidden = !stale;
  $('strategy').disabled = !store.live;
  if (before !== state) {
    if (before !== 'connecting') put($('announce'), stale ? 'The feed stopped. The figures are old.' : 'The feed is back.');
    draw();
  }
  if (stale) withdrawVerdict(age, tries);
}

setInterval(() => {
  if (performance.now() - lastTry > GIVE_UP_MS) { tries++; connect(); }
  drawFeed();
}, 1000);
document.addEventListener('visibilitychange', () => { if (!document.hidden) draw(); });
$('reconnect').addEventListener('click', () => { tries++; connect(); });

$('theme').value = document.documentElement.dataset.theme;
$('theme').addEventListener('change', () => {
  document.documentElement.dataset.theme = $('theme').value;
  try { localStorage.setItem('palisade-theme', $('theme').value); } catch { /* storage is blocked: until the next reload */ }
  restyle();
});

connect();
