// The web chat in front of a real exchange: a person without an app signs in, writes, is written to, and finds it all
// again after opening the page anew. Once over WebSocket, once over BOSH. Juliet has another client (run.py).

import { Failed, Report, browser, clean, enter, must, shot, visit } from './lib.mjs';

const play = JSON.parse(process.argv[2]);
const report = new Report(process.argv.slice(3));
const { base, shots, ours } = play;

const { stage, leave } = enter(play.port);

const running = await browser();

/** Nothing went wrong, but for answers that are errors: converse.js writes each of them to the console. */
function well(page) {
  page.wrongs = page.wrongs.filter((wrong) => !wrong.startsWith('<iq '));
  clean(page);
}

/** What went over the wire, by transport. */
function watch(page) {
  const seen = { websocket: 0, bosh: 0 };
  page.on('websocket', () => { seen.websocket += 1; });
  page.on('request', (request) => { if (request.url().endsWith('/http-bind')) seen.bosh += 1; });
  return seen;
}

async function signIn(page, name) {
  await page.locator('input[name="jid"]').fill(`${name}@${ours}`);
  await page.locator('input[name="password"]').fill('secret');
  await page.locator('converse-login-form input[type="submit"], converse-login-form button[type="submit"]').first().click();
}

/** Opens the conversation with somebody, by the roster. */
async function talkTo(page, name) {
  await page.locator('.open-chat').filter({ hasText: name }).first().click();
  await page.locator('textarea.chat-textarea').first().waitFor();
}

async function write(page, text) {
  const field = page.locator('textarea.chat-textarea').first();
  await field.fill(text);
  await field.press('Enter');
}

const FACE = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';
await stage('picture', { who: 'juliet', data: FACE });

const said = (page, text) => page.locator('.chat-msg__text').filter({ hasText: text }).first();

for (const [transport, name] of [['websocket', 'rosaline'], ['bosh', 'benvolio']]) {
  let page;
  let seen;
  const check = (what, work) =>
    report.check(`${transport}: ${what}`, async () => {
      try {
        await work();
      } catch (error) {
        if (page) await shot(page, shots, `failed-chat-${transport}-${what.replace(/[^a-z]+/gi, '-').slice(0, 30)}`).catch(() => undefined);
        // What `well` says is nothing else.
        const why = error.message ?? String(error);
        const wrongs = page?.wrongs.join('; ') ?? '';
        throw new Failed(why.includes(wrongs) ? why : `${why} | ${wrongs}`);
      }
    });

  await check('a person signs in with address and password', async () => {
    page = await visit(running, `${base}?transport=${transport}`);
    page.setDefaultTimeout(8_000);
    seen = watch(page);
    await page.locator('input[name="jid"]').waitFor();
    // It fades in.
    await page.waitForTimeout(1500);
    await shot(page, shots, `chat-${transport}-sign-in`);
    await signIn(page, name);
    await page.locator('.open-chat').filter({ hasText: 'juliet' }).first().waitFor();
    must(seen[transport] > 0, `nothing went over ${transport}: ${JSON.stringify(seen)}`);
    must(seen[transport === 'bosh' ? 'websocket' : 'bosh'] === 0, `something went elsewhere: ${JSON.stringify(seen)}`);
    well(page);
  });

  await check('what is written arrives', async () => {
    await talkTo(page, 'juliet');
    const text = `hello from a browser over ${transport}`;
    await write(page, text);
    must(await stage('got', { who: 'juliet', text, seconds: 10 }), 'juliet has not got it');
    well(page);
  });

  await check('what is answered is seen', async () => {
    await stage('say', { from: 'juliet', to: `${name}@${ours}`, text: `an answer over ${transport}` });
    await said(page, `an answer over ${transport}`).waitFor();
    await shot(page, shots, `chat-${transport}-conversation`);
    well(page);
  });

  await check('a friend has a face', async () => {
    // Of one pixel; the page gets it by XMPP, not by HTTP.
    await page.locator(`converse-avatar image[href$="${FACE}"], converse-avatar img[src$="${FACE}"]`).first().waitFor({ state: 'attached' });
    await shot(page, shots, `chat-${transport}-face`);
    well(page);
  });

  await check('a picture from elsewhere is a link and nothing is fetched', async () => {
    await stage('say', { from: 'juliet', to: `${name}@${ours}`, text: 'https://elsewhere.example/cat.png' });
    await said(page, 'elsewhere.example/cat.png').waitFor();
    await page.waitForTimeout(500);
    well(page);
  });

  await check('the history is there after the page is opened anew', async () => {
    const context = page.context();
    await page.close();
    page = await context.newPage();
    page.wrongs = [];
    page.on('pageerror', (error) => page.wrongs.push(`error in the page: ${error.message}`));
    await context.clearCookies();
    // Nothing of the old page is left to show it from. A file of ours with no script in it: to leave the chat while it is
    // still loading (its load event does not wait for its settings) breaks off what it fetches, which is an error in it.
    await page.goto(`${base}NOTICE.txt`);
    await page.evaluate(async () => {
      localStorage.clear();
      sessionStorage.clear();
      const gone = (name) =>
        new Promise((resolve, reject) => Object.assign(indexedDB.deleteDatabase(name), { onsuccess: resolve, onerror: reject, onblocked: reject }));
      await Promise.all((await indexedDB.databases()).map(({ name }) => gone(name)));
    });
    await page.goto(`${base}?transport=${transport}`);
    page.setDefaultTimeout(8_000);
    await page.locator('input[name="jid"]').waitFor();
    await signIn(page, name);
    await page.locator('.open-chat').filter({ hasText: 'juliet' }).first().waitFor();
    await talkTo(page, 'juliet');
    await said(page, `hello from a browser over ${transport}`).waitFor();
    await said(page, `an answer over ${transport}`).waitFor();
    await shot(page, shots, `chat-${transport}-history`);
    well(page);
  });
  await page?.context().close();
}

await running.close();
leave();
process.exitCode = report.end();
