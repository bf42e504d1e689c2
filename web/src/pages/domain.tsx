import { useState } from 'preact/hooks';

import { get } from '../api/client';
import { may } from '../api/session';
import type { DomainDetail, HistoryPoint } from '../api/types';
import { bytes, capital, count, duration, words } from '../logic/format';
import { href } from '../logic/place';
import { blockOf, ruleInWords } from '../logic/rules';
import { hurry } from '../live';
import { Facts, Lamp, LevelLamp, Page, Panel, Score, StateLamp, Time, Waiting } from '../parts/basics';
import { Block, Unblock } from '../parts/block';
import { Chart } from '../parts/chart';
import { useFresh, useLoad } from '../parts/hooks';
import { Switch } from '../parts/switch';
import { Table } from '../parts/table';

export function Domain(props: { name: string }) {
  const { name } = props;
  const detail = useLoad(() => get('domain', '/domains/show', { domain: name }), [name]);
  const breaker = useLoad(() => get('breaker', '/breaker'), [name]);
  const policy = useLoad(() => get('policy', '/policy'), [name]);
  const again = () => {
    detail.again();
    breaker.again();
    policy.again();
  };
  useFresh(again, 10_000);
  const block = blockOf(name, policy.data?.blocks ?? []);
  const [asking, ask] = useState<'block' | 'unblock' | null>(null);
  const done = () => {
    ask(null);
    again();
    hurry();
  };
  const summary = detail.data?.summary;
  return (
    <Page title={name} lead={<><a href={href('domains')}>All domains</a>{summary && <>: first seen <Time at={summary.first_seen} />, last seen <Time at={summary.last_seen} /></>}<Elsewhere domain={name} /></>}
      aside={summary && (
        <>
          <StateLamp state={summary.blocked ? 'blocked' : summary.state} />
          {summary.level !== 'normal' && <LevelLamp level={summary.level} />}
          {may('moderate') && (summary.blocked
            ? <button type="button" onClick={() => ask('unblock')}>Take the block back…</button>
            : <button type="button" class="danger" onClick={() => ask('block')}>Block…</button>)}
        </>
      )}>
      <History domain={name} />
      <Waiting of={detail}>{(it) => (
        <div class="columns two">
          <Panel title="Reputation" aside={<Score value={it.summary.reputation} />}>
            {it.reputation_reasons.length ? (
              <ul class="reasons">
                {it.reputation_reasons.map(([points, text]) => (
                  <li key={text}><span class={`number points ${points < 0 ? 'bad' : 'good'}`}>{points > 0 ? `+${points}` : String(points).replace('-', '−')}</span>{text}</li>
                ))}
              </ul>
            ) : <p class="quiet">Nothing speaks for or against it yet.</p>}
          </Panel>
          <Panel title="Breaker for this domain">
            <Waiting of={breaker}>{(view) => (
              <Switch onChanged={done} view={view.domains.find((own) => own.domain === name) ?? { domain: name, level: 'normal', reason: '', set_by: '', set_at: 0, until: null }} />
            )}</Waiting>
            {breaker.data && breaker.data.all.level !== 'normal' && <p class="note">For all of the outside: <LevelLamp level={breaker.data.all.level} /></p>}
          </Panel>
          <Panel title="Sanctions">
            {block && <div class="wrong"><p>Blocked{block.block.domain !== name && ` with ${block.block.domain}`}: {block.block.reason || 'no reason was given'}. Set by {block.set_by}{block.set_at > 0 && <>, <Time at={block.set_at} /></>}{block.block.until !== null && <>, ends <Time at={block.block.until} /></>}.</p></div>}
            <Table caption="Rules that name it" none="No rule names this domain." rows={it.sanctions} id={(row) => row.id ?? ruleInWords(row.rule)} columns={[
              { name: 'Rule', head: true, cell: (row) => <>{ruleInWords(row.rule)}{row.rule.shadow && <span class="tag">shadow</span>}</> },
              { name: 'Reason', cell: (row) => row.rule.reason || <span class="quiet">none</span> },
              { name: 'Set by', cell: (row) => row.set_by },
              { name: 'Ends', cell: (row) => <Time at={row.rule.until} /> },
            ]} />
          </Panel>
          <Proof detail={it} />
          <Panel title="Counted since first seen" class="full"><Counters counters={it.counters} /></Panel>
        </div>
      )}</Waiting>
      {asking === 'block' && <Block domain={name} onClose={() => ask(null)} onDone={done} />}
      {asking === 'unblock' && <Unblock domain={block?.block.domain ?? name} onClose={() => ask(null)} onDone={done} />}
    </Page>
  );
}

