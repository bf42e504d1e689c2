// Every page as people see it, with the invented exchange of web/mock behind the built files and the policy of the
// real listener: wide and narrow, light and dark, by ear and by keyboard.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { fileURLToPath } from 'node:url';

import { Failed, PHONE, Report, WIDE, accessible, at, browser, clean, fits, inert, must, settled, shot, signIn, visit } from './lib.mjs';

const PAGES = [
  ['now', 'Now'], ['domains', 'Domains'], ['domains/spamhaven.example', 'spamhaven.example'], ['policy', 'Policy'], ['reports', 'Requests and reports'],
  ['reports/1', 'Report 1'], ['lists', 'Lists'], ['lists/own', 'Our own list'], ['audit', 'Audit'], ['accounts', 'Accounts'], ['you', 'You and this server'],
];
/** Every dialog: where, and the button that opens it. */
const DIALOGS = [
  ['now', 'Now', 'Switch to “Closed”…'],
  ['domains', 'Domains', 'Block a domain…'],
  ['domains/jabber.example', 'jabber.example', 'Block…'],
  ['domains/spamhaven.example', 'spamhaven.example', 'Take the block back…'],
  ['policy', 'Policy', 'Add a rule…'], ['policy', 'Policy', /^Edit /], ['policy', 'Policy', /^Remove /], ['policy', 'Policy', /^Use /],
  ['policy', 'Policy', 'Import…'], ['policy', 'Policy', 'Block a domain…'], ['policy', 'Policy', /^Take back /],
  ['reports', 'Requests and reports', /^Drop what waits/], ['reports', 'Requests and reports', /^Whole domain/],
  ['lists', 'Lists', 'Follow a list…'], ['lists', 'Lists', /^Stop following/],
  ['lists/own', 'Our own list', 'Put somebody on it…'], ['lists/own', 'Our own list', /^Take off/], ['lists/own', 'Our own list', /^End the subscription/],
  ['accounts', 'Accounts', 'Invite…'], ['accounts', 'Accounts', 'Add an account…'], ['accounts', 'Accounts', /^Set the password/], ['accounts', 'Accounts', /^Second factor/],
  ['accounts', 'Accounts', /^Devices of/], ['accounts', 'Accounts', /^End sessions/], ['accounts', 'Accounts', /^Disable /], ['accounts', 'Accounts', /^Enable /],
  ['accounts', 'Accounts', /^Remove /], ['accounts', 'Accounts', 'Make a token…'], ['accounts', 'Accounts', /^Revoke /],
];
const ADMIN = { address: 'admin@trunkline.example', password: 'secret' };
const shots = process.argv[2] ?? 'screenshots';
const report = new Report(process.argv.slice(3));

const web = fileURLToPath(new URL('../../web', import.meta.url));
const servers = [];
let base = '';
process.on('exit', () => servers.forEach((it) => it.kill()));
process.on('SIGTERM', () => process.exit(1));

/** A port that nobody has. */
async function free() {
  const taken = createServer().listen(0, '127.0.0.1');
  await once(taken, 'listening');
  const { port } = taken.address();
  taken.close();
  await once(taken, 'close');
  return port;
}

