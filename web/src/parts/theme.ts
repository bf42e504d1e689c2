// Light, dark, or as the system has it.

import { effect, signal } from '@preact/signals';

export type Theme = 'auto' | 'light' | 'dark';

const KEY = 'trunkline-theme';

function stored(): Theme {
  try {
    const found = localStorage.getItem(KEY);
    return found === 'light' || found === 'dark' ? found : 'auto';
  } catch {
    return 'auto';
  }
}

export const theme = signal<Theme>(stored());
/** Grows when colours have changed: charts draw anew. */
export const colours = signal(0);

effect(() => {
  const wanted = theme.value;
  if (wanted === 'auto') document.documentElement.removeAttribute('data-theme');
  else document.documentElement.setAttribute('data-theme', wanted);
  try {
    localStorage.setItem(KEY, wanted);
  } catch {
    // Private windows have no storage; the choice holds until the page is closed.
  }
  colours.value = colours.peek() + 1;
});

matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
  colours.value += 1;
});

/** A colour of the style sheet as it is now. */
export function colour(name: string): string {
  const probe = document.createElement('span');
  probe.style.color = `var(--${name})`;
  probe.hidden = true;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}
