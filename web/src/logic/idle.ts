// Whether somebody is there: a page that nobody touches must not keep a session alive for ever (`console.idle_timeout`).

const IDLE = 20 * 60_000;

let touched = Date.now();
for (const kind of ['pointerdown', 'pointermove', 'keydown', 'wheel', 'touchstart']) {
  addEventListener(kind, () => {
    touched = Date.now();
  }, { passive: true });
}

export function idle(): boolean {
  return Date.now() - touched > IDLE;
}
