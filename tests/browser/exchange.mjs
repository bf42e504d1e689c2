// The console in front of a real exchange that federates with a real Prosody. run.py starts all of it and does what
// people with XMPP clients do (`stage`).

import { PHONE, Report, accessible, at, browser, clean, enter, fits, inert, must, settled, shot, signIn, totp, visit } from './lib.mjs';

const play = JSON.parse(process.argv[2]);
const report = new Report(process.argv.slice(3));
const { base, shots, ours, theirs } = play;
const admin = { address: `admin@${ours}`, password: 'secret' };
const moderator = { address: `moderator@${ours}`, password: 'secret' };

const { stage, leave } = enter(play.port);

/** What nobody's client should take for more than text. */
const MARKUP = '<img src=x id=evil onerror=alert(1)><b id=evil>b</b>';

const running = await browser();
let page;
let secret = '';

const heading = (name) => page.getByRole('heading', { level: 1, name }).waitFor();
const row = (text) => page.getByRole('row').filter({ hasText: text }).first();

/** A check, with a picture of what was seen when it failed; the next one begins with the page as it opens. */
async function check(name, work) {
  await report.check(name, async () => {
    try {
      await work();
    } catch (error) {
      await shot(page, shots, `failed-${name.replace(/[^a-z]+/gi, '-').slice(0, 40)}`).catch(() => undefined);
      await page.reload().catch(() => undefined);
      page.wrongs.length = 0;
      throw error;
    }
  });
}

async function audited(what, why) {
  await at(page, 'audit', 'Audit');
  await page.getByRole('row').filter({ hasText: what }).filter({ hasText: why }).first().waitFor();
}

await check('who is not there is answered like a wrong password, and who is no administrator stays outside', async () => {
  page = await visit(running, base);
  const texts = [];
  for (const person of [{ ...admin, password: 'wrong' }, { address: `juliet@${ours}`, password: 'secret' }, { address: `nobody@${ours}`, password: 'secret' }]) {
    await page.getByLabel('Password').fill('');
    await signIn(page, person);
    texts.push(await page.getByRole('alert').innerText());
    await page.reload();
  }
  const [wrong, other, missing] = texts;
  must(wrong === missing, `two answers: ${wrong} | ${missing}`);
  must(other.includes('may not use the console'), other);
});

await check('signing in with SCRAM; the cookie is none of a script\'s business', async () => {
  await signIn(page, admin);
  await heading('Now');
  const cookies = await page.context().cookies();
  must(cookies.length === 1 && cookies[0].httpOnly && cookies[0].sameSite === 'Strict', JSON.stringify(cookies));
  const forged = await page.evaluate(async () => {
    const response = await fetch('/api/v1/breaker', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ level: 'closed', why: 'forged' }) });
    return response.status;
  });
  must(forged === 403, `without the session's secret: ${forged}`);
  clean(page);
});

await check('a second factor: set up, asked for, and a wrong code is refused', async () => {
  await at(page, 'you', 'You and this server');
  await page.getByRole('button', { name: 'Set it up' }).click();
  await page.getByRole('img', { name: 'The address below' }).waitFor();
  secret = await page.locator('.facts > div').filter({ hasText: /^Secret/ }).locator('dd').innerText();
  await shot(page, shots, 'exchange-totp');
  await page.getByLabel('Code').fill(totp(secret));
  await page.getByRole('button', { name: 'Switch it on' }).click();
  await page.getByText('To switch it off').waitFor();
  await page.getByRole('button', { name: 'Sign out' }).click();
  await page.getByText('You are signed out.').waitFor();
  await signIn(page, admin);
  await page.getByRole('heading', { name: 'Your second factor' }).waitFor();
  const wrong = totp(secret, 0) === totp(secret) ? '123456' : totp(secret, 0);
  await page.getByLabel('Code').fill(wrong);
  await page.getByRole('button', { name: 'Go on' }).click();
  await page.getByRole('alert').waitFor();
  // A code is good once: the one of the next half minute is another.
  await page.getByLabel('Code').fill(totp(secret, Date.now() + 30_000));
  await page.getByRole('button', { name: 'Go on' }).click();
  await heading('You and this server');
  clean(page);
});

