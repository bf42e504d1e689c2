import { h } from 'preact';
import { describe, expect, test } from 'vitest';

import { query } from '../src/api/client';
import type { Rule } from '../src/api/types';
import { diff } from '../src/logic/diff';
import { ago, bytes, count, duration, fromField, many, rate, toField } from '../src/logic/format';
import { href, parse } from '../src/logic/place';
import { choices, isOurs } from '../src/logic/reports';
import { Ring } from '../src/logic/ring';
import { EMPTY, blockOf, conditionsInWords, ruleInWords, toForm, toRule } from '../src/logic/rules';
import { visible } from '../src/parts/foreign';

describe('what others write', () => {
  test('marks that turn or hide text are shown as what they are, in texts and titles, wherever they stand', () => {
    expect(visible('a\u202Egnp.exe\u2066\u0085')).toBe('a[U+202E]gnp.exe[U+2066][U+0085]');
    // Words of another direction, joined letters and ends of lines are no tricks.
    const innocent = '\u05E9\u05DC\u05D5\u05DD \u200D\u{1F469}\n\tx';
    expect(visible(innocent)).toBe(innocent);
    const made = h('p', { title: '\u202E' }, ['x', ['\u202D', h('b', null, '\u202C')]]);
    const text = JSON.stringify(made.props);
    for (const mark of ['202E', '202D', '202C']) expect(text).toContain(`[U+${mark}]`);
    expect(text).not.toMatch(/[\u202A-\u202E]/);
  });
});

describe('numbers and times', () => {
  test('durations have their two largest units, and no hole between them', () => {
    expect(duration(400)).toBe('400 ms');
    expect(duration(59_000)).toBe('59 s');
    expect(duration(3_600_000)).toBe('1 h');
    expect(duration(2 * 86_400_000 + 3 * 3_600_000 + 59_000)).toBe('2 d 3 h');
    expect(duration(86_400_000 + 5000)).toBe('1 d');
  });

  test('past and future are told apart', () => {
    expect(ago(1_000_000, 1_000_000 + 300_000)).toBe('5 min ago');
    expect(ago(1_000_000 + 7_200_000, 1_000_000)).toBe('in 2 h');
    expect(ago(1_000_000, 1_001_000)).toBe('now');
    expect(ago(0, 40 * 86_400_000)).toBe('1 Jan 1970');
  });

  test('small rates keep a decimal, large counts become short', () => {
    expect([rate(0), rate(0.4), rate(12.6)]).toEqual(['0', '0.4', '13']);
    expect([count(99_999), count(1_250_000)]).toEqual(['99,999', '1.3M']);
    expect([bytes(999), bytes(1500), bytes(123_456_789)]).toEqual(['999 B', '1.5 kB', '123 MB']);
    expect([many(1, 'reply', 'replies'), many(2, 'report')]).toEqual(['1 reply', '2 reports']);
  });

  test('a field for a time gives back the minute it was given', () => {
    const at = Date.UTC(2026, 5, 1, 12, 30);
    expect(fromField(toField(at))).toBe(at);
    expect([fromField(''), fromField('soon')]).toEqual([null, null]);
  });
});

describe('rules', () => {
  const rule: Rule = {
    when: {
      domain: 'spam.example', subdomains: true, address: 'x@spam.example', first_seen_within: 86_400, authentication: 'dialback',
      relation: ['stranger'], kind: ['message', 'call'], has: ['link', 'media'], larger_than: 1000, faster_than: 60,
      reputation_below: 30, listed_in: 'jabberspam',
    },
    direction: 'in', then: { do: 'limit', per_minute: 5 }, reason: 'flood', until: 1_800_000_000_000, shadow: true,
  };

  test('a form loses nothing of a rule', () => {
    expect(toRule(toForm(rule))).toEqual({ rule });
    for (const then of [{ do: 'mark', text: 'new here' }, { do: 'reject', condition: 'gone', text: 'no' }, { do: 'reject' }, { do: 'hold' }] as const) {
      const other = { ...rule, then };
      expect(toRule(toForm(other))).toEqual({ rule: other });
    }
  });

  test('what is empty is not asked', () => {
    expect(toRule({ ...EMPTY, reason: 'all' })).toEqual({
      rule: { when: {}, direction: 'in', then: { do: 'reject' }, reason: 'all', until: null, shadow: false },
    });
  });

  test('each wrong field is named', () => {
    const wrong = toRule({
      ...EMPTY, domain: 'a b', address: 'nobody', largerThan: '-1', fasterThan: '1.5', seenWithinHours: 'x', reputationBelow: '101',
      action: 'mark', mark: ' ',
    });
    expect('wrong' in wrong && Object.keys(wrong.wrong).sort()).toEqual(
      ['address', 'domain', 'fasterThan', 'largerThan', 'mark', 'reason', 'reputationBelow', 'seenWithinHours']);
    expect(toRule({ ...EMPTY, reason: 'r', action: 'limit', perMinute: '' })).toHaveProperty('wrong.perMinute');
  });

  test('a number that the chosen action does not use is not looked at', () => {
    expect(toRule({ ...EMPTY, reason: 'r', action: 'drop', perMinute: 'junk' })).toHaveProperty('rule.then', { do: 'drop' });
  });

  test('every condition is said', () => {
    expect(conditionsInWords(rule.when)).toHaveLength(11);
    expect(ruleInWords({ ...rule, until: null, when: { domain: 'a.example' } })).toBe('from outside: a.example: limit to 5 a minute');
    expect(ruleInWords({ ...rule, until: null, when: {}, direction: 'out', then: { do: 'reject', condition: 'gone' } }))
      .toBe('to the outside: everything: reject (gone)');
  });
});

