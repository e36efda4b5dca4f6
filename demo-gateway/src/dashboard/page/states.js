// States as an icon, a word and a tone: never by colour alone.

export const ENDPOINT = {
  serving: ['ok', 'Serving', 'ok'], slow_start: ['up', 'Slow start', 'info'], probing: ['wait', 'Probing', 'warn'],
  ejected: ['bad', 'Ejected', 'bad'], unhealthy: ['bad', 'Unhealthy', 'bad'], draining: ['drain', 'Draining', 'info'],
};
export const VERDICT = {
  healthy: ['ok', 'Healthy', 'ok'], idle: ['ok', 'Ready', 'ok'], degraded: ['warn', 'Degraded', 'warn'],
  failing: ['bad', 'Failing', 'bad'], down: ['bad', 'Down', 'bad'], draining: ['drain', 'Shutting down', 'info'],
};
export const REQUEST = {
  success: ['ok', 'ok', 'ok'], rejected: ['warn', 'rejected', 'warn'], failure: ['bad', 'failed', 'bad'],
  overload: ['warn', 'overload', 'warn'], caller_fault: ['gone', 'caller', 'info'], canceled: ['gone', 'canceled', 'mute'],
};

export const endpointState = e => ENDPOINT[e.state] ?? ['wait', e.state, 'mute'];
export const serves = e => e.state === 'serving' || e.state === 'slow_start';

export function breakerWord(e) {
  const word = { closed: 'closed', open: 'open', half_open: 'half-open' }[e.breaker] ?? e.breaker ?? '–';
  if (e.forced) return `held ${word}`;
  return e.retry_in_ms ? `${word}, ${Math.ceil(e.retry_in_ms / 1000)} s` : word;
}
