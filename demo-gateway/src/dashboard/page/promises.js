// What was promised and how much of it is left: objectives with their error budget, and limits.

import { admin, toast } from './admin.js';
import { store } from './store.js';
import { $, attr, fill, icon, keyed, percent, plain, put, rate, stamp, times, tone, windowOf } from './tools.js';

const objectives = keyed($('objective-list'), objective => {
  const row = stamp('t-objective');
  put(row.f.title, objective.title);
  put(row.f.text, `${objective.text}, over ${windowOf(objective.period_s)}`);
  attr(row.f.table, 'aria-label', `Burn rates of ${objective.title}`);
  row.burns = store.snapshot.alerts.map(alert => {
    const burn = stamp('t-burn');
    put(burn.f.above, `${alert.above}×`);
    put(burn.f.windows, `${windowOf(alert.long_s)}, ${windowOf(alert.short_s)}`);
    row.f.rows.append(burn.el);
    return burn;
  });
  return row;
});

export function drawObjectives() {
  const { snapshot, tick } = store;
  $('objectives-empty').hidden = tick.slo.length > 0;
  // Another promise or other windows make another row.
  const key = o => JSON.stringify([o, snapshot.alerts]);
  objectives(snapshot.objectives, key, ({ el, f, burns }, objective) => {
    const now = tick.slo.find(o => o.id === objective.id);
    if (!now) return;
    const pages = now.firing.some((on, i) => on && snapshot.alerts[i].kind === 'page');
    const level = pages ? 'bad' : now.firing.some(Boolean) || now.budget_left <= 0 ? 'warn' : 'ok';
    tone(el, level);
    icon(f.icon, level);
    put(f.left, percent(Math.max(0, now.budget_left), 1));
    fill(f.bar, now.budget_left);
    tone(f.bar, now.budget_left > 0.25 ? 'ok' : now.budget_left > 0 ? 'warn' : 'bad');
    burns.forEach((burn, i) => {
      const { kind, above } = snapshot.alerts[i], [long, short] = now.burn[i], fires = now.firing[i];
      const tint = fires ? (kind === 'page' ? 'bad' : 'warn') : 'ok';
      tone(burn.el, tint);
      icon(burn.f.icon, tint);
      put(burn.f.kind, fires ? `${kind} fires` : kind);
      put(burn.f.long, times(long));
      put(burn.f.short, times(short));
      burn.f.long.classList.toggle('hot', long >= above);
      burn.f.short.classList.toggle('hot', short >= above);
    });
  });
}

// ---- limits ----
const limits = keyed($('limit-rows'), l => {
  const row = stamp('t-limit');
  put(row.f.resetOf, ` ${l.rule} for ${l.key}`);
  row.f.reset.addEventListener('click', () => {
    const path = `/admin/reset-rate-limit/${encodeURIComponent(l.key)}?rule_type=${encodeURIComponent(l.rule)}`;
    admin(path, {}, toast);
  });
  return row;
});

export function drawLimits() {
  const { limits: list } = store.tick;
  limits(list, l => JSON.stringify([l.rule, l.key]), ({ el, f }, l) => {
    const used = l.used / l.limit, over = l.rejected > 0, near = used >= 0.8;
    const level = over ? 'warn' : near ? 'info' : 'ok';
    tone(el, level);
    icon(f.icon, level === 'info' ? 'up' : level);
    put(f.key, l.key === 'global' ? 'all callers' : l.key);
    f.key.title = l.key;
    put(f.say, over ? `over, ${rate(l.rejected)} rejected/s` : near ? 'near' : 'fine');
    fill(f.bar, used);
    put(f.rule, l.rule);
    const window = l.window_ms ? ` in ${windowOf(l.window_ms / 1000)}` : ' at once';
    put(f.used, `${plain(l.used)} of ${plain(l.limit)}${l.unit && l.unit !== 'requests' ? ` ${l.unit}` : ''}${window}`);
    f.reset.hidden = !store.live;
  });
  $('limits-empty').hidden = list.length > 0;
  const rules = store.snapshot.gateway.rules;
  put($('limits-empty'), rules ? 'Nobody is near a limit.' : 'No limit is configured.');
}