await check('traffic with a real Prosody is seen', async () => {
  await stage('talk');
  await at(page, 'domains', 'Domains');
  await row(theirs).getByText('Connected').waitFor();
  await at(page, `domains/${theirs}`, theirs);
  await page.locator('.facts').getByText('certificate').first().waitFor();
  await shot(page, shots, 'exchange-domain');
  await accessible(page);
  clean(page);
});

await check('blocking a domain cuts a real Prosody off, and taking it back lets it in', async () => {
  await at(page, `domains/${theirs}`, theirs);
  await page.getByRole('button', { name: 'Block…' }).click();
  await page.getByRole('dialog').getByLabel('Reason').fill('spam since Monday');
  await page.getByRole('dialog').getByRole('button', { name: 'Block', exact: true }).click();
  await page.getByRole('button', { name: 'Take the block back…' }).waitFor();
  await page.getByText('Blocked').first().waitFor();
  must((await stage('streams', { domain: theirs })) === 0, 'its streams are still there');
  const out = await stage('say', { from: 'juliet', to: `romeo@${theirs}`, text: 'out to the blocked' });
  must((await stage('bounce', { who: 'juliet', id: out })).includes('spam since Monday'), 'the error does not say why');
  await stage('say', { from: 'romeo', to: `juliet@${ours}`, text: 'in from the blocked' });
  must(!(await stage('got', { who: 'juliet', text: 'in from the blocked', seconds: 3 })), 'what the blocked say arrives');
  await settled(page);
  await shot(page, shots, 'exchange-blocked');
  await page.getByRole('button', { name: 'Take the block back…' }).click();
  await page.getByRole('dialog').getByLabel('Reason').fill('they answered');
  await page.getByRole('dialog').getByRole('button', { name: 'Take the block back' }).click();
  await page.getByRole('button', { name: 'Block…' }).waitFor();
  await stage('talk');
  await audited('block', 'spam since Monday');
  await shot(page, shots, 'exchange-audit');
  clean(page);
});

await check('the breaker: closed, inside goes on, and opened again', async () => {
  await at(page, 'now', 'Now');
  await page.getByRole('radio', { name: 'Closed' }).check();
  await page.getByRole('button', { name: 'Switch to “Closed”…' }).click();
  const dialog = page.getByRole('dialog');
  await dialog.getByRole('button', { name: 'Cut off' }).click();
  must(await dialog.isVisible(), 'a reason is not asked for');
  await dialog.getByLabel('Reason').fill('a flood from everywhere');
  await dialog.getByRole('button', { name: 'Cut off' }).click();
  await dialog.waitFor({ state: 'detached' });
  await page.getByText('“a flood from everywhere”').waitFor();
  await page.getByRole('link', { name: 'Breaker: Closed' }).waitFor();
  must((await stage('streams', { domain: null })) === 0, 'there are streams');
  await stage('inside');
  await stage('say', { from: 'romeo', to: `juliet@${ours}`, text: 'into the closed' });
  must(!(await stage('got', { who: 'juliet', text: 'into the closed', seconds: 3 })), 'a message from outside arrives');
  await shot(page, shots, 'exchange-closed');
  await page.getByRole('radio', { name: 'Normal' }).check();
  await page.getByRole('button', { name: 'Switch to “Normal”…' }).click();
  await dialog.getByLabel('Reason').fill('it is over');
  await dialog.getByRole('button', { name: 'Open again' }).click();
  await page.getByRole('link', { name: 'Breaker: Normal' }).waitFor();
  await stage('talk');
  await audited('breaker', 'a flood from everywhere');
  clean(page);
});

