// Small pieces that every page uses.

import type { ComponentChildren } from 'preact';
import { useEffect, useId, useRef } from 'preact/hooks';

import type { Level } from '../api/types';
import { ago, capital, moment } from '../logic/format';
import { LEVEL } from '../logic/rules';
import type { Loaded } from './hooks';

let moved = false;

/** From now on a new page takes the focus. */
export function move(): void {
  moved = true;
}

export function Page(props: { title: string; lead?: ComponentChildren; aside?: ComponentChildren; children: ComponentChildren }) {
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    document.title = `${props.title} · Trunkline`;
  }, [props.title]);
  // Who moves by keyboard or ear begins at the top of the new page; but not when the console is opened.
  useEffect(() => {
    if (moved) heading.current?.focus({ preventScroll: true });
    move();
    window.scrollTo(0, 0);
  }, [props.title]);
  return (
    <>
      <header class="page-head">
        <div>
          <h1 ref={heading} tabIndex={-1}>{props.title}</h1>
          {props.lead && <p class="lead">{props.lead}</p>}
        </div>
        {props.aside && <div class="page-aside">{props.aside}</div>}
      </header>
      {props.children}
    </>
  );
}

export function Panel(props: { title: string; aside?: ComponentChildren; children: ComponentChildren; class?: string; note?: ComponentChildren }) {
  const id = useId();
  return (
    <section class={`panel ${props.class ?? ''}`} aria-labelledby={id}>
      <header class="panel-head">
        <h2 id={id}>{props.title}</h2>
        {props.aside && <div class="panel-aside">{props.aside}</div>}
      </header>
      {props.note && <p class="note">{props.note}</p>}
      {props.children}
    </section>
  );
}

export function Wrong(props: { text: string; again?: (() => void) | undefined }) {
  if (!props.text) return null;
  return (
    <div class="wrong" role="alert">
      <p>{props.text}</p>
      {props.again && <button type="button" class="plain" onClick={props.again}>Try again</button>}
    </div>
  );
}

/** What stands in a page's place while it loads, or why there is nothing. */
export function Waiting<T>(props: { of: Loaded<T>; children: (data: T) => ComponentChildren }) {
  const { data, error, loading, again } = props.of;
  return (
    <>
      <Wrong text={error} again={again} />
      {data !== undefined ? props.children(data) : loading && <p class="quiet" role="status">Loading…</p>}
    </>
  );
}

export function Time(props: { at: number | null | undefined; none?: string }) {
  if (props.at == null || props.at === 0) return <span class="quiet">{props.none ?? 'never'}</span>;
  return <time dateTime={new Date(props.at).toISOString()} title={moment(props.at)}>{ago(props.at)}</time>;
}

/** What somebody wrote, in a line of ours: its direction stays its own. */
export function Said(props: { text: string }) {
  return <bdi>{props.text}</bdi>;
}

/** An address or a domain: a narrow column breaks it after its parts only. */
export function Name(props: { of: string }) {
  return <span class="mono">{props.of.split(/(?<=[@.])/).map((part, n) => <>{n > 0 && <wbr />}{part}</>)}</span>;
}

export function Lamp(props: { tone: Tone; children: ComponentChildren }) {
  return <span class={`lamp ${props.tone}`}><span class="bulb" aria-hidden="true" />{props.children}</span>;
}

export type Tone = 'good' | 'calm' | 'warn' | 'bad';

export const TONE: Record<Level, Tone> = {
  normal: 'good', 'no-new-contacts': 'warn', 'granted-only': 'warn', 'text-only': 'warn', closed: 'bad',
};

export function LevelLamp(props: { level: Level }) {
  return <Lamp tone={TONE[props.level]}>{LEVEL[props.level].name}</Lamp>;
}

const STATES: Record<string, Tone> = { connected: 'good', connecting: 'calm', idle: 'calm', waiting: 'warn', blocked: 'bad', closed: 'bad' };

export function StateLamp(props: { state: string }) {
  return <Lamp tone={STATES[props.state] ?? 'calm'}>{capital(props.state)}</Lamp>;
}

/** 0 to 100, as a bar and a number. */
export function Score(props: { value: number }) {
  const tone = props.value < 30 ? 'bad' : props.value < 60 ? 'warn' : 'good';
  return (
    <span class={`score ${tone}`}>
      <span class="score-bar" aria-hidden="true"><span style={{ width: `${Math.max(2, Math.min(100, props.value))}%` }} /></span>
      <span class="number">{props.value}</span>
    </span>
  );
}

export function Facts(props: { rows: [string, ComponentChildren][] }) {
  return (
    <dl class="facts">
      {props.rows.map(([name, value]) => <div key={name}><dt>{name}</dt><dd>{value}</dd></div>)}
    </dl>
  );
}

/** Names with counts, as bars from the largest. */
export function Bars(props: { rows: { name: ComponentChildren; key: string; value: number; shown: string }[]; none: string; tone?: Tone }) {
  const most = Math.max(1, ...props.rows.map((it) => it.value));
  if (!props.rows.length) return <p class="quiet">{props.none}</p>;
  return (
    <ul class={`bars ${props.tone ?? 'calm'}`}>
      {props.rows.map((it) => (
        <li key={it.key}>
          <span class="bar-name">{it.name}</span>
          <span class="number">{it.shown}</span>
          <span class="bar" aria-hidden="true"><span style={{ width: `${(100 * it.value) / most}%` }} /></span>
        </li>
      ))}
    </ul>
  );
}

/** Offers to copy what is shown once only. */
export function Copyable(props: { text: string; label: string }) {
  const id = useId();
  const field = useRef<HTMLTextAreaElement>(null);
  return (
    <div class="field">
      <label for={id}>{props.label}</label>
      <textarea id={id} ref={field} class="mono" readOnly rows={2} value={props.text} onFocus={(event) => event.currentTarget.select()} />
      <button type="button" class="plain" onClick={() => {
        field.current?.select();
        void navigator.clipboard.writeText(props.text).catch(() => undefined);
      }}>Copy</button>
    </div>
  );
}
