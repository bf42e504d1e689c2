import { get } from '../api/client';
import { may } from '../api/session';
import { capital, count, many, rate, words } from '../logic/format';
import { href } from '../logic/place';
import { SPAN, hurry, live, lost, now } from '../live';
import { Bars, LevelLamp, Page, Panel, Said, StateLamp, Time, Waiting, Wrong } from '../parts/basics';
import { Chart } from '../parts/chart';
import { useFresh, useLoad } from '../parts/hooks';
import { Switch } from '../parts/switch';
import { Table } from '../parts/table';
import { History } from './domain';

export function Now() {
  const at = now.value;
  const breaker = useLoad(() => get('breaker', '/breaker'), [at?.level, at?.levels]);
  const changed = () => {
    breaker.again();
    hurry();
  };
  const refused = Object.entries(at?.refused ?? {}).sort((a, b) => b[1] - a[1]);
  return (
    <Page title="Now" lead="Stanzas a second over the last ten seconds. Inside is among people here; outside is everybody else.">
      <Wrong text={lost.value} />
      <Problems />
      <dl class="readings">
        <Reading name="Inside" value={at && rate(at.inside)} unit="a second" tone="line-inside" />
        <Reading name="From outside" value={at && rate(at.outside_in)} unit="a second" tone="line-in" />
        <Reading name="To the outside" value={at && rate(at.outside_out)} unit="a second" tone="line-out" />
        <Reading name="Sessions" value={at && count(at.sessions)} unit="of people here" />
        <Reading name="Peers" value={at && count(at.peers)} unit="domains with a stream" />
        {may('moderate') && <Reading name="Waiting" value={at && count(at.reports)} unit={at ? `${at.reports === 1 ? 'report' : 'reports'}, ${many(at.requests, 'request')}` : ''} link={href('reports')} />}
      </dl>
      <div class="columns wide-left">
        <Panel title="Traffic" class="traffic">
          <Chart height={240} span={SPAN} columns={live.value}
            label={at ? `The last five minutes. At the moment ${rate(at.inside)} stanzas a second inside, ${rate(at.outside_in)} from outside, ${rate(at.outside_out)} to the outside.` : 'No data yet.'}
            lines={[{ name: 'inside', colour: 'line-inside', filled: true }, { name: 'from outside', colour: 'line-in' }, { name: 'to the outside', colour: 'line-out' }]} />
        </Panel>
        <Panel title="Breaker" aside={at && <LevelLamp level={at.level} />} class="breaker-panel">
          <Waiting of={breaker}>{(view) => <Switch view={view.all} onChanged={changed} />}</Waiting>
        </Panel>
      </div>
      <div class="columns three">
        <Panel title="Refused in the last minute">
          <Bars tone="bad" none="Nothing was refused." rows={refused.map(([name, value]) => ({ key: name, name: capital(words(name)), value, shown: count(value) }))} />
        </Panel>
        <Panel title="Busiest in the last minute">
          <Bars none="No traffic with the outside." rows={(at?.busiest ?? []).map(([name, value]) => ({ key: name, name: <a href={href('domains', name)}>{name}</a>, value, shown: count(value) }))} />
        </Panel>
        <Panel title="Levels and triggers">
          <Waiting of={breaker}>{(view) => (
            <>
              <Table caption="Domains with a level of their own" none="No domain has a level of its own." rows={view.domains} id={(it) => it.domain ?? ''} columns={[
                { name: 'Domain', head: true, cell: (it) => <a href={href('domains', it.domain)}>{it.domain}</a> },
                { name: 'Level', cell: (it) => <LevelLamp level={it.level} /> },
                { name: 'Ends', cell: (it) => <Time at={it.until} none="when taken back" /> },
              ]} />
              {view.covered.length > 0 && <h3>Set as well, and covered by a stricter level</h3>}
              <ul class="plain-list">{view.covered.map((it) => <li key={`${it.domain} ${it.set_by}`}>{it.domain ?? 'all'}: {words(it.level)}, by {it.set_by}, ends <Time at={it.until} none="when taken back" /></li>)}</ul>
              {view.triggers.length > 0 && <h3>It is pulled by itself</h3>}
              <ul class="plain-list">{view.triggers.map((it) => <li key={it}>{it}</li>)}</ul>
            </>
          )}</Waiting>
        </Panel>
      </div>
      <div class="columns two">
        <Stuck />
        {may('audit') && <Changed />}
      </div>
      <History domain={null} />
    </Page>
  );
}

