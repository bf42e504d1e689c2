// This moment, asked for every two seconds while the page is looked at.

import { effect, signal } from '@preact/signals';

import { get } from './api/client';
import { session } from './api/session';
import type { NowView } from './api/types';
import { idle } from './logic/idle';
import { Ring } from './logic/ring';
import { inWords } from './parts/hooks';

const EVERY = 2000;
/** Seconds that the live chart shows. */
export const SPAN = 300;

export const now = signal<NowView | null>(null);
export const lost = signal('');
export const live = signal<number[][]>([[], [], [], []]);

let ring = new Ring(3, SPAN);

async function ask(): Promise<void> {
  try {
    const found = await get('now', '/now');
    ring.push(found.at / 1000, [found.inside, found.outside_in, found.outside_out]);
    live.value = ring.columns();
    now.value = found;
    lost.value = '';
  } catch (error) {
    lost.value = inWords(error);
  }
}

/** What was before this page was looked at: the chart does not begin empty. */
async function remember(into: Ring): Promise<void> {
  try {
    const { step, points } = await get('history', '/domains/history', { hours: 1 });
    const rows = points.map((it): [number, number[]] => [
      (it.at + step) / 1000,
      [it.inside_in, it.stanzas_in, it.stanzas_out].map((count) => (count * 1000) / step),
    ]);
    // The last point is of ten seconds that are not over.
    if (into === ring) live.value = into.before(rows.slice(0, -1));
  } catch {
    // It begins empty, then.
  }
}

/** Asks at once, because something was changed. */
export function hurry(): void {
  void ask();
}

effect(() => {
  const scopes = session.value?.scopes;
  if (!scopes?.includes('read')) {
    now.value = null;
    ring = new Ring(3, SPAN);
    return undefined;
  }
  let timer: ReturnType<typeof setTimeout> | undefined;
  let over = false;
  const turn = async () => {
    if (idle()) lost.value = 'Nobody has moved for twenty minutes, so this page no longer asks. Move to go on.';
    else if (!document.hidden) await ask();
    if (!over) timer = setTimeout(() => void turn(), EVERY);
  };
  void remember(ring);
  void turn();
  return () => {
    over = true;
    clearTimeout(timer);
  };
});
