// The frame around all pages: navigation, who is signed in, and what was done last.

import { signal } from '@preact/signals';
import type { ComponentChildren } from 'preact';
import { useEffect, useState } from 'preact/hooks';

import { may, resume, session } from './api/session';
import type { Scope } from './api/types';
import { count } from './logic/format';
import { type Place, href, parse } from './logic/place';
import { LEVEL } from './logic/rules';
import { now } from './live';
import { Page, TONE } from './parts/basics';
import { said } from './parts/hooks';
import { Mark } from './parts/mark';
import { theme } from './parts/theme';
import { Accounts } from './pages/accounts';
import { Audit } from './pages/audit';
import { Domain } from './pages/domain';
import { Domains } from './pages/domains';
import { List, Lists } from './pages/lists';
import { Now } from './pages/now';
import { Policy } from './pages/policy';
import { Report, Reports } from './pages/reports';
import { SignIn } from './pages/sign-in';
import { You } from './pages/you';

const place = signal<Place>(parse(window.location.hash));
window.addEventListener('hashchange', () => {
  place.value = parse(window.location.hash);
});

interface Entry {
  page: string;
  name: string;
  needs: Scope | null;
  badge?: () => number;
}

const PAGES: Entry[] = [
  { page: 'now', name: 'Now', needs: 'read' },
  { page: 'domains', name: 'Domains', needs: 'read' },
  { page: 'policy', name: 'Policy', needs: 'read' },
  { page: 'reports', name: 'Requests and reports', needs: 'moderate', badge: () => now.value?.reports ?? 0 },
  { page: 'lists', name: 'Lists', needs: 'read' },
  { page: 'audit', name: 'Audit', needs: 'audit' },
  { page: 'accounts', name: 'Accounts', needs: 'accounts' },
  { page: 'you', name: 'You and this server', needs: null },
];

function allowed(entry: Entry): boolean {
  return entry.needs === null || may(entry.needs);
}

export function App() {
  useEffect(() => void resume(), []);
  if (session.value === undefined) return <main class="sign-in" id="content"><p role="status">One moment…</p></main>;
  if (session.value === null) return <SignIn />;
  const at = place.value;
  const entry = PAGES.find((it) => it.page === at.page);
  return (
    <>
      <a class="skip" href="#content" onClick={(event) => {
        event.preventDefault();
        document.querySelector<HTMLElement>('h1')?.focus();
      }}>Skip to the content</a>
      <Bar current={at.page} />
      <main id="content">{entry && allowed(entry) ? <Current key={`${at.page}/${at.item ?? ''}`} place={at} /> : <Nothing known={entry !== undefined} />}</main>
      <div class="said" role="status" aria-live="polite">{said.value && <p key={said.value.n}>{said.value.text}</p>}</div>
    </>
  );
}

function Current(props: { place: Place }): ComponentChildren {
  const { page, item } = props.place;
  switch (page) {
    case 'now': return <Now />;
    case 'domains': return item ? <Domain name={item} /> : <Domains place={props.place} />;
    case 'policy': return <Policy />;
    case 'reports': return item ? <Report id={Number(item)} /> : <Reports place={props.place} />;
    case 'lists': return item ? <List name={item} /> : <Lists />;
    case 'audit': return <Audit place={props.place} />;
    case 'accounts': return <Accounts />;
    default: return <You />;
  }
}

function Nothing(props: { known: boolean }) {
  const first = PAGES.find(allowed);
  return (
    <Page title={props.known ? 'Not for you' : 'Nothing here'}>
      <p>{props.known ? 'Your role does not permit this page.' : 'There is no such page.'} {first && <a href={href(first.page)}>Go to {first.name}</a>}</p>
    </Page>
  );
}

function Bar(props: { current: string }) {
  const [open, setOpen] = useState(false);
  useEffect(() => setOpen(false), [place.value]);
  const level = now.value?.level;
  const dark = theme.value === 'dark' || (theme.value === 'auto' && matchMedia('(prefers-color-scheme: dark)').matches);
  return (
    <header class={`bar ${open ? 'open' : ''}`} onKeyDown={(event) => event.key === 'Escape' && setOpen(false)}>
      <a class="brand" href={href('now')}><Mark />Trunkline</a>
      {level && <a class={`bar-level ${TONE[level]}`} href={href('now')}><span class="bulb" aria-hidden="true" /><span class="visually-hidden">Breaker: </span>{LEVEL[level].name}</a>}
      <button type="button" class="menu" aria-expanded={open} aria-controls="menu" onClick={() => setOpen(!open)}>Menu</button>
      <nav id="menu" aria-label="Pages">
        <ul>
          {PAGES.filter(allowed).map((it) => {
            const badge = it.badge?.() ?? 0;
            return (
              <li key={it.page} class={it.page === 'you' ? 'last' : ''}>
                <a href={href(it.page)} aria-current={it.page === props.current ? 'page' : undefined} onClick={() => setOpen(false)}>
                  {it.name}{badge > 0 && <span class="badge"><span class="visually-hidden">, waiting: </span>{count(badge)}</span>}
                </a>
              </li>
            );
          })}
        </ul>
        <div class="bar-end">
          <button type="button" class="plain" onClick={() => {
            theme.value = dark ? 'light' : 'dark';
          }}>{dark ? 'Light colours' : 'Dark colours'}</button>
        </div>
      </nav>
    </header>
  );
}