/** Who renews certificates by a program has a new one by then. */
const SOON = 14 * 86_400_000;

/** What the server itself finds wrong: certificates that end, a disk that fills, settings that wait for a restart. */
function Problems() {
  const status = useLoad(() => get('status', '/status'), []);
  const policy = useLoad(() => get('policy', '/policy'), []);
  useFresh(() => {
    status.again();
    policy.again();
  }, 30_000);
  const { problems = [], needs_restart: waits = [], domains = [] } = status.data ?? {};
  const ending = domains.filter((it) => it.certificate_expires_at !== null && it.certificate_expires_at < Date.now() + SOON);
  return (
    <>
      {ending.map((it) => <div class="wrong" key={it.name}><p>The certificate of {it.name} ends: <Time at={it.certificate_expires_at} /></p></div>)}
      {[...problems, ...(policy.data?.warnings ?? [])].map((text) => <p class="wrong" key={text}>{text}</p>)}
      {waits.length > 0 && <p class="note wrap">Waits for a restart: {waits.join(', ')}</p>}
    </>
  );
}

const MOST = 6;

function Stuck() {
  const list = useLoad(() => get('domains', '/domains', { sort: 'queue' }), []);
  useFresh(list.again, 10_000);
  const stuck = (list.data?.domains ?? []).filter((it) => it.queue > 0).slice(0, MOST);
  return (
    <Panel title="Not delivered yet" aside={<a href={href('domains', null, { sort: 'queue' })}>Domains by queue</a>}>
      <Waiting of={list}>{() => (
        <Table caption="Domains for which stanzas wait" none="Nothing waits for any domain." rows={stuck} id={(it) => it.domain} columns={[
          { name: 'Domain', head: true, cell: (it) => <a href={href('domains', it.domain)}>{it.domain}</a> },
          { name: 'State', cell: (it) => <StateLamp state={it.blocked ? 'blocked' : it.state} /> },
          { name: 'Stanzas', number: true, cell: (it) => count(it.queue) },
          { name: 'Last seen', cell: (it) => <Time at={it.last_seen} /> },
        ]} />
      )}</Waiting>
    </Panel>
  );
}

/** The first question when something is wrong. */
function Changed() {
  const list = useLoad(() => get('audit', '/audit'), []);
  useFresh(list.again, 15_000);
  return (
    <Panel title="Changed last" aside={<a href={href('audit')}>All changes</a>}>
      <Waiting of={list}>{(data) => (
        <ul class="plain-list">
          {data.entries.length === 0 && <li class="quiet">Nothing was changed yet.</li>}
          {data.entries.slice(0, MOST).map((it) => (
            <li key={it.id}>{capital(words(it.what))}{it.why && <>: <Said text={it.why} /></>}<span class="why">{it.who}, <Time at={it.at} /></span></li>
          ))}
        </ul>
      )}</Waiting>
    </Panel>
  );
}

function Reading(props: { name: string; value: string | null; unit: string; tone?: string; link?: string }) {
  return (
    <div class={`reading ${props.tone ?? ''}`}>
      <dt>{props.name}</dt>
      <dd>
        <span class="number big">{props.link ? <a href={props.link}>{props.value ?? '–'}</a> : (props.value ?? '–')}</span>
        <span class="unit">{props.unit}</span>
      </dd>
    </div>
  );
}
