import { useState } from 'preact/hooks';

import { change, get, post } from '../api/client';
import { may } from '../api/session';
import { type Direction, PRESETS, type BlockView, type PolicyView, type Preset, RELATIONS, type Relation, type RuleView, type TestResult } from '../api/types';
import { capital, count, words } from '../logic/format';
import { href } from '../logic/place';
import { DIRECTION, PRESET, RELATION, actionInWords, conditionsInWords, ruleInWords } from '../logic/rules';
import { Lamp, Page, Panel, Time, Waiting } from '../parts/basics';
import { Block, Unblock } from '../parts/block';
import { Dialog, Form } from '../parts/dialog';
import { Area, Check, One, Select, Text } from '../parts/fields';
import { useDoing, useFresh, useLoad } from '../parts/hooks';
import { RuleEditor } from '../parts/rule';
import { Table } from '../parts/table';
import { Wrong } from '../parts/basics';

type Asking = { what: 'add' } | { what: 'edit' | 'remove'; rule: RuleView } | { what: 'preset'; preset: Preset } | { what: 'import' | 'block' } | { what: 'unblock'; domain: string } | null;

export function Policy() {
  const policy = useLoad(() => get('policy', '/policy'), []);
  useFresh(policy.again, 15_000);
  const [asking, ask] = useState<Asking>(null);
  const close = () => ask(null);
  const done = () => {
    close();
    policy.again();
  };
  const free = may('operate');
  return (
    <Page title="Policy" lead="Rules in order; the first that matches decides. Where none does, the preset decides." aside={free && <button type="button" class="primary" onClick={() => ask({ what: 'add' })}>Add a rule…</button>}>
      <Waiting of={policy}>{(view) => (
        <>
          {view.warnings.map((text) => <p class="wrong" key={text}>{text}</p>)}
          <Rules view={view} onAsk={ask} onMoved={policy.again} />
          <div class="columns two">
            <Presets view={view} onAsk={ask} />
            <Tester />
          </div>
          <Blocks view={view} onAsk={ask} />
        </>
      )}</Waiting>
      {asking?.what === 'add' && <RuleEditor onClose={close} onDone={done} />}
      {asking?.what === 'edit' && <RuleEditor edit={asking.rule} onClose={close} onDone={done} />}
      {asking?.what === 'remove' && <Remove rule={asking.rule} onClose={close} onDone={done} />}
      {asking?.what === 'preset' && <SetPreset preset={asking.preset} onClose={close} onDone={done} />}
      {asking?.what === 'block' && <Block domain="" onClose={close} onDone={done} />}
      {asking?.what === 'unblock' && <Unblock domain={asking.domain} onClose={close} onDone={done} />}
      {asking?.what === 'import' && <Import onClose={close} onDone={done} />}
    </Page>
  );
}

function Rules(props: { view: PolicyView; onAsk: (asking: Asking) => void; onMoved: () => void }) {
  const doing = useDoing();
  const free = may('operate');
  const { rules } = props.view;
  const own = rules.filter((it) => it.id !== null);
  const move = (rule: RuleView, position: number) => doing.run(
    () => change('/policy/move', { id: rule.id, position, why: 'order changed in the console' }), props.onMoved);
  return (
    <Panel title={`Rules (${rules.length})`} note="Hits are stanzas that a rule decided since the server was started. A rule in shadow only counts what it would have decided.">
      <Wrong text={doing.error} />
      <Table caption="Rules in order" none="No rules: the preset decides everything." rows={rules} id={(it) => it.id ?? `c${rules.indexOf(it)}`} mark={(it) => (it.rule.shadow ? 'shadow' : '')} columns={[
        { name: 'Place', number: true, minor: true, cell: (it) => rules.indexOf(it) + 1 },
        { name: 'What', head: true, cell: (it) => <What view={it} /> },
        { name: 'Action', cell: (it) => <Lamp tone={TONES[it.rule.then.do] ?? 'calm'}>{actionInWords(it.rule.then)}</Lamp> },
        { name: 'Hits', number: true, cell: (it) => (it.rule.shadow ? <span title="would have decided">({count(it.shadow_hits)})</span> : count(it.hits)) },
        { name: 'Ends', cell: (it) => <Time at={it.rule.until} /> },
        ...(free ? [{ name: 'Change', bare: true, cell: (it: RuleView) => <Buttons rule={it} own={own} busy={doing.busy} onMove={move} onAsk={props.onAsk} /> }] : []),
      ]} />
      <p class="behind"><span class="quiet">then</span> the preset <b>{PRESET[props.view.preset].name}</b>{props.view.preset_shadow && <span class="tag">shadow</span>} <span class="quiet">{props.view.preset_shadow ? `(${count(props.view.preset_shadow_hits)})` : count(props.view.preset_hits)} hits</span></p>
    </Panel>
  );
}

