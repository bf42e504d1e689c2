// Form fields, each with its label, what it is for, and what is wrong with it.

import type { ComponentChildren } from 'preact';
import { useId, useLayoutEffect, useRef, useState } from 'preact/hooks';

import { fromField, toField } from '../logic/format';

interface About {
  label: string;
  hint?: ComponentChildren;
  wrong?: string | undefined;
}

function Frame(props: About & { id: string; children: ComponentChildren; class?: string }) {
  return (
    <div class={`field ${props.class ?? ''}`}>
      <label for={props.id}>{props.label}</label>
      {props.children}
      {props.hint && <p class="hint" id={`${props.id}-hint`}>{props.hint}</p>}
      {props.wrong && <p class="field-wrong" id={`${props.id}-wrong`}>{props.wrong}</p>}
    </div>
  );
}

function described(id: string, props: About) {
  const by = [props.hint && `${id}-hint`, props.wrong && `${id}-wrong`].filter(Boolean).join(' ');
  return { 'aria-invalid': props.wrong ? ('true' as const) : undefined, 'aria-describedby': by || undefined };
}

interface TextProps extends About {
  value: string;
  onInput: (value: string) => void;
  type?: 'text' | 'password';
  required?: boolean;
  autoComplete?: string;
  inputMode?: 'numeric' | 'text' | 'email';
  placeholder?: string;
  mono?: boolean;
  pattern?: string;
  maxLength?: number;
  autoFocus?: boolean;
}

export function Text(props: TextProps) {
  const id = useId();
  // The types of JSX want one literal for each element.
  const field = useRef<HTMLInputElement>(null);
  // A dialog looks for the attribute when it opens; elsewhere it is too late for it.
  useLayoutEffect(() => {
    if (props.autoFocus) field.current?.focus();
  }, []);
  const kind = { type: props.type ?? 'text' } as { type: 'text' };
  return (
    <Frame {...props} id={id}>
      <input id={id} ref={field} {...kind} autofocus={props.autoFocus} value={props.value} required={props.required} autocomplete={(props.autoComplete ?? 'off')}
        inputMode={props.inputMode} placeholder={props.placeholder} class={props.mono ? 'mono' : ''} pattern={props.pattern} maxLength={props.maxLength}
        spellcheck={false} autocapitalize="none"
        {...described(id, props)} onInput={(event) => props.onInput(event.currentTarget.value)} />
    </Frame>
  );
}

export function Area(props: About & { value: string; onInput: (value: string) => void; rows?: number; required?: boolean; mono?: boolean }) {
  const id = useId();
  return (
    <Frame {...props} id={id}>
      <textarea id={id} rows={props.rows ?? 3} value={props.value} required={props.required} class={props.mono ? 'mono' : ''} spellcheck={false}
        {...described(id, props)} onInput={(event) => props.onInput(event.currentTarget.value)} />
    </Frame>
  );
}

export function Select<T extends string>(props: About & { value: T; options: [T, string][]; onChange: (value: T) => void }) {
  const id = useId();
  return (
    <Frame {...props} id={id}>
      <select id={id} value={props.value} {...described(id, props)} onChange={(event) => props.onChange(event.currentTarget.value as T)}>
        {props.options.map(([value, label]) => <option key={value} value={value}>{label}</option>)}
      </select>
    </Frame>
  );
}

export function Check(props: { label: ComponentChildren; value: boolean; onChange: (value: boolean) => void; hint?: string }) {
  const id = useId();
  return (
    <div class="check">
      <input id={id} type="checkbox" checked={props.value} aria-describedby={props.hint ? `${id}-hint` : undefined} onChange={(event) => props.onChange(event.currentTarget.checked)} />
      <label for={id}>{props.label}</label>
      {props.hint && <p class="hint" id={`${id}-hint`}>{props.hint}</p>}
    </div>
  );
}

/** Any number of some choices. */
export function Some<T extends string>(props: { label: string; options: [T, string][]; value: T[]; onChange: (value: T[]) => void }) {
  return (
    <fieldset class="some">
      <legend>{props.label}</legend>
      {props.options.map(([value, label]) => (
        <Check key={value} label={label} value={props.value.includes(value)}
          onChange={(on) => props.onChange(props.options.map(([it]) => it).filter((it) => (it === value ? on : props.value.includes(it))))} />
      ))}
    </fieldset>
  );
}

/** Exactly one of some choices, each with what it means. */
export function One<T extends string>(props: { label: string; name: string; options: [T, string, string?][]; value: T | null; onChange: (value: T) => void }) {
  const id = useId();
  return (
    <fieldset class="one">
      <legend>{props.label}</legend>
      {props.options.map(([value, label, means]) => (
        <div class="choice" key={value}>
          <input type="radio" id={`${id}-${value}`} name={`${props.name}-${id}`} value={value} checked={props.value === value} required
            aria-describedby={means ? `${id}-${value}-means` : undefined} onChange={() => props.onChange(value)} />
          <label for={`${id}-${value}`}>{label}</label>
          {means && <p class="hint" id={`${id}-${value}-means`}>{means}</p>}
        </div>
      ))}
    </fieldset>
  );
}

const HOUR = 3_600_000;
const ENDS: [string, string][] = [
  [String(HOUR), 'in 1 hour'], [String(8 * HOUR), 'in 8 hours'], [String(24 * HOUR), 'in 1 day'],
  [String(7 * 24 * HOUR), 'in 1 week'], [String(30 * 24 * HOUR), 'in 30 days'], ['at', 'at a time…'],
];

/** When something ends: milliseconds since 1970, or nothing; `unsaid` is what nothing means then. */
export function Until(props: { value: number | null; onChange: (value: number | null) => void; unsaid?: string | undefined }) {
  const [choice, setChoice] = useState(props.value === null ? '' : 'at');
  return (
    <>
      <Select label="It ends" value={choice} options={[['', props.unsaid ?? 'when it is taken back'], ...ENDS]} onChange={(chosen) => {
        setChoice(chosen);
        props.onChange(chosen === '' ? null : Date.now() + (chosen === 'at' ? HOUR : Number(chosen)));
      }} />
      {choice === 'at' && <Moment value={props.value} onChange={props.onChange} />}
    </>
  );
}

function Moment(props: { value: number | null; onChange: (value: number | null) => void }) {
  const id = useId();
  return (
    <div class="field">
      <label for={id}>On</label>
      <input id={id} type="datetime-local" required value={props.value === null ? '' : toField(props.value)} onChange={(event) => props.onChange(fromField(event.currentTarget.value))} />
    </div>
  );
}

/** A field to search with: what is typed counts when one stops typing. */
export function Search(props: { label: string; value: string; onSearch: (text: string) => void }) {
  const id = useId();
  const [timer, setTimer] = useState<ReturnType<typeof setTimeout>>();
  return (
    <form class="search" role="search" onSubmit={(event) => {
      event.preventDefault();
      clearTimeout(timer);
      props.onSearch((new FormData(event.currentTarget).get('search') as string | null) ?? '');
    }}>
      <label for={id} class="visually-hidden">{props.label}</label>
      <input id={id} name="search" type="search" defaultValue={props.value} placeholder={props.label} spellcheck={false} autocapitalize="none" autocomplete="off" onInput={(event) => {
        const text = event.currentTarget.value;
        clearTimeout(timer);
        setTimer(setTimeout(() => props.onSearch(text), 300));
      }} />
    </form>
  );
}