/** An invented exchange behind the built files; where it answers. */
async function preview(mock) {
  const port = await free();
  const server = spawn(process.execPath, ['node_modules/vite/bin/vite.js', 'preview', '--host', '127.0.0.1', '--port', String(port), '--strictPort'], {
    cwd: web, stdio: ['ignore', 'ignore', 'inherit'], env: { ...process.env, TRUNKLINE_MOCK: mock },
  });
  servers.push(server);
  const base = `http://127.0.0.1:${port}/`;
  for (const end = Date.now() + 90_000; Date.now() < end;) {
    if (server.exitCode !== null) throw new Failed('vite preview ended');
    if (await fetch(base).then((it) => it.ok, () => false)) return base;
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  throw new Failed('vite preview does not answer');
}

const running = await browser();
try {
  base = await preview('');
  for (const [size, viewport] of [['wide', WIDE], ['phone', PHONE]]) {
    for (const colorScheme of ['light', 'dark']) {
      const page = await visit(running, base, { viewport, colorScheme, hasTouch: size === 'phone', isMobile: size === 'phone' });
      await report.check(`${size} ${colorScheme}: signing in`, async () => {
        await page.getByLabel('Address').waitFor();
        await accessible(page);
        await fits(page);
        await shot(page, shots, `sign-in-${size}-${colorScheme}`);
      });
      await signIn(page, ADMIN);
      await page.getByRole('heading', { level: 1, name: 'Now' }).waitFor();
      for (const [path, heading] of PAGES) {
        await report.check(`${size} ${colorScheme}: ${path}`, async () => {
          await at(page, path, heading);
          // The live chart needs a few points to be one.
          for (let n = 0; path === 'now' && n < 2; n += 1) await page.waitForResponse((it) => it.url().endsWith('/api/v1/now'));
          await accessible(page);
          await fits(page);
          await shot(page, shots, `${path.replace('/', '-')}-${size}-${colorScheme}`);
          clean(page);
        });
      }
      for (const [name, path, heading, open] of [
        ['rule', 'policy', 'Policy', (it) => it.getByRole('button', { name: 'Add a rule…' }).click()],
        ['block', 'domains/jabber.example', 'jabber.example', (it) => it.getByRole('button', { name: 'Block…' }).click()],
        ['change', 'audit', 'Audit', (it) => it.getByText('Before and after').first().click()],
        ['totp', 'you', 'You and this server', async (it) => {
          await it.getByRole('button', { name: 'Set it up' }).click();
          await it.getByRole('img', { name: 'The address below' }).waitFor();
        }],
        ['breaker', 'now', 'Now', async (it) => {
          await it.getByRole('radio', { name: 'Closed' }).check();
          await it.getByRole('button', { name: 'Switch to “Closed”…' }).click();
        }],
      ]) {
        await report.check(`${size} ${colorScheme}: what opens: ${name}`, async () => {
          await at(page, path, heading);
          await open(page);
          await accessible(page);
          await fits(page);
          await shot(page, shots, `open-${name}-${size}-${colorScheme}`, false);
          await page.keyboard.press('Escape');
          clean(page);
        });
      }
      await page.context().close();
    }
  }

  await report.check('phone: the menu opens, leads on, and closes', async () => {
    const page = await visit(running, base, { viewport: PHONE });
    await signIn(page, ADMIN);
    const menu = page.getByRole('button', { name: 'Menu' });
    await menu.waitFor();
    must(!(await page.getByRole('link', { name: 'Audit' }).isVisible()), 'the menu is open from the start');
    await menu.click();
    must((await menu.getAttribute('aria-expanded')) === 'true', 'aria-expanded');
    await shot(page, shots, 'menu-phone-light', false);
    await page.getByRole('link', { name: 'Audit' }).click();
    await page.getByRole('heading', { level: 1, name: 'Audit' }).waitFor();
    must(!(await page.getByRole('link', { name: 'Lists' }).isVisible()), 'the menu stays open');
    clean(page);
    await page.context().close();
  });

  await report.check('keyboard only: sign in, find a domain, block it', async () => {
    const page = await visit(running, base);
    const press = (key) => page.keyboard.press(key);
    await page.getByLabel('Address').waitFor();
    await page.keyboard.type(ADMIN.address);
    await press('Tab');
    await page.keyboard.type(ADMIN.password);
    await press('Enter');
    await page.getByRole('heading', { level: 1, name: 'Now' }).waitFor();
    await settled(page);
    // The heading has the focus; backwards from it is the navigation.
    await tabTo(page, (it) => it.text === 'Domains' && it.tag === 'A', 'Shift+Tab');
    await press('Enter');
    await page.getByRole('heading', { level: 1, name: 'Domains' }).waitFor();
    await settled(page);
    must((await focused(page)).tag === 'H1', 'a new page begins at its heading');
    await tabTo(page, (it) => it.tag === 'INPUT' && it.label === 'Search domains');
    await page.keyboard.type('hackspace');
    await page.getByRole('heading', { level: 2, name: '1 domain' }).waitFor();
    must((await focused(page)).label === 'Search domains', 'searching takes the focus away');
    await tabTo(page, (it) => it.text === 'hackspace.example');
    await press('Enter');
    await page.getByRole('heading', { level: 1, name: 'hackspace.example' }).waitFor();
    await settled(page);
    await tabTo(page, (it) => it.text === 'Block…');
    await press('Enter');
    const dialog = page.getByRole('dialog', { name: 'Block hackspace.example?' });
    await dialog.waitFor();
    await press('Escape');
    await dialog.waitFor({ state: 'detached' });
    must((await focused(page)).text === 'Block…', `the focus goes back to the button, not to ${(await focused(page)).tag}`);
    await press('Enter');
    must((await focused(page)).label === 'Reason', 'a dialog begins at its field');
    await page.keyboard.type('a test');
    await press('Enter');
    // It is said for some seconds only.
    await page.getByText('hackspace.example is blocked.').waitFor();
    await dialog.waitFor({ state: 'detached' });
    await page.getByRole('button', { name: 'Take the block back…' }).waitFor();
    clean(page);
    await page.context().close();
  });

  await report.check('keyboard only: the breaker is a radio group', async () => {
    const page = await visit(running, base);
    await signIn(page, ADMIN);
    await page.getByRole('radio', { name: 'Normal' }).focus();
    await page.keyboard.press('ArrowRight');
    must(await page.getByRole('radio', { name: 'No new contacts' }).isChecked(), 'the arrow moves the lever');
    await tabTo(page, (it) => it.text === 'Switch to “No new contacts”…');
    await page.keyboard.press('Enter');
    await page.keyboard.type('flood');
    await page.keyboard.press('Enter');
    await page.getByText('The outside is at no-new-contacts.').waitFor();
    await page.getByText('“flood”').waitFor();
    clean(page);
    await page.context().close();
  });

  for (const [path, heading] of PAGES) {
    await report.check(`keyboard only: all of ${path} is reached, seen and left`, async () => {
      const page = await visit(running, base);
      await signIn(page, ADMIN);
      await page.getByRole('heading', { level: 1, name: 'Now' }).waitFor();
      await at(page, path, heading);
      await walk(page);
      clean(page);
      await page.context().close();
    });
  }

  await report.check('keyboard only: every dialog is opened, walked, held, closed by Escape, and gives the focus back', async () => {
    const page = await visit(running, base);
    await signIn(page, ADMIN);
    await page.getByRole('heading', { level: 1, name: 'Now' }).waitFor();
    for (const [path, heading, name] of DIALOGS) {
      await at(page, path, heading);
      if (path === 'now') await page.getByRole('radio', { name: 'Closed' }).check();
      const opener = opens(page, name);
      await opener.focus();
      await page.keyboard.press('Enter');
      await page.getByRole('dialog').waitFor();
      await settled(page);
      await held(page, `${path}, ${name}`);
      await accessible(page);
      await page.keyboard.press('Escape');
      await page.getByRole('dialog').waitFor({ state: 'detached' });
      must(await opener.evaluate((it) => it === document.activeElement), `${path}, ${name}: the focus is not given back`);
    }
    clean(page);
    await page.context().close();
  });

  await report.check('skip link, and a toggle between light and dark that stays', async () => {
    const page = await visit(running, base, { colorScheme: 'light' });
    await signIn(page, ADMIN);
    await page.getByRole('heading', { level: 1, name: 'Now' }).waitFor();
    await page.reload();
    await page.getByRole('heading', { level: 1, name: 'Now' }).waitFor();
    await page.keyboard.press('Tab');
    must((await focused(page)).text === 'Skip to the content', 'the first stop is the skip link');
    await page.keyboard.press('Enter');
    must((await focused(page)).tag === 'H1', 'it leads to the heading');
    const background = () => page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
    const light = await background();
    await page.getByRole('button', { name: 'Dark colours' }).click();
    const dark = await background();
    must(light !== dark, 'the colours stay');
    await page.reload();
    await page.getByRole('heading', { level: 1, name: 'Now' }).waitFor();
    must((await background()) === dark, 'the choice is forgotten');
    clean(page);
    await page.context().close();
  });

  await report.check('what outsiders write is text', async () => {
    const page = await visit(running, base);
    await signIn(page, ADMIN);
    await page.getByRole('heading', { level: 1, name: 'Now' }).waitFor();
    await at(page, 'reports/1', 'Report 1');
    await page.getByText('https://coins.example/?ref=<b>you</b>').waitFor();
    must((await page.locator('.message a, .message b').count()) === 0, 'a link or mark of the message is live');
    for (const [path, heading] of [['reports?domain=', 'Requests and reports'], ['domains?search=', 'Domains'], ['audit?search=', 'Audit']]) {
      await at(page, `${path}<img src=x id=evil onerror=alert(1)>\u202E`, heading);
      await inert(page);
    }
    clean(page);
    await page.context().close();
  });

  const worst = await preview('hostile');
  for (const [size, viewport] of [['wide', WIDE], ['phone', PHONE]]) {
    const page = await visit(running, worst, { viewport });
    await signIn(page, ADMIN);
    await page.getByRole('heading', { level: 1, name: 'Now' }).waitFor();
    for (const [path, heading] of PAGES) {
      await report.check(`${size}: markup, turned text and endless words in all of ${path}`, async () => {
        await at(page, path, heading);
        // Some of it is folded away.
        for (const it of await page.locator('main summary').all()) await it.click();
        if (path !== 'domains' && path !== 'you') must(await page.locator('main').getByText('<img src=x id=evil').count(), 'nothing of it is shown');
        await shot(page, shots, `hostile-${path.replace('/', '-')}-${size}`);
        await inert(page);
        await fits(page);
        // Nobody's address pushes the buttons of its row out of sight.
        const [content, seen] = await page.evaluate(() => [...document.querySelectorAll('.table-frame')].map((it) => [it.scrollWidth, it.clientWidth]).find(([all, some]) => all > some) ?? [0, 0]);
        must(content <= seen, `a table is ${content} wide in a frame of ${seen}`);
        await accessible(page);
        clean(page);
      });
    }
    await report.check(`${size}: markup, turned text and endless words in every dialog`, async () => {
      for (const [path, heading, name] of DIALOGS) {
        await at(page, path, heading);
        // On the invented exchange's blocked domain the button is another.
        if (path === 'now') await page.getByRole('radio', { name: 'Closed' }).check();
        const opener = opens(page, path.startsWith('domains/') ? /^(Block|Take the block back)…$/ : name);
        await opener.click();
        await page.getByRole('dialog').waitFor();
        await settled(page);
        await inert(page);
        await fits(page);
        const [content, seen] = await page.getByRole('dialog').evaluate((it) => [it.scrollWidth, it.clientWidth]);
        must(content <= seen, `${path}, ${name}: ${content} wide in a dialog of ${seen}`);
        await page.keyboard.press('Escape');
        await page.getByRole('dialog').waitFor({ state: 'detached' });
      }
      clean(page);
    });
    await page.context().close();
  }

  await report.check('errors are for people: the form says why, and keeps what was typed', async () => {
    const page = await visit(running, base);
    await signIn(page, { ...ADMIN, password: 'wrong' });
    await page.getByRole('alert').getByText('The address or the password is wrong').waitFor();
    await page.getByLabel('Password').fill(ADMIN.password);
    await page.getByRole('button', { name: 'Sign in' }).click();
    await page.getByRole('heading', { level: 1, name: 'Now' }).waitFor();
    await at(page, 'policy', 'Policy');
    await page.getByRole('button', { name: 'Add a rule…' }).click();
    await page.getByLabel('Domain outside').fill('not a domain');
    await page.getByLabel('Reason').fill('because');
    await page.getByRole('button', { name: 'Add the rule' }).click();
    await page.getByText('a domain, such as example.org').waitFor();
    must((await page.getByLabel('Domain outside').getAttribute('aria-invalid')) === 'true', 'the field is not marked');
    await page.keyboard.press('Escape');
    await page.getByRole('textbox', { name: 'Stanza' }).fill('no stanza');
    await page.getByRole('button', { name: 'Test', exact: true }).click();
    await page.getByRole('alert').getByText('line 1: this is not a stanza').waitFor();
    await page.context().setOffline(true);
    await at(page, 'audit', 'Audit');
    await page.getByRole('alert').getByText('The server does not answer.').first().waitFor();
    await page.context().setOffline(false);
    await page.getByRole('alert').getByRole('button', { name: 'Try again' }).first().click();
    await page.getByRole('table', { name: 'Audit log' }).waitFor();
    await page.context().close();
  });

  await report.check('a session that has ended leads back to signing in', async () => {
    const page = await visit(running, base);
    await signIn(page, ADMIN);
    await page.getByRole('heading', { level: 1, name: 'Now' }).waitFor();
    await page.context().clearCookies();
    await page.getByText('Your session has ended.').waitFor();
    await page.context().close();
  });
} catch (error) {
  await report.check('the suite runs', () => {
    throw error;
  });
} finally {
  await running.close();
  servers.forEach((it) => it.kill());
}
process.exitCode = report.end();

function opens(page, name) {
  return page.getByRole('main').getByRole('button', { name, exact: typeof name === 'string' }).and(page.locator(':enabled')).first();
}

/** The open dialog: everything in it is reached by Tab, and nothing behind it. */
async function held(page, where) {
  const expected = await page.getByRole('dialog').evaluate((dialog) => {
    window.__reached = new Set();
    return stops(dialog).length;

    function stops(root) {
      const radios = new Set();
      return [...root.querySelectorAll('a[href], button, input, select, textarea, summary')].filter((it) => {
        if (it.disabled || !it.checkVisibility()) return false;
        if (it.type !== 'radio') return true;
        return radios.has(it.name) ? false : Boolean(radios.add(it.name));
      });
    }
  });
  must((await focused(page)).inside, `${where}: the focus is not in the dialog`);
  for (let n = 0; n < 2 * expected + 4; n += 1) {
    const it = await focused(page);
    // Past the last field is the browser's own frame.
    must(it.inside || it.tag === 'BODY', `${where}: the focus leaves for ${it.tag} ${it.text || it.label}`);
    if (it.inside) must(it.shown, `${where}: no focus to be seen on ${it.tag} ${it.text || it.label}`);
    await page.evaluate(() => window.__reached.add(document.activeElement));
    await page.keyboard.press(n < expected + 2 ? 'Tab' : 'Shift+Tab');
  }
  const reached = await page.evaluate(() => [...window.__reached].filter((it) => it.closest('dialog') && it.tagName !== 'DIALOG').length);
  must(reached >= expected, `${where}: ${reached} reached of ${expected}`);
}

/** What has the focus, and whether one can see that it has. */
async function focused(page) {
  return await page.evaluate(() => {
    const it = document.activeElement;
    const label = it instanceof HTMLInputElement || it instanceof HTMLTextAreaElement || it instanceof HTMLSelectElement ? [...(it.labels ?? [])].map((one) => one.textContent).join(' ') : '';
    // The breaker's radio buttons show the focus on their labels.
    const shown = [it, it?.nextElementSibling].filter(Boolean).some((one) => {
      const style = getComputedStyle(one);
      return style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0;
    });
    const box = it?.getBoundingClientRect();
    return { inside: Boolean(it?.closest('dialog')), tag: it?.tagName ?? '', text: it?.textContent?.trim() ?? '', label, shown, seen: Boolean(box && box.width > 0 && box.height > 0) };
  });
}

async function tabTo(page, wanted, key = 'Tab') {
  for (let n = 0; n < 120; n += 1) {
    await page.keyboard.press(key);
    if (wanted(await focused(page))) return;
  }
  throw new Failed('not reached within 120 steps');
}

/** Steps through the whole page: everything that can be used is reached once, and the end is left. */
async function walk(page) {
  const expected = await page.evaluate(() => {
    const radios = new Set();
    return [...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex="0"]')].filter((it) => {
      if (it.disabled || it.closest('fieldset:disabled')) return false;
      if (it.checkVisibility && !it.checkVisibility()) return false;
      if (it.type !== 'radio') return true;
      // One stop for a group.
      if (radios.has(it.name)) return false;
      radios.add(it.name);
      return true;
    }).length;
  });
  await page.evaluate(() => {
    window.__reached = new Set();
  });
  let left = false;
  await tabTo(page, (it) => it.text === 'Skip to the content');
  for (let n = 0; n < expected + 10; n += 1) {
    const it = await focused(page);
    left = n > 0 && (it.tag === 'BODY' || it.text === 'Skip to the content');
    if (left) break;
    must(it.shown, `no focus to be seen on ${it.tag} ${it.text || it.label}`);
    must(it.seen, `the focus is on something that is not there: ${it.tag} ${it.text}`);
    await page.evaluate(() => window.__reached.add(document.activeElement));
    await page.keyboard.press('Tab');
  }
  const reached = await page.evaluate(() => window.__reached.size);
  must(left, `a trap: after ${reached} of ${expected} the page is not left`);
  must(reached >= expected, `${reached} reached of ${expected}`);
}