await check('a rule is added, tested with a stanza, felt outside, and removed', async () => {
  await at(page, 'policy', 'Policy');
  await page.getByRole('button', { name: 'Add a rule…' }).click();
  const dialog = page.getByRole('dialog');
  await dialog.getByLabel('Domain outside').fill(theirs);
  await dialog.getByLabel('message', { exact: true }).check();
  await dialog.getByLabel('a link').check();
  await dialog.getByLabel('Error condition').fill('not-acceptable');
  await dialog.getByLabel('Reason').fill('no links from there');
  await shot(page, shots, 'exchange-rule', false);
  await dialog.getByRole('button', { name: 'Add the rule' }).click();
  await dialog.waitFor({ state: 'detached' });
  await row('no links from there').waitFor();
  const stanza = (text) => `<message from='romeo@${theirs}' to='juliet@${ours}' type='chat'><body>${text}</body></message>`;
  await page.getByRole('textbox', { name: 'Stanza' }).fill(stanza('look: https://example.com/'));
  await page.getByRole('button', { name: 'Test', exact: true }).click();
  await page.locator('.result').getByText('Reject').waitFor();
  await page.locator('.result').getByText('no links from there').waitFor();
  await page.getByRole('textbox', { name: 'Stanza' }).fill(stanza('no link'));
  await page.getByLabel('They are').selectOption('conversation');
  await page.getByRole('button', { name: 'Test', exact: true }).click();
  await page.locator('.result').getByText('Allow').waitFor();
  await shot(page, shots, 'exchange-policy');
  await accessible(page);
  const id = await stage('say', { from: 'romeo', to: `juliet@${ours}`, text: 'look: https://example.com/' });
  must((await stage('bounce', { who: 'romeo', id })).includes('not-acceptable'), 'the error is another');
  await row('no links from there').getByRole('button', { name: /Remove/ }).click();
  await dialog.getByLabel('Reason').fill('a test');
  await dialog.getByRole('button', { name: 'Remove' }).click();
  await page.getByText('No rules: the preset decides everything.').waitFor();
  await stage('say', { from: 'romeo', to: `juliet@${ours}`, text: 'again: https://example.com/' });
  must(await stage('got', { who: 'juliet', text: 'again: https://example.com/', seconds: 60 }), 'the removed rule still counts');
  clean(page);
});

await check('rules are edited and moved, blocks imported and taken back', async () => {
  await at(page, 'policy', 'Policy');
  const dialog = page.getByRole('dialog');
  for (const [domain, reason] of [['second.example', 'the second'], ['first.example', 'the first']]) {
    await page.getByRole('button', { name: 'Add a rule…' }).click();
    await dialog.getByLabel('Domain outside').fill(domain);
    await dialog.getByLabel('Reason').fill(reason);
    await dialog.getByRole('button', { name: 'Add the rule' }).click();
    await dialog.waitFor({ state: 'detached' });
    await row(reason).waitFor();
  }
  const order = async () => {
    const texts = await page.getByRole('row').allInnerTexts();
    return texts.findIndex((it) => it.includes('the first')) - texts.findIndex((it) => it.includes('the second'));
  };
  must((await order()) < 0, 'a new rule is not the first');
  await row('the first').getByRole('button', { name: /^Move .* down$/ }).click();
  await row('the first').getByRole('button', { name: /^Move .* up$/ }).and(page.locator(':enabled')).waitFor();
  must((await order()) > 0, 'it was not moved');
  await row('the second').getByRole('button', { name: /^Edit/ }).click();
  must((await dialog.getByLabel('Domain outside').inputValue()) === 'second.example', 'the form does not have the rule');
  await dialog.getByLabel('Reason').fill('the other');
  await dialog.getByRole('button', { name: 'Replace the rule' }).click();
  await dialog.waitFor({ state: 'detached' });
  await row('the other').waitFor();
  for (const reason of ['the other', 'the first']) {
    await row(reason).getByRole('button', { name: /Remove/ }).click();
    await dialog.getByLabel('Reason').fill('a test');
    await dialog.getByRole('button', { name: 'Remove' }).click();
    await row(reason).waitFor({ state: 'detached' });
  }
  await page.getByRole('button', { name: 'Import…' }).click();
  await dialog.getByLabel('What is in it').fill('domain,subdomains,reason,until\nno domain,false,r,\n');
  await dialog.getByLabel('Reason').fill('a file');
  await dialog.getByRole('button', { name: 'Import' }).click();
  await dialog.getByRole('alert').waitFor();
  await dialog.getByLabel('What is in it').fill('domain,subdomains,reason,until\nimported.example,false,from a file,\n');
  await dialog.getByRole('button', { name: 'Import' }).click();
  await row('imported.example').waitFor();
  // It is known, though it was never seen.
  await at(page, 'domains/imported.example', 'imported.example');
  await page.getByText('Blocked').first().waitFor();
  await at(page, 'policy', 'Policy');
  await row('imported.example').getByRole('button', { name: /^Take back/ }).click();
  await dialog.getByLabel('Reason').fill('a test');
  await dialog.getByRole('button', { name: 'Take the block back' }).click();
  await row('imported.example').waitFor({ state: 'detached' });
  clean(page);
});

