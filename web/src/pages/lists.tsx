import { useState } from 'preact/hooks';

import { change, get } from '../api/client';
import { may } from '../api/session';
import type { Action, ListView, Subscriber } from '../api/types';
import { count, many } from '../logic/format';
import { href } from '../logic/place';
import { actionInWords } from '../logic/rules';
import { domainOf } from '../logic/reports';
import { Lamp, Name, Page, Panel, Time, Waiting } from '../parts/basics';
import { Dialog, Form } from '../parts/dialog';
import { One, Search, Select, Text } from '../parts/fields';
import { useFresh, useLoad } from '../parts/hooks';
import { Pages, Table } from '../parts/table';

export function Lists() {
  const lists = useLoad(() => get('lists', '/lists'), []);
  useFresh(lists.again, 5000);
  const [asking, ask] = useState<'subscribe' | ListView | null>(null);
  const done = () => {
    ask(null);
    lists.again();
  };
  const free = may('operate');
  const well = (state: string) => ['subscribed', 'published', 'public'].includes(state);
  return (
    <Page title="Lists" lead="Block lists of others that this server follows, and the one that it publishes." aside={free && <button type="button" onClick={() => ask('subscribe')}>Follow a list…</button>}>
      <Waiting of={lists}>{(data) => (
        <Panel title={many(data.lists.length, 'list')}>
          <Table caption="Lists" none="No list is followed." rows={data.lists} id={(it) => it.name} columns={[
            { name: 'Name', head: true, cell: (it) => <a href={href('lists', it.name)}>{it.name === 'own' ? 'Our own' : it.name}</a> },
            { name: 'Where', cell: (it) => <><Name of={it.service} /><span class="why mono">{it.node}</span></> },
            { name: 'State', cell: (it) => <Lamp tone={well(it.state) ? 'good' : 'warn'}>{it.state}</Lamp> },
            { name: 'Entries', number: true, cell: (it) => count(it.entries) },
            { name: 'Those on it', cell: (it) => (it.name === 'own' ? <span class="quiet">for others</span> : it.action ? actionInWords(it.action) : 'as rules say') },
            { name: 'Decided', number: true, cell: (it) => count(it.hits) },
            { name: 'Changed', cell: (it) => <Time at={it.changed_at} /> },
            ...(free ? [{ name: 'Change', bare: true, cell: (it: ListView) => it.name !== 'own' && <button type="button" class="plain" aria-label={`Stop following ${it.name}`} onClick={() => ask(it)}>Stop</button> }] : []),
          ]} />
        </Panel>
      )}</Waiting>
      {asking === 'subscribe' && <Subscribe onClose={() => ask(null)} onDone={done} />}
      {asking !== null && asking !== 'subscribe' && <Unsubscribe list={asking} onClose={() => ask(null)} onDone={done} />}
    </Page>
  );
}

const CHOICES: [string, string][] = [['', 'only what rules say that name the list'], ['reject', 'reject'], ['drop', 'drop silently'], ['hold', 'hold for consent'], ['text-only', 'pass the text only']];

function Subscribe(props: { onClose: () => void; onDone: () => void }) {
  const [name, setName] = useState('');
  const [service, setService] = useState('');
  const [node, setNode] = useState('');
  const [action, setAction] = useState('');
  const [why, setWhy] = useState('');
  return (
    <Dialog title="Follow a list" onClose={props.onClose}>
      <Form act="Follow" onCancel={props.onClose} onDone={props.onDone}
        work={() => change('/lists/subscribe', { name: name.trim(), service: service.trim(), node: node.trim(), ...(action ? { action: { do: action } as Action } : {}), why: why.trim() })}>
        <Text label="Name here" value={name} onInput={setName} required mono autoFocus hint="Rules use it: “on the list NAME”." />
        <Text label="Pubsub service" value={service} onInput={setService} required mono placeholder="pubsub.example.org" />
        <Text label="Node" value={node} onInput={setNode} required mono />
        <Select label="Those on it" value={action} options={CHOICES} onChange={setAction} />
        <Text label="Reason" hint="For the audit log." value={why} onInput={setWhy} required />
      </Form>
    </Dialog>
  );
}

function Unsubscribe(props: { list: ListView; onClose: () => void; onDone: () => void }) {
  const [why, setWhy] = useState('');
  return (
    <Dialog title={`Stop following ${props.list.name}?`} onClose={props.onClose}>
      <p>{many(props.list.entries, 'entry', 'entries')} no longer count.</p>
      <Form act="Stop following" danger onCancel={props.onClose} onDone={props.onDone} work={() => change('/lists/unsubscribe', { name: props.list.name, why: why.trim() })}>
        <Text label="Reason" hint="For the audit log." value={why} onInput={setWhy} required autoFocus />
      </Form>
    </Dialog>
  );
}