test('a block holds for what is below when asked, and for no name that only ends alike', () => {
  const block = (domain: string, subdomains: boolean) => ({ block: { domain, subdomains, reason: '', until: null }, set_by: '', set_at: 0, configured: false });
  const blocks = [block('one.example', false), block('two.example', true)];
  expect(['one.example', 'a.one.example', 'a.two.example', 'two.example', 'nottwo.example'].map((it) => blockOf(it, blocks)?.block.domain))
    .toEqual(['one.example', undefined, 'two.example', 'two.example', undefined]);
});

describe('differences', () => {
  const kinds = (before: string | null, after: string | null) => diff(before, after).map((it) => `${it.kind} ${it.text.trim()}`);

  test('only what changed is marked', () => {
    expect(kinds('{"a":1,"b":2}', '{"a":1,"b":3}')).toEqual(['same {', 'same "a": 1,', 'gone "b": 2', 'new "b": 3', 'same }']);
  });

  test('nothing before, nothing after, and what is no JSON', () => {
    expect(kinds(null, '1')).toEqual(['new 1']);
    expect(kinds('x y', null)).toEqual(['gone x y']);
    expect(kinds(null, null)).toEqual([]);
  });

  test('a huge change does not stop the page', () => {
    const huge = JSON.stringify(Array.from({ length: 5000 }, (_, n) => n));
    expect(diff(huge, '[]').filter((it) => it.kind === 'gone')).toHaveLength(5002);
  });
});

describe('places', () => {
  test('what href writes, parse reads', () => {
    const place = parse(href('domains', 'münchen.example/x', { sort: 'in', search: '' }));
    expect([place.page, place.item, place.query.toString()]).toEqual(['domains', 'münchen.example/x', 'sort=in']);
  });

  test('anything typed leads somewhere', () => {
    expect(parse('')).toMatchObject({ page: 'now', item: null });
    expect(parse('#/domains/%E0%A4')).toMatchObject({ page: 'domains', item: '%E0%A4' });
  });
});

test('a query has only what was given', () => {
  expect(query({ search: 'a&b', sort: '', open_only: true, domain: null, before: undefined, off: false })).toBe('?search=a%26b&open_only=true');
  expect(query({ offset: 0 })).toBe('?offset=0');
  expect(query({})).toBe('');
});

test('a ring forgets what is too old and ignores what came twice', () => {
  const ring = new Ring(2, 10);
  ring.push(1, [1, 2]);
  ring.push(1, [9, 9]);
  ring.push(5, [3]);
  ring.push(12, [5, 6]);
  expect(ring.columns()).toEqual([[5, 12], [3, 5], [0, 6]]);
});

test('a ring begins with what was before', () => {
  const ring = new Ring(1, 10);
  ring.push(12, [5]);
  expect(ring.before([[1, [1]], [3, [3]], [11, [4]], [12, [9]]])).toEqual([[3, 11, 12], [3, 4, 5]]);
  expect(new Ring(1, 10).before([[1, [1]], [12, [2]]])).toEqual([[12], [2]]);
});

describe('reports', () => {
  const open = { state: 'open', origin: 'user', may_forward: true, forwarded_to: null };

  test('what the server would refuse is not offered', () => {
    expect(choices(open, false)).toEqual(['dismiss', 'warn', 'limit', 'block-sender', 'block-domain', 'forward']);
    expect(choices({ ...open, may_forward: false }, false)).not.toContain('forward');
    expect(choices({ ...open, forwarded_to: 'abuse@bad.example' }, false)).not.toContain('forward');
    expect(choices({ ...open, state: 'handled' }, false)).toEqual(['forward']);
    expect(choices({ ...open, state: 'handled', forwarded_to: 'bad.example' }, false)).toEqual([]);
    expect(choices(open, true)).toEqual(['dismiss', 'warn']);
    expect(choices({ ...open, origin: 'outside' }, true)).toEqual(['dismiss', 'warn']);
  });

  test('who is of this server is known', () => {
    const about = (address: string, origin = 'user') => isOurs({ about: address, origin }, ['a.example', 'b.example']);
    expect(about('iago@b.example')).toBe(true);
    expect(about('iago@bad.example')).toBe(false);
    expect(about('bad.example')).toBe(false);
    expect(about('iago@old.example', 'outside')).toBe(true);
  });
});
