// What to paste when nothing was asked yet.

import { store } from './store.js';
import { $, attr, put, stamp } from './tools.js';

// As this page was reached, so that what is pasted reaches the same gateway.
const origin = location.origin;
const PASTES = [
  ['One request', `curl ${origin}/generate \\\n  -H 'content-type: application/json' \\\n  -d '{"prompt": "Why is the sky blue?"}'`],
  ['A stream, the OpenAI way', `curl -N ${origin}/v1/chat/completions \\\n  -H 'content-type: application/json' \\\n  -d '{"model": "gpt-3.5-turbo", "stream": true,\n       "messages": [{"role": "user", "content": "Hi"}]}'`],
  ['A hundred requests', `for i in $(seq 100); do\n  curl -s -o /dev/null ${origin}/generate \\\n    -H 'content-type: application/json' \\\n    -d '{"prompt": "Hello"}' & done; wait`],
];

function drawPastes(list) {
  list.replaceChildren(...PASTES.map(([title, code]) => {
    const { el, f } = stamp('t-paste');
    put(f.title, title);
    put(f.code, code);
    attr(f.code.parentNode, 'aria-label', title);
    attr(f.copy, 'aria-label', `Copy: ${title}`);
    f.copy.addEventListener('click', async () => {
      try {
        await navigator.clipboard.writeText(code);
        put(f.copy, 'Copied');
      } catch { // not allowed here: ready for the keys then
        getSelection().selectAllChildren(f.code);
        put(f.copy, 'Selected');
      }
      setTimeout(() => put(f.copy, 'Copy'), 2000);
    });
    return el;
  }));
}

export function drawFirst() {
  const first = store.tick.total_requests === 0 && store.tick.endpoints.length > 0;
  if ($('first').hidden === !first) return;
  $('first').hidden = !first;
  $('plots').hidden = first;
  if (first) drawPastes($('pastes'));
}
$('try-open').addEventListener('click', () => { drawPastes($('try-pastes')); $('try').showModal(); });