await check('a wrong rule is refused in words', async () => {
  await at(page, 'policy', 'Policy');
  await page.getByRole('button', { name: 'Add a rule…' }).click();
  const dialog = page.getByRole('dialog');
  await dialog.getByLabel('Error condition').fill('no-such-condition');
  await dialog.getByLabel('Reason').fill('a test');
  await dialog.getByRole('button', { name: 'Add the rule' }).click();
  await dialog.getByRole('alert').waitFor();
  must((await dialog.getByRole('alert').innerText()).includes('no-such-condition'), 'the error does not name what is wrong');
  await page.keyboard.press('Escape');
  await page.getByText('No rules: the preset decides everything.').waitFor();
  clean(page);
});

await check('a list of theirs is followed, its bans take effect and end, and it is left', async () => {
  const spammer = `romeo@${theirs}`;
  const entries = (n) => row('theirs').getByRole('cell').nth(2).getByText(n, { exact: true }).waitFor();
  await stage('ban', { who: 'first.example', reason: MARKUP });
  await at(page, 'lists', 'Lists');
  await page.getByRole('button', { name: 'Follow a list…' }).click();
  const dialog = page.getByRole('dialog');
  await dialog.getByLabel('Name here').fill('theirs');
  await dialog.getByLabel('Pubsub service').fill(theirs);
  await dialog.getByLabel('Node').fill('muc_bans_sha256');
  await dialog.getByLabel('Those on it').selectOption('reject');
  await dialog.getByLabel('Reason').fill('they know their spammers');
  await dialog.getByRole('button', { name: 'Follow', exact: true }).click();
  // The page asks again by itself.
  await row('theirs').getByText('subscribed').waitFor();
  await stage('talk');
  const banned = await stage('ban', { who: spammer, reason: 'he sells pills' });
  await at(page, 'lists/theirs', 'List theirs');
  await row(banned).getByText('he sells pills').waitFor();
  await row('first.example').getByText(MARKUP).waitFor();
  await inert(page);
  await fits(page);
  await shot(page, shots, 'exchange-list-theirs');
  const id = await stage('say', { from: 'romeo', to: `juliet@${ours}`, text: 'pills' });
  must((await stage('bounce', { who: 'romeo', id })).includes('policy-violation'), 'who is on the list still writes');
  await at(page, 'lists', 'Lists');
  await entries(2);
  must((await row('theirs').getByRole('cell').allInnerTexts())[4] === '1', 'what the list decided is not counted');
  await shot(page, shots, 'exchange-lists-followed');
  await stage('ban', { who: spammer });
  await entries(1);
  await stage('talk');
  await row('theirs').getByRole('button', { name: 'Stop following theirs' }).click();
  await dialog.getByLabel('Reason').fill('a test');
  await dialog.getByRole('button', { name: 'Stop following' }).click();
  await row('theirs').waitFor({ state: 'detached' });
  await stage('ban', { who: spammer, reason: 'he sells pills again' });
  await stage('talk');
  await audited('lists subscribe', 'they know their spammers');
  clean(page);
});

