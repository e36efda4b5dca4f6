// Before the first paint, so that a page of the wrong colours is never seen.
'use strict';
{
  let theme = 'auto';
  try { theme = localStorage.getItem('palisade-theme') ?? 'auto'; } catch { /* storage is blocked: as the system has it */ }
  document.documentElement.dataset.theme = ['light', 'dark'].includes(theme) ? theme : 'auto';
}
