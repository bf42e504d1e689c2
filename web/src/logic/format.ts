// Numbers and times for people.

const COUNT = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const COMPACT = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });
const DATE = new Intl.DateTimeFormat('en-GB', { year: 'numeric', month: 'short', day: 'numeric' });
const MOMENT = new Intl.DateTimeFormat('en-GB', {
  year: 'numeric', month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit',
});

export function count(value: number): string {
  return Math.abs(value) < 100_000 ? COUNT.format(value) : COMPACT.format(value);
}

/** A rate: one decimal while it is small. */
export function rate(value: number): string {
  return value > 0 && value < 10 ? value.toFixed(1) : count(value);
}

export function bytes(value: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let at = 0;
  let left = value;
  while (left >= 1000 && at < units.length - 1) {
    left /= 1000;
    at += 1;
  }
  return `${at === 0 || left >= 100 ? left.toFixed(0) : left.toFixed(1)} ${units[at] ?? ''}`;
}

export function date(at: number): string {
  return DATE.format(at);
}

export function moment(at: number): string {
  return MOMENT.format(at);
}

const STEPS: [number, string][] = [
  [86_400_000, 'd'],
  [3_600_000, 'h'],
  [60_000, 'min'],
  [1000, 's'],
];

/** A length of time by its two largest units: `2 d 3 h`. */
export function duration(milliseconds: number): string {
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  const parts: string[] = [];
  let left = milliseconds;
  for (const [size, unit] of STEPS) {
    const whole = Math.floor(left / size);
    if (whole > 0) parts.push(`${whole} ${unit}`);
    else if (parts.length > 0) break;
    left -= whole * size;
    if (parts.length === 2) break;
  }
  return parts.join(' ');
}

/** `5 min ago`, `in 2 h`; older or later than four weeks as a date. */
export function ago(at: number, now: number = Date.now()): string {
  const distance = now - at;
  if (Math.abs(distance) > 28 * 86_400_000) return date(at);
  if (Math.abs(distance) < 5000) return 'now';
  const largest = duration(Math.abs(distance)).split(' ').slice(0, 2).join(' ');
  return distance > 0 ? `${largest} ago` : `in ${largest}`;
}

/** `no-new-contacts` to `no new contacts`. */
export function words(name: string): string {
  return name.replaceAll('-', ' ').replaceAll('_', ' ');
}

export function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** One thing or many: `1 report`, `2 reports`. */
export function many(n: number, one: string, more: string = `${one}s`): string {
  return `${count(n)} ${n === 1 ? one : more}`;
}

/** The value of a datetime-local field, in the local zone. */
export function toField(at: number): string {
  const local = new Date(at - new Date(at).getTimezoneOffset() * 60_000);
  return local.toISOString().slice(0, 16);
}

/** Milliseconds since 1970, or nothing for an empty or wrong field. */
export function fromField(text: string): number | null {
  const at = text ? new Date(text).getTime() : NaN;
  return Number.isNaN(at) ? null : at;
}
