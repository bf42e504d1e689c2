// A question that comes before everything else. The browser keeps the focus inside and closes it on Escape.

import type { ComponentChildren } from 'preact';
import { useId, useLayoutEffect, useRef } from 'preact/hooks';

import { Wrong } from './basics';
import { type Doing, useDoing } from './hooks';

export function Dialog(props: { title: string; onClose: () => void; children: ComponentChildren; wide?: boolean }) {
  const frame = useRef<HTMLDialogElement>(null);
  const before = useRef<Element | null>(null);
  const id = useId();
  useLayoutEffect(() => {
    before.current = document.activeElement;
    frame.current?.showModal();
    // Not in an effect of its own: whoever is quick closes the dialog before that has run.
    return () => {
      frame.current?.close();
      if (before.current instanceof HTMLElement && before.current.isConnected) before.current.focus();
    };
  }, []);
  return (
    <dialog ref={frame} class={props.wide ? 'wide' : ''} aria-labelledby={id} onCancel={(event) => {
      event.preventDefault();
      props.onClose();
    }}>
      <h2 id={id}>{props.title}</h2>
      {props.children}
    </dialog>
  );
}

export interface FormProps {
  /** What the button says. */
  act: string;
  danger?: boolean;
  /** Returns what is said afterwards; `null`: the form is not complete, its fields say why. */
  work: () => Promise<string | undefined> | null;
  onDone: () => void;
  onCancel?: () => void;
  doing?: Doing;
  children: ComponentChildren;
}

/** A form that does one thing, and says what went wrong where one looks. */
export function Form(props: FormProps) {
  const own = useDoing();
  const doing = props.doing ?? own;
  return (
    <form noValidate={false} onSubmit={(event) => {
      event.preventDefault();
      const work = props.work();
      if (work) doing.run(() => work, props.onDone);
    }}>
      {props.children}
      <Wrong text={doing.error} />
      <div class="actions">
        {props.onCancel && <button type="button" onClick={props.onCancel}>Cancel</button>}
        <button type="submit" class={props.danger ? 'danger' : 'primary'} disabled={doing.busy}>{doing.busy ? 'One moment…' : props.act}</button>
      </div>
    </form>
  );
}
