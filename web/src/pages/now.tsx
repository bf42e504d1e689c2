import { get } from '../api/client';
import { may } from '../api/session';
import { capital, count, many, rate, words } from '../logic/format';
import { href } from '../logic/place';
import { SPAN, hurry, live, lost, now } from '../live';
import { Bars, LevelLamp, Page, Panel, Time, Waiting, Wrong } from '../parts/basics';
import { Chart } from '../parts/chart';
import { useLoad } from '../parts/hooks';
import { Switch } from '../parts/switch';
import { Table } from '../parts/table';

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
    </Page>
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
