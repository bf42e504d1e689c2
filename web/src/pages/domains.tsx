import { useState } from 'preact/hooks';

import { get } from '../api/client';
import { may } from '../api/session';
import type { DomainSummary } from '../api/types';
import { count, many } from '../logic/format';
import { type Place, href } from '../logic/place';
import { LevelLamp, Page, Panel, Score, StateLamp, Time, Waiting } from '../parts/basics';
import { Block } from '../parts/block';
import { Search, Select } from '../parts/fields';
import { useFresh, useLoad } from '../parts/hooks';
import { type Column, Pages, Table } from '../parts/table';

const SORTS: [string, string][] = [
  ['domain', 'name'], ['in', 'stanzas from it'], ['out', 'stanzas to it'], ['refused', 'refused'], ['held', 'held'], ['reports', 'reports'],
  ['reputation', 'reputation'], ['queue', 'queue'], ['first-seen', 'first seen'],
];

const COLUMNS: Column<DomainSummary>[] = [
  { name: 'Domain', head: true, sort: 'domain', cell: (it) => <a href={href('domains', it.domain)}>{it.domain}</a> },
  { name: 'State', cell: (it) => <State domain={it} /> },
  { name: 'In', number: true, sort: 'in', cell: (it) => count(it.stanzas_in) },
  { name: 'Out', number: true, sort: 'out', cell: (it) => count(it.stanzas_out) },
  { name: 'Refused', number: true, sort: 'refused', cell: (it) => zero(it.refused) },
  { name: 'Held', number: true, sort: 'held', cell: (it) => zero(it.held), minor: true },
  { name: 'Reports', number: true, sort: 'reports', cell: (it) => zero(it.reports) },
  { name: 'Queue', number: true, sort: 'queue', cell: (it) => zero(it.queue), minor: true },
  { name: 'Reputation', sort: 'reputation', cell: (it) => <Score value={it.reputation} /> },
  { name: 'First seen', sort: 'first-seen', cell: (it) => <Time at={it.first_seen} />, minor: true },
];

function State(props: { domain: DomainSummary }) {
  const { domain } = props;
  return (
    <span class="stack">
      <StateLamp state={domain.blocked ? 'blocked' : domain.state} />
      {domain.level !== 'normal' && <LevelLamp level={domain.level} />}
    </span>
  );
}

function zero(value: number) {
  return value === 0 ? <span class="quiet">0</span> : count(value);
}

export function Domains(props: { place: Place }) {
  const query = props.place.query;
  const [search, sort, offset] = [query.get('search') ?? '', query.get('sort') ?? 'in', Number(query.get('offset') ?? 0) || 0];
  const [blocking, block] = useState(false);
  const list = useLoad(() => get('domains', '/domains', { search, sort, offset }), [search, sort, offset]);
  useFresh(list.again, 15_000);
  const go = (change: Record<string, string>) => {
    const next = { search, sort, ...change };
    window.location.replace(href('domains', null, next));
  };
  const shown = list.data?.domains.length ?? 0;
  const total = list.data?.total ?? 0;
  return (
    <Page title="Domains" lead="Everybody outside with whom this server has spoken." aside={may('moderate') && <button type="button" onClick={() => block(true)}>Block a domain…</button>}>
      <Panel title={list.data ? many(total, 'domain') : 'Domains'} aside={(
        <>
          <Search label="Search domains" value={search} onSearch={(text) => go({ search: text.trim() })} />
          <div class="only-narrow"><Select label="Sort by" value={sort} options={SORTS} onChange={(key) => go({ sort: key })} /></div>
        </>
      )}>
        <Waiting of={list}>{(data) => (
          <>
            <Table caption="Domains" columns={COLUMNS} rows={data.domains} id={(it) => it.domain} sorted={sort} onSort={(key) => go({ sort: key })}
              none={search ? `No domain contains “${search}”.` : 'No domain outside was seen yet.'} mark={(it) => (it.blocked ? 'off' : '')} />
            <Pages first={offset === 0} more={offset + shown < total} onFirst={() => go({})} onMore={() => go({ offset: String(offset + shown) })}
              place={total ? `${offset + 1} to ${offset + shown} of ${count(total)}` : undefined} />
          </>
        )}</Waiting>
      </Panel>
      {blocking && <Block domain="" onClose={() => block(false)} onDone={() => {
        block(false);
        list.again();
      }} />}
    </Page>
  );
}