await check('a report is handled: the sender is blocked for everybody', async () => {
  const id = await stage('report', { who: 'juliet', about: `tybalt@${theirs}`, text: 'he will not stop' });
  must(id !== '', 'nothing was reported');
  await at(page, 'now', 'Now');
  await page.getByRole('link', { name: /^Requests and reports ?, waiting: 1$/ }).waitFor();
  await at(page, 'reports', 'Requests and reports');
  await shot(page, shots, 'exchange-reports');
  await page.getByRole('link', { name: `tybalt@${theirs}` }).first().click();
  await page.getByRole('heading', { level: 1, name: /^Report / }).waitFor();
  await page.getByText('he will not stop').waitFor();
  await accessible(page);
  await page.getByRole('radio', { name: 'Block the sender' }).check();
  await page.getByLabel('Reason', { exact: true }).last().fill('threats');
  await shot(page, shots, 'exchange-report');
  await page.getByRole('button', { name: 'Decide' }).click();
  await page.getByText('handled', { exact: true }).waitFor();
  await stage('say', { from: 'tybalt', to: `mercutio@${ours}`, text: 'you too' });
  must(!(await stage('got', { who: 'mercutio', text: 'you too', seconds: 3 })), 'the blocked sender still writes');
  await at(page, 'reports', 'Requests and reports');
  await page.getByText('Nothing waits for you.').waitFor();
  await audited('report', 'threats');
  clean(page);
});

await check('a stranger waits for consent, and a moderator throws it away', async () => {
  await stage('say', { from: 'paris', to: `mercutio@${ours}`, text: 'hello stranger' });
  must(!(await stage('got', { who: 'mercutio', text: 'hello stranger', seconds: 2 })), 'it was delivered as a message');
  await at(page, 'reports', 'Requests and reports');
  await row(`paris@${theirs}`).waitFor();
  must(!(await page.getByText('hello stranger').isVisible()), 'what was written is shown');
  await row(`paris@${theirs}`).getByRole('button', { name: /^Drop/ }).click();
  await page.getByRole('dialog').getByLabel('Reason').fill('a test');
  await page.getByRole('dialog').getByRole('button', { name: 'Drop' }).click();
  await page.getByText('Nobody waits.').waitFor();
  clean(page);
});

await check('our own list: published, shown, taken off', async () => {
  await at(page, 'lists/own', 'Our own list');
  await page.getByRole('button', { name: 'Put somebody on it…' }).click();
  await page.getByRole('dialog').getByLabel('Address or domain').fill('spam.example');
  await page.getByRole('dialog').getByLabel('Reason').fill('invitations to everybody');
  await page.getByRole('dialog').getByRole('button', { name: 'Publish' }).click();
  await row('spam.example').waitFor();
  await shot(page, shots, 'exchange-list');
  await row('spam.example').getByRole('button', { name: /^Take off/ }).click();
  await page.getByRole('dialog').getByLabel('Reason').fill('a test');
  await page.getByRole('dialog').getByRole('button', { name: 'Take off' }).click();
  await page.getByText('Nobody is on it.').waitFor();
  clean(page);
});

await check('who follows our own list is seen, is told, and can be ended', async () => {
  const follower = `romeo@${theirs}`;
  for (const node of ['muc_bans_sha256', 'spam_source_domains']) await stage('follow', { who: 'romeo', node });
  await at(page, 'lists', 'Lists');
  await at(page, 'lists/own', 'Our own list');
  await page.getByRole('heading', { level: 2, name: 'Followed by 2 subscriptions' }).waitFor();
  await page.getByRole('button', { name: 'Put somebody on it…' }).click();
  const dialog = page.getByRole('dialog');
  await dialog.getByLabel('Address or domain').fill('spam.example');
  await dialog.getByLabel('Reason').fill('a test');
  await dialog.getByRole('button', { name: 'Publish' }).click();
  await page.getByText('spam.example is on our list; 1 subscriber was told.').waitFor();
  must(await stage('told', { who: 'romeo', entry: 'spam.example' }), 'the subscriber is not told');
  await page.getByLabel('Search who follows it').fill('nobody');
  await page.getByText('No address contains “nobody”.').waitFor();
  await page.getByLabel('Search who follows it').fill('ROMEO');
  await shot(page, shots, 'exchange-followers');
  await accessible(page);
  await page.getByRole('button', { name: `End the subscription of ${follower} to spam_source_domains` }).click();
  await dialog.getByLabel('Reason').fill('he tells the spammers');
  await dialog.getByRole('button', { name: 'End', exact: true }).click();
  await page.getByText('No address contains “ROMEO”.').waitFor();
  await row('spam.example').getByRole('button', { name: /^Take off/ }).click();
  await dialog.getByLabel('Reason').fill('a test');
  await dialog.getByRole('button', { name: 'Take off' }).click();
  await page.getByText('spam.example is off our list; 0 subscribers were told.').waitFor();
  await audited('lists remove subscriber', 'he tells the spammers');
  clean(page);
});

