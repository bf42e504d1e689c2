// What changed between two pieces of JSON, line by line.

export interface Line {
  kind: 'same' | 'gone' | 'new';
  text: string;
}

/** Beyond this the lines are shown one after the other instead of beside each other: the table is quadratic. */
const MOST = 1500;

function lines(json: string | null): string[] {
  if (json === null || json === '') return [];
  try {
    return JSON.stringify(JSON.parse(json), null, 2).split('\n');
  } catch {
    return json.split('\n');
  }
}

/** The longest common lines stay, all others go or come. */
export function diff(before: string | null, after: string | null): Line[] {
  const [a, b] = [lines(before), lines(after)];
  if (a.length > MOST || b.length > MOST) {
    return [...a.map((text): Line => ({ kind: 'gone', text })), ...b.map((text): Line => ({ kind: 'new', text }))];
  }
  // longest[i][j]: of what begins at i and at j.
  const longest = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  const at = (i: number, j: number) => longest[i]?.[j] ?? 0;
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      const row = longest[i];
      if (row) row[j] = a[i] === b[j] ? at(i + 1, j + 1) + 1 : Math.max(at(i + 1, j), at(i, j + 1));
    }
  }
  const out: Line[] = [];
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      out.push({ kind: 'same', text: a[i] ?? '' });
      i += 1;
      j += 1;
    } else if (i < a.length && (j >= b.length || at(i + 1, j) >= at(i, j + 1))) {
      out.push({ kind: 'gone', text: a[i] ?? '' });
      i += 1;
    } else {
      out.push({ kind: 'new', text: b[j] ?? '' });
      j += 1;
    }
  }
  return out;
}
