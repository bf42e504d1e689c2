// This moment, asked for every two seconds while the page is looked at.

import { effect, signal } from '@preact/signals';

import { get } from './api/client';
import { session } from './api/session';
import type { NowView } from './api/types';
import { Ring } from './logic/ring';
import { inWords } from './parts/hooks';

const EVERY = 2000;
/** A page that nobody touches must not keep a session alive for ever (`console.idle_timeout`). */
const IDLE = 20 * 60_000;
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

let touched = Date.now();
for (const kind of ['pointerdown', 'pointermove', 'keydown', 'wheel', 'touchstart']) {
  addEventListener(kind, () => {
    touched = Date.now();
  }, { passive: true });
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
    if (Date.now() - touched > IDLE) lost.value = 'Nobody has moved for twenty minutes, so this page no longer asks. Move to go on.';
    else if (!document.hidden) await ask();
    if (!over) timer = setTimeout(() => void turn(), EVERY);
  };
  void turn();
  return () => {
    over = true;
    clearTimeout(timer);
  };
});
