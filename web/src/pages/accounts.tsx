import { useState } from 'preact/hooks';

import { change, get, post, request } from '../api/client';
import { type Device, SCOPES, type Scope, type Token, type User } from '../api/types';
import { moment } from '../logic/format';
import { Copyable, Name, Page, Panel, Time, Waiting, Wrong } from '../parts/basics';
import { Dialog, Form } from '../parts/dialog';
import { Search, Some, Text, Until } from '../parts/fields';
import { useDoing, useLoad } from '../parts/hooks';
import { Pages, Table } from '../parts/table';

type Asking = { what: 'add' } | { what: 'invite' } | { what: 'password' | 'factor' | 'devices' | 'end' | 'disable' | 'enable' | 'remove'; user: User } | null;

export function Accounts() {
  const [domain, setDomain] = useState('');
  const [after, setAfter] = useState<string | null>(null);
  const [asking, ask] = useState<Asking>(null);
  const list = useLoad(() => get('users', '/accounts', { domain, after }), [domain, after]);
  const close = () => ask(null);
  const done = () => {
    close();
    list.again();
  };
  return (
    <Page title="Accounts" lead="People here, invitations, and tokens for programs." aside={(
      <>
        <button type="button" onClick={() => ask({ what: 'invite' })}>Invite…</button>
        <button type="button" class="primary" onClick={() => ask({ what: 'add' })}>Add an account…</button>
      </>
    )}>
      <Panel title="Accounts" aside={<Search label="Of the domain" value={domain} onSearch={(text) => {
        setAfter(null);
        setDomain(text.trim());
      }} />}>
        <Waiting of={list}>{(data) => (
          <>
            <Table<User> caption="Accounts" none="There are no accounts." rows={data.users} id={(it) => it.address} mark={(it) => (it.disabled ? 'off' : '')} columns={[
              { name: 'Address', head: true, cell: (it) => <><Name of={it.address} />{it.disabled && <span class="tag">disabled</span>}</> },
              { name: 'Sessions', number: true, cell: (it) => it.sessions ?? <span class="quiet">unknown</span> },
              { name: 'Since', cell: (it) => <Time at={it.created_at} /> },
              { name: 'Change', bare: true, cell: (it) => (
                <span class="buttons">
                  <button type="button" class="plain" aria-label={`Set the password of ${it.address}`} onClick={() => ask({ what: 'password', user: it })}>Password</button>
                  <button type="button" class="plain" aria-label={`Second factor of ${it.address}`} onClick={() => ask({ what: 'factor', user: it })}>Second factor</button>
                  <button type="button" class="plain" aria-label={`Devices of ${it.address}`} disabled={it.disabled} onClick={() => ask({ what: 'devices', user: it })}>Devices</button>
                  <button type="button" class="plain" aria-label={`End sessions of ${it.address}`} disabled={!it.sessions} onClick={() => ask({ what: 'end', user: it })}>End sessions</button>
                  {it.disabled
                    ? <button type="button" class="plain" aria-label={`Enable ${it.address}`} onClick={() => ask({ what: 'enable', user: it })}>Enable</button>
                    : <button type="button" class="plain" aria-label={`Disable ${it.address}`} onClick={() => ask({ what: 'disable', user: it })}>Disable</button>}
                  <button type="button" class="plain" aria-label={`Remove ${it.address}`} onClick={() => ask({ what: 'remove', user: it })}>Remove</button>
                </span>
              ) },
            ]} />
            <Pages first={after === null} more={data.more} onFirst={() => setAfter(null)} onMore={() => setAfter(data.users.at(-1)?.address ?? null)} />
          </>
        )}</Waiting>
      </Panel>
      <Tokens />
      {asking?.what === 'add' && <Add onClose={close} onDone={done} />}
      {asking?.what === 'invite' && <Invite onClose={close} />}
      {asking?.what === 'password' && <SetPassword user={asking.user} onClose={close} onDone={done} />}
      {asking?.what === 'factor' && <ResetFactor user={asking.user} onClose={close} onDone={done} />}
      {asking?.what === 'devices' && <Devices user={asking.user} onClose={done} />}
      {asking?.what === 'disable' && <Disable user={asking.user} onClose={close} onDone={done} />}
      {asking?.what === 'enable' && <Enable user={asking.user} onClose={close} onDone={done} />}
      {asking?.what === 'end' && <EndSessions user={asking.user} onClose={close} onDone={done} />}
      {asking?.what === 'remove' && <RemoveAccount user={asking.user} onClose={close} onDone={done} />}
    </Page>
  );
}

interface Asked {
  onClose: () => void;
  onDone: () => void;
}

