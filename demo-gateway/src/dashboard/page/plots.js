// Four plots of the last five minutes, with the figure as their heading and one cursor over all.

import { SPAN, store } from './store.js';
import { $, attr, clock, keyed, known, make, ms, plain, put, rate, stamp } from './tools.js';

const PLOTS = [
  { title: 'Requests', unit: '/s', show: rate, lead: 0, series: [['requests', 'ended', '--s1'], ['rejected', 'rejected', '--warn', [5, 3]], ['failed', 'failed', '--bad', [2, 2]]] },
  { title: 'Latency', unit: 'p95', show: ms, lead: 1, series: [['p50', 'p50', '--s3', [2, 2]], ['p95', 'p95', '--s1'], ['p99', 'p99', '--s2', [5, 3]]] },
  { title: 'First token', unit: 'p95', show: ms, lead: 1, promised: true, series: [['first_p50', 'p50', '--s3', [2, 2]], ['first_p95', 'p95', '--s1']] },
  { title: 'Tokens', unit: '/s out', show: rate, lead: 0, series: [['tokens_out', 'out', '--s1'], ['tokens_in', 'in', '--s2', [5, 3]]] },
];
const STEPS = [1, 1.5, 2, 3, 4, 5, 6, 8, 10];

// Colours of the style sheet as the canvas takes them.
const probe = document.body.appendChild(make('i'));
probe.hidden = true;
const colour = name => { probe.style.color = `var(${name})`; return getComputedStyle(probe).color; };

const charts = PLOTS.map(plot => {
  const { el, f } = stamp('t-plot');
  put(f.title, plot.title);
  put(f.unit, plot.unit);
  const values = plot.series.map(([, name, line, dash], i) => { // the leading series is the big figure, the legend has the others
    const key = make('i');
    key.style.setProperty('--c', `var(${line})`);
    if (dash) key.className = 'dash';
    if (i === plot.lead) { f.unit.before(key); return f.value; }
    const value = make('b');
    f.legend.appendChild(make('li')).append(key, `${name} `, value);
    return value;
  });
  $('plots').append(el);
  return { ...plot, f, values, u: null, said: -Infinity };
});

const size = chart => ({ width: chart.f.canvas.clientWidth, height: chart.f.canvas.clientHeight });
const data = chart => [store.columns.at, ...chart.series.map(([key]) => store.columns[key])];
const targetOf = chart => chart.promised ? store.snapshot?.objectives.find(o => o.target_ms)?.target_ms : null;
const axisText = (chart, v) => chart.show === ms ? (v >= 1000 ? `${v / 1000} s` : `${v} ms`) : v >= 1000 ? `${v / 1000}k` : `${v}`;

function nice(max) {
  const step = 10 ** Math.floor(Math.log10(max > 0 ? max : 1));
  return (STEPS.find(k => k * step >= max * 1.08) ?? 15) * step;
}

