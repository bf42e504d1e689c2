// The breaker: five positions, a reason, perhaps an end, and a question before it is pulled.

import { useEffect, useId, useState } from 'preact/hooks';

import { change } from '../api/client';
import { may } from '../api/session';
import { LEVELS, type Level, type LevelView } from '../api/types';
import { moment } from '../logic/format';
import { LEVEL } from '../logic/rules';
import { LevelLamp, TONE, Time } from './basics';
import { Dialog, Form } from './dialog';
import { Text, Until } from './fields';

export function Switch(props: { view: LevelView; onChanged: () => void }) {
  const { view } = props;
  const id = useId();
  const [chosen, choose] = useState<Level>(view.level);
  const [asking, ask] = useState(false);
  useEffect(() => choose(view.level), [view.level, view.domain]);
  const free = may('operate');
  const whose = view.domain ?? 'all of the outside';
  return (
    <div class="breaker">
      <fieldset class={`switch ${TONE[view.level]}`} disabled={!free}>
        <legend class="visually-hidden">Breaker for {whose}</legend>
        {LEVELS.map((level, n) => (
          <div key={level} class={`position p${n} ${level === view.level ? 'in-force' : ''}`}>
            <input type="radio" id={`${id}-${level}`} name={id} value={level} checked={chosen === level} onChange={() => choose(level)} />
            <label for={`${id}-${level}`}>
              <span class="lever" aria-hidden="true" />
              <span class="position-name">{LEVEL[level].name}</span>
              {level === view.level && <span class="position-now">in force</span>}
            </label>
          </div>
        ))}
      </fieldset>
      <p class="means">{LEVEL[chosen].means}</p>
      {view.level !== 'normal' && chosen === view.level && (
        <p class="quiet">
          {view.reason && <>“{view.reason}” </>}set by {view.set_by || 'nobody'} <Time at={view.set_at} />
          {view.until !== null && <>, ends <Time at={view.until} /></>}
        </p>
      )}
      {free && (chosen !== 'normal' || view.level !== 'normal') && (
        <div class="actions start">
          <button type="button" class={chosen === view.level ? '' : TONE[chosen] === 'good' ? 'primary' : 'danger'} onClick={() => ask(true)}>
            {chosen === view.level ? 'Change reason or end…' : `Switch to “${LEVEL[chosen].name}”…`}
          </button>
          {chosen !== view.level && <button type="button" class="plain" onClick={() => choose(view.level)}>Leave as it is</button>}
        </div>
      )}
      {asking && <Ask view={view} level={chosen} onClose={() => ask(false)} onDone={() => {
        ask(false);
        props.onChanged();
      }} />}
    </div>
  );
}

function Ask(props: { view: LevelView; level: Level; onClose: () => void; onDone: () => void }) {
  const { view, level } = props;
  const [why, setWhy] = useState(view.level === level ? view.reason : '');
  const [until, setUntil] = useState<number | null>(null);
  const whose = view.domain ?? 'all of the outside';
  return (
    <Dialog title={`${LEVEL[level].name}, for ${whose}?`} onClose={props.onClose}>
      <p>{LEVEL[level].means} {level === 'normal' && 'Streams open again little by little.'}</p>
      <p class="from-to"><LevelLamp level={view.level} /> <span aria-label="becomes">→</span> <LevelLamp level={level} /></p>
      <Form act={level === 'closed' ? 'Cut off' : level === 'normal' ? 'Open again' : 'Switch'} danger={level !== 'normal'} onCancel={props.onClose} onDone={props.onDone}
        work={() => change('/breaker', { ...(view.domain ? { domain: view.domain } : {}), level, why: why.trim(), ...(until === null ? {} : { until }) })}>
        <Text label="Reason" hint="Local users with contacts outside read it, and it stands in the audit log." value={why} onInput={setWhy} required autoFocus />
        {level !== 'normal' && <Until value={until} onChange={setUntil} />}
        {until !== null && level !== 'normal' && <p class="quiet">Back to normal on {moment(until)}.</p>}
      </Form>
    </Dialog>
  );
}