function Add(props: Asked) {
  const [address, setAddress] = useState('');
  const [password, setPassword] = useState('');
  return (
    <Dialog title="Add an account" onClose={props.onClose}>
      <Form act="Add" onCancel={props.onClose} onDone={props.onDone} work={() => change('/accounts/add', { address: address.trim(), password })}>
        <Text label="Address" value={address} onInput={setAddress} required mono autoFocus placeholder="name@example.org" />
        <Text label="Password" type="password" autoComplete="new-password" value={password} onInput={setPassword} required />
      </Form>
    </Dialog>
  );
}

function SetPassword(props: Asked & { user: User }) {
  const [password, setPassword] = useState('');
  return (
    <Dialog title={`Set the password of ${props.user.address}`} onClose={props.onClose}>
      <p>All devices are signed out.</p>
      <Form act="Set the password" onCancel={props.onClose} onDone={props.onDone} work={() => change('/accounts/password', { address: props.user.address, password })}>
        <Text label="New password" type="password" autoComplete="new-password" value={password} onInput={setPassword} required autoFocus />
      </Form>
    </Dialog>
  );
}

function ResetFactor(props: Asked & { user: User }) {
  return (
    <Dialog title={`Take the second factor off ${props.user.address}?`} onClose={props.onClose}>
      <p>For somebody who has lost the program that makes the codes. Until it is set up again, the password alone opens the console for this account.</p>
      <Form act="Take it off" danger onCancel={props.onClose} onDone={props.onDone} work={() => change('/accounts/reset-second-factor', { address: props.user.address })}>{null}</Form>
    </Dialog>
  );
}

/** What a device calls itself, or what its connections are called. */
function named(device: Device): string {
  return [device.software, device.device].filter(Boolean).join(', ') || device.resources.join(', ') || 'It says nothing of itself';
}

function Devices(props: { user: User; onClose: () => void }) {
  const list = useLoad(() => get('clients', '/accounts/devices', { address: props.user.address }), [props.user.address]);
  const doing = useDoing();
  return (
    <Dialog wide title={`Devices of ${props.user.address}`} onClose={props.onClose}>
      <p>A device that is signed out and has the password may come back: set another password to keep it out.</p>
      <Wrong text={doing.error} />
      <Waiting of={list}>{(data) => (
        <Table<Device> caption="Devices" none="No device has signed in." rows={data.clients} id={(it) => it.id} columns={[
          { name: 'Device', head: true, cell: (it) => <>{named(it)}{it.connected && <span class="tag">connected</span>}</> },
          { name: 'It has', cell: (it) => [it.password ? 'the password' : '', it.token ? 'a token' : ''].filter(Boolean).join(', ') || <span class="quiet">nothing</span> },
          { name: 'Last seen', cell: (it) => <Time at={it.last_seen} /> },
          { name: 'Change', bare: true, cell: (it) => (
            <button type="button" class="plain" aria-label={`Sign out ${named(it)}`} disabled={doing.busy} onClick={() => doing.run(async () => {
              const said = await change('/accounts/end-device', { address: props.user.address, client: it.id });
              list.again();
              return said;
            })}>Sign out</button>
          ) },
        ]} />
      )}</Waiting>
      <div class="actions"><button type="button" class="primary" onClick={props.onClose}>Close</button></div>
    </Dialog>
  );
}

function Disable(props: Asked & { user: User }) {
  return (
    <Dialog title={`Disable ${props.user.address}?`} onClose={props.onClose}>
      <p>Its sessions end, nobody can log in to it, and who writes to it is answered as if it did not exist. What it owns stays until it is enabled again.</p>
      <Form act="Disable" danger onCancel={props.onClose} onDone={props.onDone} work={() => change('/accounts/disable', { address: props.user.address })}>{null}</Form>
    </Dialog>
  );
}

function Enable(props: Asked & { user: User }) {
  return (
    <Dialog title={`Enable ${props.user.address} again?`} onClose={props.onClose}>
      <p>It can be logged in to again, with its old password.</p>
      <Form act="Enable" onCancel={props.onClose} onDone={props.onDone} work={() => change('/accounts/enable', { address: props.user.address })}>{null}</Form>
    </Dialog>
  );
}

function EndSessions(props: Asked & { user: User }) {
  return (
    <Dialog title={`End the sessions of ${props.user.address}?`} onClose={props.onClose}>
      <p>All devices are disconnected. They may log in again.</p>
      <Form act="End sessions" danger onCancel={props.onClose} onDone={props.onDone} work={() => change('/accounts/end-sessions', { address: props.user.address })}>{null}</Form>
    </Dialog>
  );
}

