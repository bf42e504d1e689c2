// What people could write wherever others read it: markup, marks that turn the direction of text, words without an end.
// `TRUNKLINE_MOCK=hostile npm run preview` puts it into every answer.

const MARKUP = '<img src=x id=evil onerror=alert(1)><b id=evil>bold</b><script id=evil>alert(2)</script><a id=evil href="javascript:alert(3)">&lt;i&gt;</a>';
/** U+202E turns what follows it, U+2066 is never closed. */
const TURNED = '\u202Egnp.exe \u2066\u05E9\u05DC\u05D5\u05DD';
const TEXT = `${MARKUP} ${TURNED} ${'w'.repeat(300)}`;
/** As long as a domain may be, and one that is read from the right. */
const DOMAINS = [`${'a'.repeat(63)}.${'b'.repeat(63)}.${'c'.repeat(63)}.${'d'.repeat(53)}.example`, '\u05D3\u05D5\u05D0\u05E8.\u05E9\u05DC\u05D5\u05DD'];

const TEXTS = new Set(['reason', 'text', 'why', 'affiliation', 'last_error', 'software', 'device', 'by']);
const LISTS_OF_TEXTS = new Set(['stanza_ids', 'actions', 'contacts', 'certificate', 'resources', 'problems', 'warnings', 'needs_restart', 'trace']);
const ADDRESSES = new Set(['about', 'reporter', 'from']);

function domain(n: number): string {
  return n % 2 ? `n${n}.${DOMAINS[1] ?? ''}` : `n${n}.${(DOMAINS[0] ?? '').slice(5)}`;
}

/** An outsider's: local parts may not have markup (RFC 7622 s.3.3.1), resources may. */
function address(n: number): string {
  return `${'x'.repeat(120)}@${domain(n)}/${MARKUP}`;
}

/** The same answer with the worst of texts in it. `n` makes names that differ where rows do. */
export function hostile(value: unknown, n = 0, name = ''): unknown {
  if (Array.isArray(value)) {
    if (name === 'messages') return value.map(() => `<message xmlns='jabber:client'><body>${TEXT.replaceAll('&', '&amp;').replaceAll('<', '&lt;')}</body></message>`);
    if (LISTS_OF_TEXTS.has(name)) return value.map((_, at) => `${at} ${TEXT}`);
    if (name === 'busiest') return (value as [string, number][]).map(([, count], at) => [domain(at), count]);
    if (name === 'reputation_reasons') return (value as [number, string][]).map(([points], at) => [points, `${at} ${TEXT}`]);
    return value.map((it, at) => hostile(it, at));
  }
  if (typeof value === 'object' && value !== null) {
    const row = value as Record<string, unknown>;
    return Object.fromEntries(Object.entries(row).map(([key, it]) => [key, field(row, key, it, n)]));
  }
  return value;
}

function field(row: Record<string, unknown>, key: string, value: unknown, n: number): unknown {
  if (typeof value !== 'string') return hostile(value, n, key);
  if (TEXTS.has(key)) return TEXT;
  if (ADDRESSES.has(key)) return address(n);
  switch (key) {
    case 'domain': return domain(n);
    // Who registers here chooses the local part.
    case 'address': return 'node' in row ? address(n) : `n${n}-${'y'.repeat(200)}@trunkline.example`;
    case 'entry': return domain(n);
    case 'node': return `${MARKUP}${'n'.repeat(200)}`;
    case 'service': return domain(n);
    // A list's state has what its service answered; a token's name is anybody's.
    case 'state': return 'node' in row ? TEXT : value;
    case 'name': return 'scopes' in row ? `${n} ${TEXT}` : value;
    case 'before':
    case 'after': return JSON.stringify({ reason: TEXT });
    default: return value;
  }
}