/** What else there is about it. */
function Elsewhere(props: { domain: string }) {
  return (
    <span class="elsewhere">
      {may('moderate') && <a href={href('reports', null, { domain: props.domain, all: 'yes' })}>Reports about it</a>}
      {may('audit') && <a href={href('audit', null, { search: props.domain })}>Changes about it</a>}
      <a href={href('domains', null, { search: props.domain })}>What is below it</a>
    </span>
  );
}

function Proof(props: { detail: DomainDetail }) {
  const { detail } = props;
  const lines = (list: string[], none: string) => (list.length ? <ul class="plain-list">{list.map((it) => <li key={it}>{it}</li>)}</ul> : <span class="quiet">{none}</span>);
  return (
    <Panel title="Connection">
      <Facts rows={[
        ['Authentication', detail.authentication ? <Lamp tone={detail.authentication === 'dialback' ? 'warn' : 'good'}>{detail.authentication}</Lamp> : <span class="quiet">nothing yet</span>],
        ['Certificate', lines(detail.certificate, 'none seen')],
        ['Contacts', lines(detail.contacts, 'it names none')],
        ['Acknowledged after', detail.acknowledged_after ? `${duration(detail.acknowledged_after[0])} (median), ${duration(detail.acknowledged_after[1])} (99 %)` : <span class="quiet">unknown</span>],
        ['Waits for it', detail.summary.queue ? `${count(detail.summary.queue)} stanzas${detail.queue_age === null ? '' : `, the oldest for ${duration(detail.queue_age)}`}` : 'nothing'],
        ['Last error', detail.last_error ?? <span class="quiet">none</span>],
      ]} />
    </Panel>
  );
}

function Counters(props: { counters: Record<string, number> }) {
  const rows = Object.entries(props.counters).filter(([, value]) => value > 0).sort((a, b) => a[0].localeCompare(b[0]));
  if (!rows.length) return <p class="quiet">Nothing was counted yet.</p>;
  return (
    <dl class="counters">
      {rows.map(([name, value]) => <div key={name}><dt>{capital(words(name))}</dt><dd class="number">{name.startsWith('bytes') ? bytes(value) : count(value)}</dd></div>)}
    </dl>
  );
}

const REACH: [number, string][] = [[1, '1 hour'], [24, '1 day'], [168, '1 week'], [720, '30 days']];

export function History(props: { domain: string | null }) {
  const [hours, setHours] = useState(24);
  const history = useLoad(() => get('history', '/domains/history', { domain: props.domain, hours }), [props.domain, hours]);
  useFresh(history.again, 60_000);
  const points = history.data?.points ?? [];
  const sum = (of: (point: HistoryPoint) => number) => points.reduce((total, point) => total + of(point), 0);
  const series = (of: (point: HistoryPoint) => number) => points.map(of);
  const [incoming, outgoing, refused, held] = [sum((it) => it.stanzas_in), sum((it) => it.stanzas_out), sum((it) => it.refused), sum((it) => it.held)];
  const step = history.data ? duration(history.data.step) : '';
  return (
    <Panel title="History" aside={(
      <div class="segments" role="group" aria-label="How far back">
        {REACH.map(([value, name]) => <button type="button" key={value} aria-pressed={hours === value} onClick={() => setHours(value)}>{name}</button>)}
      </div>
    )} note={step && `Each point counts ${step}. ${bytes(sum((it) => it.bytes_in))} came in, ${bytes(sum((it) => it.bytes_out))} went out.`}>
      <Waiting of={history}>{() => points.length ? (
        <Chart height={200} columns={[points.map((it) => it.at / 1000), series((it) => it.stanzas_in), series((it) => it.stanzas_out), series((it) => it.refused), series((it) => it.held)]}
          label={`${count(incoming)} stanzas came in, ${count(outgoing)} went out, ${count(refused)} were refused, ${count(held)} held.`}
          lines={[{ name: 'in', colour: 'line-in', filled: true, value: count(incoming) }, { name: 'out', colour: 'line-out', value: count(outgoing) }, { name: 'refused', colour: 'bad', value: count(refused) }, { name: 'held', colour: 'warn', value: count(held) }]} />
      ) : <p class="quiet">Nothing was counted in this time.</p>}</Waiting>
    </Panel>
  );
}