const TONES: Record<string, 'good' | 'warn' | 'bad' | 'calm'> = { allow: 'good', reject: 'bad', drop: 'bad', hold: 'warn', limit: 'warn', mark: 'calm', 'text-only': 'warn' };

function What(props: { view: RuleView }) {
  const { rule } = props.view;
  const conditions = conditionsInWords(rule.when);
  return (
    <span class="what">
      <span class="conditions"><span class="tag">{DIRECTION[rule.direction]}</span>{conditions.length ? conditions.map((it) => <span class="condition" key={it}>{it}</span>) : <span class="condition">everything</span>}{rule.shadow && <span class="tag on">shadow</span>}</span>
      <span class="why">{rule.reason && <>{rule.reason} </>}({props.view.set_by}{props.view.set_at > 0 && <>, <Time at={props.view.set_at} /></>})</span>
    </span>
  );
}

function Buttons(props: { rule: RuleView; own: RuleView[]; busy: boolean; onMove: (rule: RuleView, position: number) => void; onAsk: (asking: Asking) => void }) {
  const { rule, own } = props;
  if (rule.id === null) return <span class="quiet small">in the configuration</span>;
  const at = own.indexOf(rule);
  const name = `rule ${rule.id}`;
  return (
    <span class="buttons">
      <button type="button" class="icon" aria-label={`Move ${name} up`} title="Up" disabled={at === 0 || props.busy} onClick={() => props.onMove(rule, at - 1)}>↑</button>
      <button type="button" class="icon" aria-label={`Move ${name} down`} title="Down" disabled={at === own.length - 1 || props.busy} onClick={() => props.onMove(rule, at + 1)}>↓</button>
      <button type="button" class="plain" aria-label={`Edit ${name}`} onClick={() => props.onAsk({ what: 'edit', rule })}>Edit</button>
      <button type="button" class="plain" aria-label={`Remove ${name}`} onClick={() => props.onAsk({ what: 'remove', rule })}>Remove</button>
    </span>
  );
}

function Remove(props: { rule: RuleView; onClose: () => void; onDone: () => void }) {
  const [why, setWhy] = useState('');
  return (
    <Dialog title={`Remove rule ${props.rule.id ?? ''}?`} onClose={props.onClose}>
      <p>{ruleInWords(props.rule.rule)}</p>
      <Form act="Remove" danger onCancel={props.onClose} onDone={props.onDone} work={() => change('/policy/remove', { id: props.rule.id, why: why.trim() })}>
        <Text label="Reason" hint="For the audit log." value={why} onInput={setWhy} required autoFocus />
      </Form>
    </Dialog>
  );
}

function Presets(props: { view: PolicyView; onAsk: (asking: Asking) => void }) {
  const free = may('operate');
  return (
    <Panel title="Preset" note="What stands behind the rules.">
      <ul class="presets">
        {PRESETS.map((preset) => (
          <li key={preset} class={preset === props.view.preset ? 'on' : ''}>
            <div>
              <b>{PRESET[preset].name}</b>{preset === props.view.preset && <span class="tag on">{props.view.preset_shadow ? 'in shadow' : 'in force'}</span>}
              <p class="quiet">{PRESET[preset].means}</p>
            </div>
            {free && <button type="button" class="plain" aria-label={`${preset === props.view.preset ? 'Change' : 'Use'} ${PRESET[preset].name}`} onClick={() => props.onAsk({ what: 'preset', preset })}>{preset === props.view.preset ? 'Change' : 'Use'}</button>}
          </li>
        ))}
      </ul>
    </Panel>
  );
}

function SetPreset(props: { preset: Preset; onClose: () => void; onDone: () => void }) {
  const [shadow, setShadow] = useState(false);
  const [why, setWhy] = useState('');
  return (
    <Dialog title={`${PRESET[props.preset].name}?`} onClose={props.onClose}>
      <p>{PRESET[props.preset].means}</p>
      <Form act="Change the preset" onCancel={props.onClose} onDone={props.onDone} work={() => change('/policy/preset', { preset: props.preset, shadow, why: why.trim() })}>
        <Check label="In shadow" value={shadow} onChange={setShadow} hint="Only decide and count; everything passes that no rule stops." />
        <Text label="Reason" hint="For the audit log." value={why} onInput={setWhy} required autoFocus />
      </Form>
    </Dialog>
  );
}

const EXAMPLE = "<message from='stranger@spam.example' to='you@your.example' type='chat'><body>look: https://spam.example</body></message>";

