import { useState } from 'preact/hooks';

import { get } from '../api/client';
import type { AuditEntry } from '../api/types';
import { words } from '../logic/format';
import { diff } from '../logic/diff';
import { type Place, href } from '../logic/place';
import { Name, Page, Panel, Time, Waiting } from '../parts/basics';
import { Search } from '../parts/fields';
import { useLoad } from '../parts/hooks';
import { Pages, Table } from '../parts/table';

export function Audit(props: { place: Place }) {
  const search = props.place.query.get('search') ?? '';
  const [before, setBefore] = useState<number | null>(null);
  const list = useLoad(() => get('audit', '/audit', { search, before }), [search, before]);
  return (
    <Page title="Audit" lead="Who changed what, and why. Entries are only ever added.">
      <Panel title={search ? `Entries with “${search}”` : 'Entries'} aside={<Search label="Search the audit log" value={search} onSearch={(text) => {
        setBefore(null);
        window.location.replace(href('audit', null, { search: text.trim() }));
      }} />}>
        <Waiting of={list}>{(data) => (
          <>
            <Table<AuditEntry> caption="Audit log" none={search ? 'Nothing contains this.' : 'Nothing was changed yet.'} rows={data.entries} id={(it) => it.id} columns={[
              { name: 'What', head: true, cell: (it) => <>{words(it.what)}{it.why && <span class="why">{it.why}</span>}</> },
              { name: 'Who', cell: (it) => <><Name of={it.who} /><span class="tag">{words(it.face)}</span></> },
              { name: 'When', cell: (it) => <Time at={it.at} /> },
              { name: 'Change', cell: (it) => <Change entry={it} /> },
            ]} />
            <Pages first={before === null} more={data.more} moreName="Older" onFirst={() => setBefore(null)} onMore={() => setBefore(data.entries.at(-1)?.id ?? null)} />
          </>
        )}</Waiting>
      </Panel>
    </Page>
  );
}

function Change(props: { entry: AuditEntry }) {
  const { before, after } = props.entry;
  if (!before && !after) return <span class="quiet">none</span>;
  const name = before && after ? 'Before and after' : before ? 'What there was' : 'What came';
  return (
    <details class="change">
      <summary>{name}</summary>
      <pre class="diff" tabIndex={0} role="region" aria-label={`${name}, entry ${props.entry.id}`}>
        {diff(before, after).map((line, n) => {
          const text = `${line.kind === 'gone' ? '−' : line.kind === 'new' ? '+' : ' '} ${line.text}\n`;
          return line.kind === 'gone' ? <del key={n}>{text}</del> : line.kind === 'new' ? <ins key={n}>{text}</ins> : <span key={n}>{text}</span>;
        })}
      </pre>
    </details>
  );
}