// What changed, as dotted lines in every plot.
function marks(u) {
  const { ctx, bbox } = u, dot = devicePixelRatio;
  ctx.save();
  for (const event of store.events) {
    const x = u.valToPos(event.at_ms / 1000, 'x', true);
    if (event.severity === 'info' || x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.strokeStyle = ctx.fillStyle = colour(`--${event.severity}`);
    ctx.globalAlpha = 0.45;
    ctx.lineWidth = dot;
    ctx.setLineDash([2 * dot, 3 * dot]);
    ctx.beginPath(); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.stroke();
    ctx.globalAlpha = 1;
    ctx.fillRect(x - 2 * dot, bbox.top - 3 * dot, 4 * dot, 4 * dot);
  }
  ctx.restore();
}

// The objective's threshold.
const target = chart => u => {
  const limit = targetOf(chart);
  if (!limit || limit > u.scales.y.max) return;
  const { ctx, bbox } = u, y = u.valToPos(limit, 'y', true);
  ctx.save();
  ctx.strokeStyle = colour('--text');
  ctx.setLineDash([devicePixelRatio, 3 * devicePixelRatio]);
  ctx.beginPath(); ctx.moveTo(bbox.left, y); ctx.lineTo(bbox.left + bbox.width, y); ctx.stroke();
  ctx.restore();
};

function build(chart) {
  chart.u?.destroy();
  const axis = { stroke: colour('--mute'), font: '10px system-ui, sans-serif', ticks: { show: false }, grid: { stroke: colour('--grid'), width: 1 } };
  chart.u = new uPlot({
    ...size(chart), legend: { show: false }, padding: [6, 8, 0, 0],
    cursor: { sync: { key: 'palisade' }, y: false, drag: { x: false, y: false }, points: { size: 6 } },
    scales: { x: { range: (u, min, max) => [max - SPAN, max] }, y: { range: (u, min, max) => [0, nice(max)] } },
    axes: [
      { ...axis, size: 20, gap: 3, space: 60, incrs: [60, 120], grid: { show: false }, values: (u, list) => list.map(t => u.valToPos(t, 'x') + 8 > u.over.clientWidth ? '' : clock(t * 1000).slice(0, 5)) },
      { ...axis, size: 44, gap: 4, space: 34, values: (u, list) => list.map(v => v === 0 ? '0' : axisText(chart, v)) },
    ],
    series: [{}, ...chart.series.map(([, label, name, dash], i) => ({
      label, stroke: colour(name), width: i === chart.lead || name === '--bad' ? 1.75 : 1.25, dash, points: { show: false },
      fill: i === chart.lead ? colour(`${name}-wash`) : undefined }))],
    hooks: { draw: [marks, target(chart)], setCursor: [u => { if (u.cursor.event) hover(u.cursor.idx); }] },
  }, data(chart), chart.f.canvas);
}

let hovered = null;
function hover(index) {
  const next = index == null ? null : store.columns?.at[index] ?? null;
  if (next !== hovered) { hovered = next; drawFigures(); }
}

export function drawFigures() {
  const { columns } = store;
  if (!columns) return;
  const at = hovered === null ? -1 : columns.at.indexOf(hovered);
  for (const chart of charts) {
    const limit = targetOf(chart);
    put(chart.f.unit, at >= 0 ? `${chart.unit} at ${clock(hovered * 1000)}` : limit ? `${chart.unit}, target ${limit < 1000 ? `${plain(limit)} ms` : `${plain(limit / 1000)} s`}` : chart.unit);
    chart.series.forEach(([key], i) => put(chart.values[i], chart.show(columns[key].at(at))));
  }
}

export function drawCharts() {
  if (document.hidden || $('plots').hidden || !store.columns?.at.length) return;
  for (const chart of charts) {
    if (!chart.u) build(chart); else chart.u.setData(data(chart));
    // For those who hear it, and not each second anew.
    if (performance.now() - chart.said < 10000) continue;
    chart.said = performance.now();
    const [key, name] = chart.series[chart.lead], list = store.columns[key].filter(known);
    attr(chart.f.canvas, 'aria-label', list.length
      ? `${chart.title}, last 5 minutes: ${name} now ${chart.show(list.at(-1))}, lowest ${chart.show(Math.min(...list))}, highest ${chart.show(Math.max(...list))}`
      : `${chart.title}, last 5 minutes: nothing yet`);
  }
}

export function restyle() { for (const chart of charts) if (chart.u) build(chart); }
new ResizeObserver(() => charts.forEach(chart => chart.u?.setSize(size(chart)))).observe($('plots'));
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', restyle);

// ---- what changed, as words ----
const rows = keyed($('event-rows'), () => stamp('t-event'));
export function drawEvents() {
  rows(store.events, e => `${e.at_ms} ${e.subject} ${e.text}`, ({ el, f }, event) => {
    if (el.dataset.tone) return; // it never changes
    el.dataset.tone = event.severity;
    attr(f.icon, 'href', `#i-${event.severity}`);
    put(f.text, event.text);
    put(f.time, clock(event.at_ms));
    attr(f.time, 'datetime', new Date(event.at_ms).toISOString());
  });
  $('events-empty').hidden = store.events.length > 0;
}