function Tester() {
  const [stanza, setStanza] = useState(EXAMPLE);
  const [direction, setDirection] = useState<Direction>('in');
  const [relation, setRelation] = useState<Relation | ''>('');
  const [result, setResult] = useState<TestResult | null>(null);
  return (
    <Panel title="Test a stanza" note="What would become of it. Nothing is changed, nothing is sent.">
      <Form act="Test" onDone={() => undefined} work={async () => {
        setResult(null);
        setResult(await post('tested', '/policy/test', { stanza, direction, ...(relation ? { relation } : {}) }));
        return undefined;
      }}>
        <Area label="Stanza" value={stanza} onInput={setStanza} rows={4} mono required />
        <div class="pair">
          <Select label="It goes" value={direction} onChange={setDirection} options={[['in', DIRECTION.in], ['out', DIRECTION.out]]} />
          <Select label="They are" value={relation} onChange={setRelation} options={[['', 'not said'], ...RELATIONS.map((it): [Relation, string] => [it, RELATION[it]])]} />
        </div>
      </Form>
      {result && (
        <div class="result" role="status">
          <p><Lamp tone={TONES[result.action] ?? 'calm'}>{capital(words(result.action))}</Lamp> by {result.by}{result.reason && <>: {result.reason}</>}</p>
          {result.action === 'undecided' && <p class="quiet">It depends on how the two people stand to each other: choose it above.</p>}
          {result.trace.length > 0 && <details><summary>What was asked before</summary><ol>{result.trace.map((it) => <li key={it}>{it}</li>)}</ol></details>}
        </div>
      )}
    </Panel>
  );
}

function Blocks(props: { view: PolicyView; onAsk: (asking: Asking) => void }) {
  const { blocks, blocks_total } = props.view;
  const [free, moderate] = [may('operate'), may('moderate')];
  const doing = useDoing();
  const save = (format: 'csv' | 'json') => doing.run(async () => {
    const file = await get('file', '/policy/blocks', { format });
    const address = URL.createObjectURL(new Blob([file.text], { type: file.media_type }));
    const link = document.createElement('a');
    link.href = address;
    link.download = `blocks.${format}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
    return `blocks.${format} is saved.`;
  });
  return (
    <Panel title={`Blocked domains (${count(blocks_total)})`} note="Blocks are asked before all rules." aside={(
      <>
        <button type="button" disabled={doing.busy} onClick={() => save('csv')}>Export CSV</button>
        <button type="button" disabled={doing.busy} onClick={() => save('json')}>Export JSON</button>
        {free && <button type="button" onClick={() => props.onAsk({ what: 'import' })}>Import…</button>}
        {moderate && <button type="button" onClick={() => props.onAsk({ what: 'block' })}>Block a domain…</button>}
      </>
    )}>
      <Wrong text={doing.error} />
      <Table<BlockView> caption="Blocked domains" none="No domain is blocked." rows={blocks} id={(it) => `${it.block.domain} ${String(it.configured)}`} columns={[
        { name: 'Domain', head: true, cell: (it) => <><a href={href('domains', it.block.domain)}>{it.block.domain}</a>{it.block.subdomains && <span class="tag">and below</span>}</> },
        { name: 'Reason', cell: (it) => it.block.reason || <span class="quiet">none</span> },
        { name: 'Set by', cell: (it) => <>{it.set_by} {it.set_at > 0 && <span class="quiet"><Time at={it.set_at} /></span>}</> },
        { name: 'Ends', cell: (it) => <Time at={it.block.until} /> },
        ...(moderate ? [{ name: 'Change', bare: true, cell: (it: BlockView) => (it.configured
          ? <span class="quiet small">in the configuration</span>
          : <button type="button" class="plain" aria-label={`Take back the block of ${it.block.domain}`} onClick={() => props.onAsk({ what: 'unblock', domain: it.block.domain })}>Take back</button>) }] : []),
      ]} />
      {blocks.length < blocks_total && <p class="note">The latest {count(blocks.length)} are shown; a file has all.</p>}
    </Panel>
  );
}

function Import(props: { onClose: () => void; onDone: () => void }) {
  const [format, setFormat] = useState<'csv' | 'json'>('csv');
  const [text, setText] = useState('');
  const [why, setWhy] = useState('');
  return (
    <Dialog title="Import blocks" onClose={props.onClose} wide>
      <p>All of it or nothing: a line that is wrong is named, and nothing is changed.</p>
      <Form act="Import" onCancel={props.onClose} onDone={props.onDone} work={() => change('/policy/blocks', { format, text, why: why.trim() })}>
        <One label="Format" name="format" value={format} onChange={setFormat} options={[['csv', 'CSV', 'domain,subdomains,reason,until'], ['json', 'JSON', 'an array of objects with the same names']]} />
        <div class="field">
          <label for="import-file">File</label>
          <input id="import-file" type="file" accept=".csv,.json,text/csv,application/json" onChange={(event) => {
            const file = event.currentTarget.files?.[0];
            if (!file) return;
            if (file.name.endsWith('.json')) setFormat('json');
            void file.text().then(setText);
          }} />
        </div>
        <Area label="What is in it" value={text} onInput={setText} rows={6} mono required />
        <Text label="Reason" hint="For the audit log." value={why} onInput={setWhy} required />
      </Form>
    </Dialog>
  );
}