function RemoveAccount(props: Asked & { user: User }) {
  const [typed, setTyped] = useState('');
  const [wrong, setWrong] = useState('');
  return (
    <Dialog title={`Remove ${props.user.address}?`} onClose={props.onClose}>
      <p>The account goes with everything it owns: contacts, messages, what is stored. This can’t be taken back.</p>
      <Form act="Remove" danger onCancel={props.onClose} onDone={props.onDone} work={() => {
        if (typed.trim() !== props.user.address) {
          setWrong('that is another address');
          return null;
        }
        return change('/accounts/remove', { address: props.user.address });
      }}>
        <Text label="Type the address" value={typed} onInput={setTyped} wrong={wrong} required mono autoFocus />
      </Form>
    </Dialog>
  );
}

function Invite(props: { onClose: () => void }) {
  const [domain, setDomain] = useState('');
  const [made, setMade] = useState<{ uri: string; expires_at: number } | null>(null);
  return (
    <Dialog title="Invite somebody" onClose={props.onClose}>
      {made ? (
        <>
          <p>Whoever has this link can register one account until {moment(made.expires_at)}.</p>
          <Copyable label="Invitation" text={made.uri} />
          <div class="actions"><button type="button" class="primary" onClick={props.onClose}>Close</button></div>
        </>
      ) : (
        <Form act="Make an invitation" onCancel={props.onClose} onDone={() => undefined} work={async () => {
          setMade(await post('invitation', '/invitations/create', domain.trim() ? { domain: domain.trim() } : {}));
          return undefined;
        }}>
          <Text label="On the domain" hint="The first one of this server if empty." value={domain} onInput={setDomain} mono />
        </Form>
      )}
    </Dialog>
  );
}

const SCOPE: Record<Scope, string> = {
  read: 'read: see how the server and federation are',
  moderate: 'moderate: reports and requests, block',
  operate: 'operate: policy, breaker, lists',
  accounts: 'accounts: people, invitations, tokens',
  audit: 'audit: read who changed what',
};

function Tokens() {
  const tokens = useLoad(async () => ((await request({ method: 'GET', path: '/tokens' })) as { tokens: Token[] }).tokens, []);
  const [asking, ask] = useState<'create' | Token | null>(null);
  const done = () => {
    ask(null);
    tokens.again();
  };
  return (
    <Panel title="Tokens for programs" note="A program that has one may do over HTTP what its scopes permit." aside={<button type="button" onClick={() => ask('create')}>Make a token…</button>}>
      <Waiting of={tokens}>{(rows) => (
        <Table<Token> caption="Tokens" none="There are no tokens." rows={rows} id={(it) => it.name} columns={[
          { name: 'Name', head: true, cell: (it) => it.name },
          { name: 'Scopes', cell: (it) => it.scopes.join(', ') },
          { name: 'Made', cell: (it) => <Time at={it.created_at} /> },
          { name: 'Ends', cell: (it) => <Time at={it.until} /> },
          { name: 'Last used', cell: (it) => <Time at={it.last_used_at} /> },
          { name: 'Change', bare: true, cell: (it) => <button type="button" class="plain" aria-label={`Revoke ${it.name}`} onClick={() => ask(it)}>Revoke</button> },
        ]} />
      )}</Waiting>
      {asking === 'create' && <MakeToken onClose={done} />}
      {asking !== null && asking !== 'create' && (
        <Dialog title={`Revoke ${asking.name}?`} onClose={() => ask(null)}>
          <p>Programs that use it are refused from now on.</p>
          <Form act="Revoke" danger onCancel={() => ask(null)} onDone={done} work={() => change('/tokens/revoke', { name: asking.name })}>{null}</Form>
        </Dialog>
      )}
    </Panel>
  );
}

function MakeToken(props: { onClose: () => void }) {
  const [name, setName] = useState('');
  const [scopes, setScopes] = useState<Scope[]>(['read']);
  const [until, setUntil] = useState<number | null>(null);
  const [made, setMade] = useState('');
  return (
    <Dialog title="Make a token" onClose={props.onClose}>
      {made ? (
        <>
          <p>It is shown this once only.</p>
          <Copyable label="Token" text={made} />
          <div class="actions"><button type="button" class="primary" onClick={props.onClose}>Close</button></div>
        </>
      ) : (
        <Form act="Make" onCancel={props.onClose} onDone={() => undefined} work={async () => {
          const answer = await request({ method: 'POST', path: '/tokens/create', body: { name: name.trim(), scopes, ...(until === null ? {} : { until }) } });
          setMade((answer as { token: string }).token);
          return undefined;
        }}>
          <Text label="Name" value={name} onInput={setName} required autoFocus hint="It stands in the audit log." />
          <Some label="It may" value={scopes} onChange={setScopes} options={SCOPES.map((it) => [it, SCOPE[it]])} />
          <Until value={until} onChange={setUntil} />
        </Form>
      )}
    </Dialog>
  );
}
