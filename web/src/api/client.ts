// The one function that fetches.

import type { Outcomes, ProblemBody } from './types';

const BASE = '/api/v1';
/** An answer that takes longer is none. */
const PATIENCE = 20_000;

/** What went wrong, in words for a person. */
export class Problem extends Error {
  readonly status: number;

  constructor(status: number, body: ProblemBody) {
    super(words(status, body));
    this.name = 'Problem';
    this.status = status;
  }
}

function words(status: number, body: ProblemBody): string {
  const told = body.detail ?? body.title;
  if (status === 0) return 'The server does not answer. Is it running, and is the network there?';
  if (status === 429) return told ?? 'Too many requests. Wait a moment and try again.';
  if (told) return told;
  if (status >= 500) return 'The server failed. Its log says why.';
  return `The server refused (${status}).`;
}

/** Called when a session has ended without our doing. */
let ended: () => void = () => undefined;
let csrf = '';

export function onEnded(then: () => void): void {
  ended = then;
}

export function useToken(token: string): void {
  csrf = token;
}

export interface Wanted {
  method: 'GET' | 'POST' | 'DELETE';
  path: string;
  body?: unknown;
  /** A 401 is an answer here, not the end of a session. */
  signingIn?: boolean;
}

/** The JSON of an answer; throws a `Problem` for anything else. */
export async function request(wanted: Wanted): Promise<unknown> {
  const headers: Record<string, string> = { Accept: 'application/json' };
  if (wanted.method !== 'GET') headers['X-CSRF-Token'] = csrf;
  if (wanted.body !== undefined) headers['Content-Type'] = 'application/json';
  let response: Response;
  try {
    response = await fetch(`${BASE}${wanted.path}`, {
      method: wanted.method,
      headers,
      body: wanted.body === undefined ? null : JSON.stringify(wanted.body),
      credentials: 'same-origin',
      cache: 'no-store',
      redirect: 'error',
      signal: AbortSignal.timeout(PATIENCE),
    });
  } catch {
    throw new Problem(0, {});
  }
  const text = await response.text().catch(() => '');
  const json = parse(text);
  if (!response.ok) {
    if (response.status === 401 && !wanted.signingIn) ended();
    throw new Problem(response.status, isObject(json) ? (json) : {});
  }
  if (text !== '' && json === undefined) throw new Problem(response.status, { title: 'The server answered something that is not JSON.' });
  return json;
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined;
  }
}

function isObject(value: unknown): value is object {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

export type Fields = Record<string, string | number | boolean | null | undefined>;

/** `?a=1&b=x`, without what is absent, false or empty. */
export function query(fields: Fields): string {
  const parts = new URLSearchParams();
  for (const [name, value] of Object.entries(fields)) {
    if (value === undefined || value === null || value === '' || value === false) continue;
    parts.set(name, String(value));
  }
  const text = parts.toString();
  return text ? `?${text}` : '';
}

/** An operation that changes nothing, and must come to `outcome`. */
export async function get<K extends keyof Outcomes>(outcome: K, path: string, fields: Fields = {}): Promise<Outcomes[K]> {
  return expect(outcome, await request({ method: 'GET', path: path + query(fields) }));
}

/** An operation that changes something, and must come to `outcome`. */
export async function post<K extends keyof Outcomes>(outcome: K, path: string, body: unknown): Promise<Outcomes[K]> {
  return expect(outcome, await request({ method: 'POST', path, body }));
}

/** An operation that says in one sentence what it did. */
export async function change(path: string, body: unknown): Promise<string> {
  const answer = (await request({ method: 'POST', path, body })) as { outcome?: string; text?: string } | undefined;
  return answer?.outcome === 'done' && answer.text ? answer.text : 'Done.';
}

function expect<K extends keyof Outcomes>(outcome: K, answer: unknown): Outcomes[K] {
  if (isObject(answer) && (answer as { outcome?: string }).outcome === outcome) return answer as Outcomes[K];
  throw new Problem(200, { title: `The server answered something else than "${outcome}": is this page older than the server? Load it again.` });
}