export function List(props: { name: string }) {
  const { name } = props;
  const own = name === 'own';
  const [after, setAfter] = useState<string | null>(null);
  const [asking, ask] = useState<{ retract: string } | 'publish' | null>(null);
  const items = useLoad(() => get('list-items', '/lists/items', { name, after }), [name, after]);
  useFresh(items.again, 10_000);
  const free = own && may('moderate');
  const done = () => {
    ask(null);
    items.again();
  };
  return (
    <Page title={own ? 'Our own list' : `List ${name}`} lead={<a href={href('lists')}>All lists</a>} aside={free && <button type="button" onClick={() => ask('publish')}>Put somebody on it…</button>}>
      <Panel title="Entries" note={own ? 'Everybody can read it. Addresses are published as their SHA-256.' : undefined}>
        <Waiting of={items}>{(data) => (
          <>
            <Table caption="Entries" none="Nobody is on it." rows={data.items} id={(it) => it.entry} columns={[
              { name: 'Entry', head: true, cell: (it) => <Name of={it.entry} /> },
              { name: 'Reason', cell: (it) => it.reason || <span class="quiet">none</span> },
              ...(free ? [{ name: 'Change', bare: true, cell: (it: { entry: string }) => <button type="button" class="plain" aria-label={`Take off ${it.entry}`} onClick={() => ask({ retract: it.entry })}>Take off</button> }] : []),
            ]} />
            <Pages first={after === null} more={data.more} onFirst={() => setAfter(null)} onMore={() => setAfter(data.items.at(-1)?.entry ?? null)} />
          </>
        )}</Waiting>
      </Panel>
      {own && may('moderate') && <Followers />}
      {asking === 'publish' && <Publish onClose={() => ask(null)} onDone={done} />}
      {asking !== null && asking !== 'publish' && <Retract entry={asking.retract} onClose={() => ask(null)} onDone={done} />}
    </Page>
  );
}

const SHOWN = 50;

/** Who is told when our own list changes. Everybody may follow it: there is nothing to approve, only to end. */
function Followers() {
  const list = useLoad(() => get('list-subscribers', '/lists/subscribers'), []);
  const [search, setSearch] = useState('');
  const [offset, setOffset] = useState(0);
  const [ending, end] = useState<Subscriber | null>(null);
  const found = (list.data?.subscribers ?? []).filter((it) => it.address.toLowerCase().includes(search.toLowerCase()));
  return (
    <Panel title={list.data ? `Followed by ${many(found.length, 'subscription')}` : 'Followed by'} note="Everybody may follow it. A subscription that is not renewed ends after 30 days." aside={<Search label="Search who follows it" value="" onSearch={(text) => {
      setOffset(0);
      setSearch(text.trim());
    }} />}>
      <Waiting of={list}>{() => (
        <>
          <Table caption="Who follows our own list" none={search ? `No address contains “${search}”.` : 'Nobody follows it.'} rows={found.slice(offset, offset + SHOWN)} id={(it) => `${it.address} ${it.node} ${it.host}`} columns={[
            { name: 'Address', head: true, cell: (it) => <><Name of={it.address} /><span class="why"><a href={href('domains', domainOf(it.address))}>{domainOf(it.address)}</a></span></> },
            { name: 'Node', cell: (it) => <><span class="mono small">{it.node}</span><span class="why">of {it.host}</span></> },
            { name: 'Since', cell: (it) => <Time at={it.since} /> },
            { name: 'Ends, unless renewed', cell: (it) => <Time at={it.until} /> },
            { name: 'Change', bare: true, cell: (it) => <button type="button" class="plain" aria-label={`End the subscription of ${it.address} to ${it.node}`} onClick={() => end(it)}>End</button> },
          ]} />
          <Pages first={offset === 0} more={offset + SHOWN < found.length} onFirst={() => setOffset(0)} onMore={() => setOffset(offset + SHOWN)} />
        </>
      )}</Waiting>
      {ending && <EndSubscription of={ending} onClose={() => end(null)} onDone={() => {
        end(null);
        list.again();
      }} />}
    </Panel>
  );
}

function EndSubscription(props: { of: Subscriber; onClose: () => void; onDone: () => void }) {
  const { address } = props.of;
  const domain = domainOf(address);
  const [whose, setWhose] = useState<'address' | 'domain'>(domain === address ? 'domain' : 'address');
  const [why, setWhy] = useState('');
  return (
    <Dialog title={`End the subscriptions of ${address}?`} onClose={props.onClose}>
      <p>They are not told of changes any more, on none of the list’s nodes. They may subscribe again: to keep them out, block the domain.</p>
      <Form act="End" danger onCancel={props.onClose} onDone={props.onDone} work={() => change('/lists/remove-subscriber', { address: whose === 'domain' ? domain : address, why: why.trim() })}>
        {domain !== address && <One label="Whose" name="whose" value={whose} onChange={setWhose} options={[['address', 'Of this address'], ['domain', `Of everybody at ${domain}`]]} />}
        {domain === address && <p class="hint">Everybody at {domain} is meant.</p>}
        <Text label="Reason" hint="For the audit log." value={why} onInput={setWhy} required autoFocus />
      </Form>
    </Dialog>
  );
}

function Publish(props: { onClose: () => void; onDone: () => void }) {
  const [entry, setEntry] = useState('');
  const [reason, setReason] = useState('');
  return (
    <Dialog title="Put somebody on our own list" onClose={props.onClose}>
      <Form act="Publish" onCancel={props.onClose} onDone={props.onDone} work={() => change('/lists/publish', { entry: entry.trim(), reason: reason.trim() })}>
        <Text label="Address or domain" value={entry} onInput={setEntry} required mono autoFocus hint="An address is published as its SHA-256." />
        <Text label="Reason" value={reason} onInput={setReason} required hint="Everybody can read it." />
      </Form>
    </Dialog>
  );
}

function Retract(props: { entry: string; onClose: () => void; onDone: () => void }) {
  const [why, setWhy] = useState('');
  return (
    <Dialog title="Take it off?" onClose={props.onClose}>
      <p class="mono">{props.entry}</p>
      <Form act="Take off" onCancel={props.onClose} onDone={props.onDone} work={() => change('/lists/retract', { entry: props.entry, why: why.trim() })}>
        <Text label="Reason" hint="For the audit log." value={why} onInput={setWhy} required autoFocus />
      </Form>
    </Dialog>
  );
}
