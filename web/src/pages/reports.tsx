import type { ComponentChildren } from 'preact';
import { useState } from 'preact/hooks';

import { change, get } from '../api/client';
import type { ReportAction, ReportView, RequestView } from '../api/types';
import { count, many, moment } from '../logic/format';
import { type Place, href } from '../logic/place';
import { choices, domainOf, isOurs, spoken } from '../logic/reports';
import { hurry } from '../live';
import { Facts, Lamp, Name, Page, Panel, Time, Waiting } from '../parts/basics';
import { Dialog, Form } from '../parts/dialog';
import { Check, One, Search, Text, Until } from '../parts/fields';
import { useFresh, useLoad } from '../parts/hooks';
import { Pages, Table } from '../parts/table';

/** The queue of reports, and the first contacts that wait. */
export function Reports(props: { place: Place }) {
  const { query } = props.place;
  const [domain, all] = [query.get('domain') ?? '', query.get('all') === 'yes'];
  const [before, setBefore] = useState<number | null>(null);
  const list = useLoad(() => get('reports', '/reports', { open_only: !all, domain, before }), [all, domain, before]);
  useFresh(list.again, 15_000);
  const go = (change: Record<string, string>) => {
    setBefore(null);
    window.location.replace(href('reports', null, { domain, all: all ? 'yes' : '', ...change }));
  };
  return (
    <Page title="Requests and reports" lead="Who was reported, by people here or by other providers, and who outside waits for an answer.">
      <Panel title={all ? 'All reports' : 'Reports that wait'} aside={(
        <>
          <Search label="Reports about a domain" value={domain} onSearch={(text) => go({ domain: text.trim() })} />
          <Check label="Handled ones too" value={all} onChange={(on) => go({ all: on ? 'yes' : '' })} />
        </>
      )}>
        <Waiting of={list}>{(data) => (
          <>
            <Table caption="Reports" none={all ? 'There are no reports.' : 'Nothing waits for you.'} rows={data.reports} id={(it) => it.id} columns={[
              { name: 'About', head: true, cell: (it) => <a href={href('reports', String(it.id))}><Name of={it.about} /></a> },
              { name: 'Reason', cell: (it) => <Reason report={it} /> },
              { name: 'From', cell: (it) => <Name of={it.reporter} /> },
              { name: 'What they say', minor: true, cell: (it) => <span class="clip">{it.text || <span class="quiet">nothing</span>}</span> },
              { name: 'When', cell: (it) => <Time at={it.at} /> },
              { name: 'State', cell: (it) => (it.state === 'open' ? 'Open' : <span class="quiet">Handled</span>) },
            ]} />
            <Pages first={before === null} more={data.more} moreName="Older" onFirst={() => setBefore(null)} onMore={() => setBefore(data.reports.at(-1)?.id ?? null)} />
          </>
        )}</Waiting>
      </Panel>
      <Requests />
    </Page>
  );
}

function Reason(props: { report: ReportView }) {
  return <Lamp tone={props.report.reason === 'abuse' ? 'bad' : 'warn'}>{props.report.reason}</Lamp>;
}

function Requests() {
  const [domain, setDomain] = useState('');
  const [before, setBefore] = useState<number | null>(null);
  const [dropping, drop] = useState<string | null>(null);
  const list = useLoad(() => get('requests', '/requests', { domain, before }), [domain, before]);
  useFresh(list.again, 15_000);
  return (
    <Panel title="First contacts that wait" note="Whoever they are for decides. What was written is not shown to anybody else." aside={<Search label="Requests from a domain" value={domain} onSearch={(text) => {
      setBefore(null);
      setDomain(text.trim());
    }} />}>
      <Waiting of={list}>{(data) => (
        <>
          <Table<RequestView> caption="First contacts" none="Nobody waits." rows={data.requests} id={(it) => it.id} columns={[
            { name: 'From', head: true, cell: (it) => <Name of={it.from} /> },
            { name: 'For', cell: (it) => <Name of={it.account} /> },
            { name: 'Held', number: true, cell: (it) => many(it.stanzas, 'stanza') },
            { name: 'Asks for', cell: (it) => (it.asks_subscription ? 'a subscription' : 'an answer') },
            { name: 'Since', cell: (it) => <Time at={it.since} /> },
            { name: 'Change', bare: true, cell: (it) => (
              <span class="buttons">
                <button type="button" class="plain" aria-label={`Drop what waits from ${it.from}`} onClick={() => drop(it.from)}>Drop</button>
                <button type="button" class="plain" aria-label={`Whole domain ${domainOf(it.from)}: drop what waits`} onClick={() => drop(domainOf(it.from))}>Whole domain</button>
              </span>
            ) },
          ]} />
          <Pages first={before === null} more={data.more} moreName="Older" onFirst={() => setBefore(null)} onMore={() => setBefore(data.requests.at(-1)?.id ?? null)} />
        </>
      )}</Waiting>
      {dropping !== null && <Drop from={dropping} onClose={() => drop(null)} onDone={() => {
        drop(null);
        list.again();
        hurry();
      }} />}
    </Panel>
  );
}

function Drop(props: { from: string; onClose: () => void; onDone: () => void }) {
  const [why, setWhy] = useState('');
  return (
    <Dialog title={`Drop what waits from ${props.from}?`} onClose={props.onClose}>
      <p>It is thrown away. Nobody is told.</p>
      <Form act="Drop" danger onCancel={props.onClose} onDone={props.onDone} work={() => change('/requests/drop', { from: props.from, why: why.trim() })}>
        <Text label="Reason" hint="For the audit log." value={why} onInput={setWhy} required autoFocus />
      </Form>
    </Dialog>
  );
}

