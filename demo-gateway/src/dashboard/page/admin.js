// What changes something: asks for the admin token once, and shows what came of it.

import { $, put, tone } from './tools.js';

let token = null; // in this tab and no storage: nothing to steal, and a reload forgets it

function ask(why) {
  if (why) put($('ask-why'), why);
  $('token').value = '';
  $('ask').showModal();
  return new Promise(resolve => $('ask').addEventListener('close', () => {
    const given = $('ask').returnValue === 'given' ? $('token').value.trim() : '';
    $('token').value = '';
    $('ask').returnValue = '';
    resolve(given || null);
  }, { once: true }));
}
$('ask-form').addEventListener('submit', event => { event.preventDefault(); $('ask').close('given'); });

// Sends one change; `report(tone, text)` is told what comes of it.
export async function admin(path, body, report) {
  for (let why; ;) {
    token ??= await ask(why);
    if (!token) return report('info', why ? 'Refused: that token is not the right one. Nothing was changed.' : 'Nothing was changed: no token given.');
    report('wait', 'Sending…');
    let answer, said;
    try {
      const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json' };
      answer = await fetch(path, { method: 'POST', headers, body: JSON.stringify(body) });
      said = await answer.json().catch(() => ({}));
    } catch (error) {
      // A token that cannot be a header is none.
      if (/[^\x21-\x7e]/.test(token)) { token = null; return report('bad', 'Refused: a token has no such characters in it.'); }
      return report('bad', 'The gateway could not be reached; nothing is known to have changed.');
    }
    if (answer.status === 401) {
      token = null;
      why = 'The gateway refused that token. It printed the right one when it started.';
      report('bad', `Refused (401): ${said.detail ?? 'the token is another'}`);
      continue;
    }
    return answer.ok ? report('ok', said.message ?? 'Done.') : report('bad', `Refused (${answer.status}): ${said.detail ?? said.title ?? 'no reason given'}`);
  }
}

let timer;
export function toast(level, text) {
  tone($('toast'), level);
  put($('toast'), text);
  clearTimeout(timer);
  timer = setTimeout(() => put($('toast'), ''), 6000);
}

for (const button of document.querySelectorAll('[data-close]')) {
  button.addEventListener('click', () => button.closest('dialog').close(''));
}