await check('an account: added, logs in, its sessions end, removed', async () => {
  await at(page, 'accounts', 'Accounts');
  await page.getByRole('button', { name: 'Add an account…' }).click();
  const dialog = page.getByRole('dialog');
  await dialog.getByLabel('Address').fill(`rosaline@${ours}`);
  await dialog.getByLabel('Password').fill('a good password');
  await dialog.getByRole('button', { name: 'Add', exact: true }).click();
  await row(`rosaline@${ours}`).waitFor();
  await stage('login', { who: 'rosaline', password: 'a good password' });
  await page.reload();
  await row(`rosaline@${ours}`).getByRole('button', { name: /^End sessions/ }).click();
  await dialog.getByRole('button', { name: 'End sessions' }).click();
  must(await stage('ended', { who: 'rosaline' }), 'the session goes on');
  await row(`rosaline@${ours}`).getByRole('button', { name: /^Devices/ }).click();
  await dialog.getByText('No device has signed in.').or(dialog.getByRole('table')).first().waitFor();
  await accessible(page);
  await dialog.getByRole('button', { name: 'Close' }).click();
  await stage('login', { who: 'rosaline', password: 'a good password' });
  await row(`rosaline@${ours}`).getByRole('button', { name: /^Devices/ }).click();
  await dialog.getByText('connected', { exact: true }).waitFor();
  await shot(page, shots, 'exchange-devices', false);
  await dialog.getByRole('button', { name: /^Sign out / }).first().click();
  must(await stage('ended', { who: 'rosaline' }), 'the device goes on');
  await dialog.getByRole('button', { name: 'Close' }).click();
  await row(`rosaline@${ours}`).getByRole('button', { name: /^Disable/ }).click();
  await dialog.getByRole('button', { name: 'Disable' }).click();
  await row(`rosaline@${ours}`).getByText('disabled', { exact: true }).waitFor();
  const unheard = await stage('say', { from: 'juliet', to: `rosaline@${ours}`, text: 'are you there?' });
  must((await stage('bounce', { who: 'juliet', id: unheard })).includes('service-unavailable'), 'a disabled account is found');
  await row(`rosaline@${ours}`).getByRole('button', { name: /^Enable/ }).click();
  await dialog.getByRole('button', { name: 'Enable' }).click();
  await row(`rosaline@${ours}`).getByText('disabled', { exact: true }).waitFor({ state: 'detached' });
  await row(`rosaline@${ours}`).getByRole('button', { name: /^Remove/ }).click();
  await dialog.getByLabel('Type the address').fill('somebody else');
  await dialog.getByRole('button', { name: 'Remove' }).click();
  await dialog.getByText('that is another address').waitFor();
  await dialog.getByLabel('Type the address').fill(`rosaline@${ours}`);
  await dialog.getByRole('button', { name: 'Remove' }).click();
  await row(`rosaline@${ours}`).waitFor({ state: 'detached' });
  await page.getByRole('button', { name: 'Invite…' }).click();
  await dialog.getByRole('button', { name: 'Make an invitation' }).click();
  must((await dialog.getByLabel('Invitation').inputValue()).startsWith('xmpp:'), 'no link');
  await dialog.getByRole('button', { name: 'Close' }).click();
  clean(page);
});

