import { useState } from 'preact/hooks';

import { change, get } from '../api/client';
import { may } from '../api/session';
import type { Action, ListView } from '../api/types';
import { count, many } from '../logic/format';
import { href } from '../logic/place';
import { actionInWords } from '../logic/rules';
import { Lamp, Name, Page, Panel, Time, Waiting } from '../parts/basics';
import { Dialog, Form } from '../parts/dialog';
import { Select, Text } from '../parts/fields';
import { useLoad } from '../parts/hooks';
import { Pages, Table } from '../parts/table';

export function Lists() {
  const lists = useLoad(() => get('lists', '/lists'), []);
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
            { name: 'Where', cell: (it) => <span class="mono small">{it.service} {it.node}</span> },
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
      {asking === 'publish' && <Publish onClose={() => ask(null)} onDone={done} />}
      {asking !== null && asking !== 'publish' && <Retract entry={asking.retract} onClose={() => ask(null)} onDone={done} />}
    </Page>
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