export function Report(props: { id: number }) {
  const report = useLoad(() => get('report', '/reports/show', { id: props.id }), [props.id]);
  return (
    <Page title={`Report ${props.id}`} lead={<a href={href('reports')}>All reports</a>} aside={report.data && <Lamp tone={report.data.state === 'open' ? 'warn' : 'good'}>{report.data.state}</Lamp>}>
      <Waiting of={report}>{(it) => (
        <div class="columns two">
          <Panel title="What was reported">
            <Facts rows={[
              ['About', <><Name of={it.about} /> (<a href={href('domains', domainOf(it.about))}>{domainOf(it.about)}</a>)</>],
              ['Reason', <Reason report={it} />],
              ['From', <><Name of={it.reporter} />{it.origin === 'outside' && <span class="tag">another provider</span>}{it.affiliation && <span class="tag">{it.affiliation}</span>}</>],
              ['When', moment(it.at)],
              ['They say', it.text || <span class="quiet">nothing</span>],
              ['They agree that', it.may_forward || it.may_share ? [it.may_forward && 'the sender’s provider is told', it.may_share && 'third parties are told'].filter(Boolean).join(', ') : 'nobody else is told'],
              ['Stanzas', it.stanza_ids.length ? <ul class="plain-list mono small">{it.stanza_ids.map((id) => <li key={id}>{id}</li>)}</ul> : <span class="quiet">none named</span>],
              ...(it.forwarded_to ? [['Forwarded to', <Name of={it.forwarded_to} />] as [string, ComponentChildren]] : []),
            ]} />
            <h3>Messages ({count(it.messages.length)})</h3>
            {it.messages.length ? it.messages.map((text, n) => <Message key={n} xml={text} />) : <p class="quiet">{it.origin === 'outside' ? 'The provider sent none, or they are no longer kept.' : 'The report names none of the reporter’s archive, or they are no longer kept.'}</p>}
            {it.actions.length > 0 && <><h3>What was done</h3><ol class="plain-list">{it.actions.map((text, n) => <li key={n}>{text}</li>)}</ol></>}
          </Panel>
          <Panel title="What is done about it"><Decide report={it} onDone={() => {
            report.again();
            hurry();
          }} /></Panel>
        </div>
      )}</Waiting>
    </Page>
  );
}

/** What was written; the whole stanza on request. */
function Message(props: { xml: string }) {
  const said = spoken(props.xml);
  if (said === null) return <blockquote class="message">{props.xml}</blockquote>;
  return (
    <>
      <blockquote class="message">{said}</blockquote>
      <details><summary>As it came</summary><pre class="diff" tabIndex={0} role="region" aria-label="The stanza">{props.xml}</pre></details>
    </>
  );
}

function Decide(props: { report: ReportView; onDone: () => void }) {
  const { report } = props;
  const status = useLoad(() => get('status', '/status'), []);
  return (
    <Waiting of={status}>{(data) => (
      <Choose report={report} ours={isOurs(report, data.domains.map((it) => it.name))} onDone={props.onDone} />
    )}</Waiting>
  );
}

const DEFAULT_ENDS: Partial<Record<ReportAction, string>> = { limit: 'in 7 days', 'block-sender': 'in 90 days' };

function Choose(props: { report: ReportView; ours: boolean; onDone: () => void }) {
  const { report, ours } = props;
  const [action, setAction] = useState<ReportAction | null>(null);
  const [why, setWhy] = useState('');
  const [until, setUntil] = useState<number | null>(null);
  const ends = action === 'limit' || action === 'block-sender' || action === 'block-domain';
  const words: Record<ReportAction, [string, string]> = {
    dismiss: ['Dismiss', ours ? 'Nothing is done.' : 'Nothing is done. The report no longer counts against the domain’s reputation.'],
    warn: ['Warn', `${report.about} gets the reason below as a message from your domain.`],
    limit: ['Limit', `6 stanzas a minute from ${report.about}.`],
    'block-sender': [report.about.includes('@') ? 'Block the sender' : 'Block who was reported', `Nothing passes to or from ${report.about}, for everybody here.`],
    'block-domain': ['Block the domain', `Nothing passes to or from ${domainOf(report.about)}.`],
    forward: ['Forward', 'It is sent to the abuse address of the sender’s provider. Its state stays as it is.'],
  };
  const options = choices(report, ours).map((it): [ReportAction, string, string] => [it, ...words[it]]);
  const handled = report.state !== 'open';
  return (
    <>
      {handled && <p class="note">This report is handled.{options.length > 0 && ' It can still be forwarded.'}</p>}
      {ours && !handled && <p class="hint">{report.about} is of this server: limits and blocks are for outsiders.</p>}
      {!ours && !report.may_forward && <p class="hint">The reporter does not agree that the sender’s provider is told.</p>}
      {options.length > 0 && (
        <Form act="Decide" danger={action === 'block-sender' || action === 'block-domain'} onDone={() => {
          setAction(null);
          setWhy('');
          setUntil(null);
          props.onDone();
        }} work={() => change('/reports/decide', { id: report.id, action, why: why.trim(), ...(ends && until !== null ? { until } : {}) })}>
          <One label="Decision" name="decision" value={action} onChange={setAction} options={options} />
          <Text label="Reason" hint="For the audit log, and for whom it concerns." value={why} onInput={setWhy} required />
          {ends && <Until key={action} value={until} onChange={setUntil} unsaid={DEFAULT_ENDS[action]} />}
        </Form>
      )}
    </>
  );
}