await check('a token: works for its scope only, and not after it is revoked', async () => {
  await at(page, 'accounts', 'Accounts');
  await page.getByRole('button', { name: 'Make a token…' }).click();
  const dialog = page.getByRole('dialog');
  await dialog.getByLabel('Name').fill('a test');
  await dialog.getByRole('button', { name: 'Make', exact: true }).click();
  const token = await dialog.getByLabel('Token', { exact: true }).inputValue();
  await dialog.getByRole('button', { name: 'Close' }).click();
  const status = async (path) => (await fetch(new URL(`/api/v1${path}`, base), { headers: { Authorization: `Bearer ${token}` } })).status;
  must((await status('/now')) === 200, 'the token does not work');
  must((await status('/accounts')) === 403, 'the token may do more than its scope');
  await page.getByRole('button', { name: 'Revoke a test' }).click();
  await dialog.getByRole('button', { name: 'Revoke' }).click();
  await page.getByText('There are no tokens.').waitFor();
  must((await status('/now')) === 401, 'the revoked token works');
  clean(page);
});

await check('what outsiders write is text, wherever it is shown', async () => {
  await stage('report', { who: 'juliet', about: `romeo@${theirs}`, text: MARKUP, message: MARKUP });
  await stage('say', { from: 'paris', to: `mercutio@${ours}`, text: MARKUP });
  await stage('login', { who: 'mercutio', password: 'secret', resource: MARKUP });
  await at(page, 'reports', 'Requests and reports');
  await page.getByRole('link', { name: `romeo@${theirs}` }).first().click();
  await page.getByRole('heading', { level: 1, name: /^Report / }).waitFor();
  // The text of the report, and the message.
  await page.locator('.facts').getByText(MARKUP).waitFor();
  await page.locator('.message').getByText(MARKUP).waitFor();
  await inert(page);
  await fits(page);
  await shot(page, shots, 'exchange-markup-report');
  await page.getByRole('radio', { name: 'Dismiss' }).check();
  await page.getByLabel('Reason', { exact: true }).last().fill(MARKUP);
  await page.getByRole('button', { name: 'Decide' }).click();
  await page.getByText('handled', { exact: true }).waitFor();
  await inert(page);
  await at(page, 'accounts', 'Accounts');
  await row(`mercutio@${ours}`).getByRole('button', { name: /^Devices/ }).click();
  await page.getByRole('dialog').getByText(MARKUP).waitFor();
  await inert(page);
  await shot(page, shots, 'exchange-markup-device', false);
  await page.keyboard.press('Escape');
  for (const [path, name] of [['reports?all=yes', 'Requests and reports'], ['audit', 'Audit'], ['now', 'Now'], [`domains/${theirs}`, theirs]]) {
    await at(page, path, name);
    if (['audit', 'now'].includes(path)) await page.getByText(MARKUP).first().waitFor();
    await inert(page);
    await fits(page);
  }
  clean(page);
});

await check('every page with what a real server says', async () => {
  for (const [path, name] of [['now', 'Now'], ['domains', 'Domains'], ['policy', 'Policy'], ['reports', 'Requests and reports'], ['lists', 'Lists'], ['audit', 'Audit'], ['accounts', 'Accounts'], ['you', 'You and this server']]) {
    await at(page, path, name);
    await accessible(page);
    await fits(page);
    must((await page.getByRole('alert').count()) === 0, `${path}: ${await page.getByRole('alert').allInnerTexts()}`);
    await shot(page, shots, `exchange-${path}`);
  }
  clean(page);
});

await check('a moderator on a phone sees what a moderator may', async () => {
  const phone = await visit(running, base, { viewport: PHONE });
  await signIn(phone, moderator);
  await phone.getByRole('heading', { level: 1, name: 'Now' }).waitFor();
  await phone.getByRole('button', { name: 'Menu' }).click();
  await phone.getByRole('link', { name: 'Audit' }).waitFor();
  must((await phone.getByRole('link', { name: 'Accounts' }).count()) === 0, 'Accounts is offered');
  await at(phone, 'accounts', 'Not for you');
  await at(phone, 'policy', 'Policy');
  must((await phone.getByRole('button', { name: 'Add a rule…' }).count()) === 0, 'rules can be added');
  await at(phone, `domains/${theirs}`, theirs);
  await phone.getByRole('button', { name: 'Block…' }).waitFor();
  must(await phone.getByRole('radio', { name: 'Closed' }).isDisabled(), 'the breaker can be pulled');
  await fits(phone);
  await shot(phone, shots, 'exchange-moderator-phone');
  clean(phone);
  await phone.context().close();
});

await running.close();
leave();
process.exitCode = report.end();
