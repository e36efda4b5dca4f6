// What the feed has said last. Panels read it; only the feed writes it.

import { known } from './tools.js';

export const SPAN = 300; // seconds of history in the plots
const EVENTS = 50;
const REQUESTS = 300;

export const store = {
  snapshot: null,
  tick: null,
  events: [], // newest first
  requests: [], // newest first
  columns: null,
  endpoints: new Map(), // what of an endpoint never moves, by its id
  live: false,
};

export function takeSnapshot(snapshot) {
  Object.assign(store, {
    snapshot,
    tick: snapshot.tick,
    events: snapshot.events,
    requests: snapshot.requests,
    columns: snapshot.history,
    endpoints: new Map(snapshot.endpoints.map(e => [e.id, e])),
  });
}

export function takeTick(tick) {
  store.tick = tick;
  push(tick);
  store.events = [...tick.events, ...store.events].slice(0, EVENTS);
  store.requests = [...tick.requests.toReversed(), ...store.requests].slice(0, REQUESTS);
}

function push(tick) {
  const { at } = tick, last = store.columns.at.at(-1);
  if (known(last) && at <= last) return; // the clock was set back, or two ticks fell into one second
  // What was lost is a gap, not a line drawn across it.
  for (let missing = Math.max(at - SPAN, (last ?? at - 1) + 1); missing < at; missing++) row({ at: missing });
  row({ at, ...tick.rate, ...tick.latency_ms, first_p50: tick.first_token_ms?.p50, first_p95: tick.first_token_ms?.p95 });
}

function row(values) {
  for (const [key, list] of Object.entries(store.columns)) {
    list.push(values[key] ?? null);
    if (list.length > SPAN) list.shift();
  }
}
