// Loading, doing, and what is said about it.

import { signal } from '@preact/signals';
import { useCallback, useEffect, useRef, useState } from 'preact/hooks';

import { idle } from '../logic/idle';

export interface Loaded<T> {
  data: T | undefined;
  error: string;
  loading: boolean;
  again: () => void;
}

/** Loads when something of `deps` changes; what was loaded before stays until then. */
export function useLoad<T>(load: () => Promise<T>, deps: unknown[]): Loaded<T> {
  const [state, setState] = useState<{ data: T | undefined; error: string; loading: boolean }>({ data: undefined, error: '', loading: true });
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    let current = true;
    setState((old) => ({ ...old, loading: true }));
    load().then(
      (data) => current && setState({ data, error: '', loading: false }),
      (error: unknown) => current && setState((old) => ({ data: old.data, error: inWords(error), loading: false })),
    );
    return () => {
      current = false;
    };
  }, [...deps, turn]);
  return { ...state, again: useCallback(() => setTurn((n) => n + 1), []) };
}

/** Loads again at intervals while the page is looked at: what stands there is as it is, not as it was. */
export function useFresh(again: () => void, every: number): void {
  const latest = useRef(again);
  latest.current = again;
  useEffect(() => {
    const timer = setInterval(() => {
      if (!document.hidden && !idle()) latest.current();
    }, every);
    return () => clearInterval(timer);
  }, [every]);
}

export interface Doing {
  busy: boolean;
  error: string;
  /** Runs `work`; what it returns is said to everybody. */
  run: (work: () => Promise<string | undefined>, then?: () => void) => void;
  forget: () => void;
}

export function useDoing(): Doing {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState('');
  const here = useRef(true);
  useEffect(() => () => {
    here.current = false;
  }, []);
  const run = (work: () => Promise<string | undefined>, then?: () => void) => {
    if (busy) return;
    setBusy(true);
    setError('');
    work().then(
      (text) => {
        if (text) say(text);
        if (here.current) setBusy(false);
        then?.();
      },
      (problem: unknown) => {
        if (!here.current) return;
        setBusy(false);
        setError(inWords(problem));
      },
    );
  };
  return { busy, error, run, forget: () => setError('') };
}

export function inWords(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** What was done last, for eyes and ears. */
export const said = signal<{ text: string; n: number } | null>(null);
let count = 0;
let timer: ReturnType<typeof setTimeout> | undefined;

export function say(text: string): void {
  count += 1;
  said.value = { text, n: count };
  clearTimeout(timer);
  timer = setTimeout(() => {
    said.value = null;
  }, 8000);
}
