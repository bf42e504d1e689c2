import { useEffect, useState } from 'preact/hooks';

import { farewell, signIn } from '../api/session';
import { move } from '../parts/basics';
import { Form } from '../parts/dialog';
import { Text } from '../parts/fields';
import { Mark } from '../parts/mark';

export function SignIn() {
  const [address, setAddress] = useState('');
  const [password, setPassword] = useState('');
  const [code, setCode] = useState('');
  const [second, setSecond] = useState<((code: string) => Promise<void>) | null>(null);
  useEffect(() => {
    document.title = 'Sign in · Trunkline';
    move();
  }, []);
  return (
    <main class="sign-in" id="content">
      <div class="sign-in-card">
        <p class="brand"><Mark />Trunkline</p>
        <h1>{second ? 'Your second factor' : 'Sign in'}</h1>
        {farewell.value && <p class="note" role="status">{farewell.value}</p>}
        {second ? (
          <Form key="code" act="Go on" onDone={() => undefined} onCancel={() => {
            setSecond(null);
            setCode('');
          }} work={async () => {
            await second(code);
            return undefined;
          }}>
            <Text label="Code" hint="Six digits, from the program that makes codes." value={code} onInput={setCode} required inputMode="numeric" autoComplete="one-time-code" pattern="[0-9]{6}" maxLength={6} mono autoFocus />
          </Form>
        ) : (
          <Form key="password" act="Sign in" onDone={() => setPassword('')} work={async () => {
            const more = await signIn(address.trim(), password);
            if (more) setSecond(() => more);
            return undefined;
          }}>
            <Text label="Address" hint="An administrator’s, such as you@example.org." value={address} onInput={setAddress} required autoComplete="username" inputMode="email" autoFocus />
            <Text label="Password" type="password" value={password} onInput={setPassword} required autoComplete="current-password" />
          </Form>
        )}
        <p class="quiet small">The password stays in this page: the server checks a proof (SCRAM-SHA-256).</p>
      </div>
    </main>
  );
}
