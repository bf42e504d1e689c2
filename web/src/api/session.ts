// Signing in and out, and the second factor. README.md has the conversation.

import { signal } from '@preact/signals';

import { final, first, verify } from '../logic/scram';
import { Problem, onEnded, request, useToken } from './client';
import type { Scope, Session } from './types';

/** `undefined`: not known yet; `null`: nobody is signed in. */
export const session = signal<Session | null | undefined>(undefined);
/** Shown above the sign-in form. */
export const farewell = signal('');

onEnded(() => {
  if (session.value) farewell.value = 'Your session has ended. Sign in again.';
  session.value = null;
});

function enter(found: Session): void {
  useToken(found.csrf);
  farewell.value = '';
  session.value = found;
}

export function may(scope: Scope): boolean {
  return session.value?.scopes.includes(scope) ?? false;
}

/** Whether the cookie is still good. */
export async function resume(): Promise<void> {
  try {
    enter((await request({ method: 'GET', path: '/session', signingIn: true })) as Session);
  } catch (problem) {
    if (!(problem instanceof Problem) || problem.status !== 401) farewell.value = (problem as Error).message;
    session.value = null;
  }
}

interface Answer {
  login?: string;
  server_first?: string;
  server_final?: string;
  second_factor?: boolean;
  session?: Session;
}

async function ask(body: unknown): Promise<Answer> {
  return (await request({ method: 'POST', path: '/session', body, signingIn: true })) as Answer;
}

/** Done, or the function to call with the code of the second factor. */
export async function signIn(address: string, password: string): Promise<undefined | ((code: string) => Promise<void>)> {
  const begun = first(address);
  const challenge = await ask({ client_first: begun.message });
  const { message, expected } = await final(begun, challenge.server_first ?? '', password);
  const outcome = await ask({ login: challenge.login, client_final: message });
  verify(expected, outcome.server_final ?? '');
  if (outcome.session) {
    enter(outcome.session);
    return undefined;
  }
  return async (code) => {
    const answer = await ask({ login: challenge.login, code });
    if (!answer.session) throw new Problem(401, { title: 'The code was not accepted.' });
    enter(answer.session);
  };
}

export async function signOut(): Promise<void> {
  await request({ method: 'DELETE', path: '/session' });
  farewell.value = 'You are signed out.';
  session.value = null;
}

export interface Enrolment {
  uri: string;
  secret: string;
}

export async function beginTotp(): Promise<Enrolment> {
  return (await request({ method: 'POST', path: '/session/totp', body: {} })) as Enrolment;
}

export async function confirmTotp(code: string): Promise<void> {
  await request({ method: 'POST', path: '/session/totp', body: { code } });
  if (session.value) session.value = { ...session.value, totp: true };
}

export async function removeTotp(code: string): Promise<void> {
  await request({ method: 'DELETE', path: '/session/totp', body: { code } });
  if (session.value) session.value = { ...session.value, totp: false };
}
