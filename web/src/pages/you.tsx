import { useState } from 'preact/hooks';

import { get } from '../api/client';
import { type Enrolment, beginTotp, confirmTotp, may, removeTotp, session, signOut } from '../api/session';
import { bytes, count, duration } from '../logic/format';
import { Facts, Lamp, Page, Panel, Time, Waiting } from '../parts/basics';
import { Form } from '../parts/dialog';
import { One, Text } from '../parts/fields';
import { useDoing, useLoad } from '../parts/hooks';
import { Qr } from '../parts/qr';
import { type Theme, theme } from '../parts/theme';
import { Wrong } from '../parts/basics';

export function You() {
  const doing = useDoing();
  const me = session.value;
  if (!me) return null;
  return (
    <Page title="You and this server" lead={<span class="mono">{me.address}</span>} aside={<button type="button" disabled={doing.busy} onClick={() => doing.run(async () => {
      await signOut();
      return undefined;
    })}>Sign out</button>}>
      <Wrong text={doing.error} />
      <div class="columns two">
        <SecondFactor />
        <Panel title="Session">
          <Facts rows={[['You may', me.scopes.join(', ')], ['It ends', <Time at={me.expires_at} />]]} />
          <One<Theme> label="Colours" name="theme" value={theme.value} onChange={(value) => {
            theme.value = value;
          }} options={[['auto', 'As the system has it'], ['light', 'Light'], ['dark', 'Dark']]} />
        </Panel>
        {may('read') && <Server />}
        <Panel title="About this page">
          <p>The console talks to this server’s HTTP API only, and loads nothing from elsewhere. It contains Preact, its signals, uPlot and lean-qr: <a href="./NOTICE.txt">who wrote them, and their licences</a>.</p>
        </Panel>
      </div>
    </Page>
  );
}

function SecondFactor() {
  const [enrolment, setEnrolment] = useState<Enrolment | null>(null);
  const [code, setCode] = useState('');
  const on = session.value?.totp ?? false;
  const field = <Text label="Code" value={code} onInput={setCode} required inputMode="numeric" autoComplete="one-time-code" pattern="[0-9]{6}" maxLength={6} mono hint="Six digits, from the program that makes codes." />;
  return (
    <Panel title="Second factor" aside={<Lamp tone={on ? 'good' : 'warn'}>{on ? 'on' : 'off'}</Lamp>}>
      {on ? (
        <>
          <p>Signing in asks for a code. To switch it off, prove that you have the program that makes them.</p>
          <Form act="Switch it off" danger onDone={() => setCode('')} work={async () => {
            await removeTotp(code);
            return 'The second factor is off.';
          }}>{field}</Form>
        </>
      ) : enrolment ? (
        <>
          <p>Scan this with a program for one-time codes, or type the secret into it. Then type the code that it shows.</p>
          <Qr text={enrolment.uri} label="The address below, for a camera" />
          <Facts rows={[['Secret', <span class="mono wrap">{enrolment.secret}</span>], ['Address', <span class="mono wrap small">{enrolment.uri}</span>]]} />
          <Form act="Switch it on" onDone={() => {
            setCode('');
            setEnrolment(null);
          }} onCancel={() => setEnrolment(null)} work={async () => {
            await confirmTotp(code);
            return 'From now on signing in asks for a code.';
          }}>{field}</Form>
        </>
      ) : (
        <>
          <p>With it, a stolen password does not open the console: signing in asks for a code that changes every 30 seconds.</p>
          <Form act="Set it up" onDone={() => undefined} work={async () => {
            setEnrolment(await beginTotp());
            return undefined;
          }}>{null}</Form>
        </>
      )}
    </Panel>
  );
}

function Server() {
  const status = useLoad(() => get('status', '/status'), []);
  return (
    <Panel title="Server">
      <Waiting of={status}>{(it) => (
        <>
          {it.problems.map((text) => <p class="wrong" key={text}>{text}</p>)}
          <Facts rows={[
            ['Version', it.version],
            ['Runs for', duration(Date.now() - it.started_at)],
            ['Accounts', count(it.accounts)],
            ['Memory', it.memory === null ? <span class="quiet">unknown</span> : bytes(it.memory)],
            ['Database', it.database === null ? <span class="quiet">unknown</span> : bytes(it.database)],
            ['Domains', <ul class="plain-list">{it.domains.map((own) => <li key={own.name}>{own.name}{own.certificate_expires_at !== null && <span class="quiet">, certificate ends <Time at={own.certificate_expires_at} /></span>}</li>)}</ul>],
            ['Waits for a restart', it.needs_restart.join(', ') || <span class="quiet">nothing</span>],
          ]} />
        </>
      )}</Waiting>
    </Panel>
  );
}
