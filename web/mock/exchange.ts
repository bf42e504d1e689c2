// An invented exchange: enough of the API to develop the console without a server. Sign in as admin@trunkline.example
// with the password "secret"; with the second factor enrolled, any code of six digits but 000000 is right.

import { createHash, createHmac, pbkdf2Sync, randomBytes } from 'node:crypto';

import type * as api from '../src/api/types';
import { blockOf } from '../src/logic/rules';

export interface Answer {
  status: number;
  body?: unknown;
  cookie?: string;
}

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const ADMIN = 'admin@trunkline.example';
const NAMES = [
  'jabber.example', 'conference.berlin.example', 'chat.university.example', 'xmpp.cooperative.example', 'spamhaven.example', 'mail-and-more.example',
  'tiny.example', 'gateway.matrix.example', 'rooms.city.example', 'freeshells.example', 'old-jabber.example', 'hackspace.example',
  'newcomer.example', 'bulk.spamhaven.example', 'library.example', 'parliament.example',
];

/** Always the same for one name and place. */
function noise(name: string, n: number): number {
  return createHash('sha256').update(`${name}/${n}`).digest().readUInt32BE(0) / 0xffffffff;
}

type Fields = Record<string, unknown>;

export class Exchange {
  private readonly salt = randomBytes(16);
  private readonly logins = new Map<string, { bare: string; serverFirst: string; proved: boolean }>();
  private readonly cookies = new Set<string>();
  private readonly csrf = 'mock-token';
  private totp = false;
  private devices: api.Device[] = [
    { id: 'a8fk2', connected: true, first_seen: Date.now() - 90 * DAY, last_seen: Date.now() - 2 * HOUR, password: true, token: true, software: 'Conversations', device: 'Pixel 9', resources: ['Conversations.x1'] },
    { id: 'q0rj7', connected: false, first_seen: Date.now() - 400 * DAY, last_seen: Date.now() - 61 * DAY, password: false, token: true, software: 'Gajim', device: 'desk', resources: [] },
  ];
  private scopes: api.Scope[] = ['read', 'moderate', 'operate', 'accounts', 'audit'];
  private preset: api.Preset = 'careful';
  private presetShadow = false;
  private rules: api.RuleView[];
  private blocks: api.BlockView[];
  private all: api.LevelView = { domain: null, level: 'normal', reason: '', set_by: '', set_at: 0, until: null };
  private levels: api.LevelView[];
  private audit: api.AuditEntry[] = [];
  private reports: api.ReportView[];
  private requests: api.RequestView[];
  private lists: api.ListView[];
  private own: api.ListEntry[] = [{ entry: 'spamhaven.example', reason: 'sends invitations to random addresses' }];
  private subscribers: api.Subscriber[];
  private users: api.User[];
  private tokens: api.Token[];

  constructor() {
    const now = Date.now();
    const rule = (id: number | null, part: Partial<api.Rule>, hits: number, shadow = 0): api.RuleView => ({
      id, set_by: id === null ? 'configuration' : ADMIN, set_at: now - (id ?? 1) * 5 * HOUR, hits, shadow_hits: shadow,
      rule: { when: {}, direction: 'in', then: { do: 'reject' }, reason: '', until: null, shadow: false, ...part },
    });
    this.rules = [
      rule(null, { when: { domain: 'parliament.example', subdomains: true }, direction: 'both', then: { do: 'allow' }, reason: 'a partner: always reachable' }, 8123),
      rule(1, { when: { domain: 'bulk.spamhaven.example', kind: ['invitation'] }, then: { do: 'drop' }, reason: 'invitations to everybody' }, 40_311),
      rule(2, { when: { relation: ['stranger'], has: ['link'], kind: ['message'] }, then: { do: 'text-only' }, reason: 'links of strangers are not passed' }, 212),
      rule(3, { when: { first_seen_within: 86_400, faster_than: 120 }, then: { do: 'limit', per_minute: 30 }, reason: 'new domains begin slowly' }, 1780),
      rule(4, { when: { authentication: 'dialback', relation: ['stranger'] }, then: { do: 'hold' }, reason: 'would dialback be a loss?', shadow: true }, 0, 391),
    ];
    this.blocks = [
      { block: { domain: 'spamhaven.example', subdomains: true, reason: 'spam invitations since Monday', until: now + 12 * DAY }, set_by: ADMIN, set_at: now - 5 * HOUR, configured: false },
      { block: { domain: 'old-spam.example', subdomains: false, reason: 'never again', until: null }, set_by: 'configuration', set_at: 0, configured: true },
    ];
    this.levels = [{ domain: 'freeshells.example', level: 'no-new-contacts', reason: 'flood of subscription requests', set_by: 'trigger: refusals over half', set_at: now - 40 * MINUTE, until: now + 20 * MINUTE }];
    const stanza = (id: number, body: string) => `<message xmlns='jabber:client' from='crypto-profits@spamhaven.example/1' to='juliet@trunkline.example' type='chat' id='${id}'><body>${body}</body></message>`;
    const report = (id: number, part: Partial<api.ReportView>): api.ReportView => ({
      id, at: now - id * 37 * MINUTE, reporter: 'juliet@trunkline.example', affiliation: 'registered', about: 'crypto-profits@spamhaven.example', reason: 'spam',
      text: 'I do not know this person. Third time today.', stanza_ids: [`2026-11-2${id}-f81d`, `2026-11-2${id}-a077`],
      messages: [stanza(id, 'Hi! Earn 40 coins a day from home: https://coins.example/?ref=&lt;b>you&lt;/b>'), stanza(id, 'Last chance, dear')], may_forward: true, may_share: false, state: 'open', actions: [], ...part,
    });
    this.reports = [
      report(1, {}),
      report(2, { reporter: 'mercutio@trunkline.example', about: 'tybalt@old-jabber.example', reason: 'abuse', text: 'Threats, see the last message.', messages: ['You will regret this.'] }),
      report(3, { about: 'bot77@bulk.spamhaven.example', text: '', may_forward: false }),
      report(4, { state: 'handled', about: 'seller@freeshells.example', actions: [`${ADMIN} block-sender: sells accounts`] }),
    ];
    this.requests = ['crypto-profits@spamhaven.example', 'bot77@bulk.spamhaven.example', 'anna@tiny.example', 'office@library.example', 'x31@freeshells.example'].map((from, n) => ({
      id: 90 - n, account: `${['juliet', 'mercutio', 'romeo'][n % 3] ?? ''}@trunkline.example`, from, stanzas: 1 + Math.round(noise(from, 1) * 9), since: now - (n + 1) * 17 * MINUTE, asks_subscription: n % 2 === 1,
    }));
    this.lists = [
      { name: 'jabberspam', service: 'pubsub.lists.example', node: 'urn:jabberspam:domains', action: { do: 'reject' }, entries: 143, state: 'subscribed', changed_at: now - 3 * HOUR, hits: 2711 },
      { name: 'muc-bans', service: 'pubsub.rooms.city.example', node: 'bans-sha256', action: null, entries: 28, state: 'the service does not answer: remote-server-timeout', changed_at: now - 6 * DAY, hits: 3 },
      { name: 'own', service: 'trunkline.example', node: 'urn:xmpp:blocklist', action: null, entries: 1, state: 'published', changed_at: now - 2 * DAY, hits: 0 },
    ];
    this.subscribers = ['pubsub.rooms.city.example', 'lists@hackspace.example/bot', 'admin@tiny.example', 'admin@library.example'].flatMap((address, n) => ['muc_bans_sha256', 'spam_source_domains'].slice(n % 2).map((node) => ({
      address, node, host: 'trunkline.example', since: now - (n + 1) * 61 * DAY, until: now + (27 - 5 * n) * DAY,
    })));
    this.users = ['admin', 'benvolio', 'juliet', 'lawrence', 'mercutio', 'nurse', 'romeo', 'rosaline'].map((name, n) => ({
      address: `${name}@trunkline.example`, created_at: now - (n + 2) * 31 * DAY, disabled: name === 'rosaline', sessions: Math.round(noise(name, 1) * 3),
    }));
    this.tokens = [{ name: 'grafana', scopes: ['read'], created_at: now - 40 * DAY, until: now + 50 * DAY, last_used_at: now - 20_000 }];
    for (let n = 0; n < 70; n += 1) {
      this.log(n % 5 === 4 ? 'breaker set' : 'policy add', ['spam invitations since Monday', 'links of strangers', 'flood from one domain'][n % 3] ?? '',
        n % 3 ? JSON.stringify({ level: 'normal', domain: NAMES[n % 16] }) : null, JSON.stringify({ level: 'text-only', domain: NAMES[n % 16], reason: 'flood' }), now - (70 - n) * 47 * MINUTE);
    }
  }

  private log(what: string, why: string, before: string | null, after: string | null, at = Date.now()): void {
    this.audit.unshift({ id: this.audit.length + 1, at, who: ADMIN, face: 'console', what, why, before, after });
  }

  answer(method: string, url: URL, text: string, cookie: string): Answer {
    const path = url.pathname;
    const fields: Fields = method === 'GET' ? Object.fromEntries(url.searchParams) : (JSON.parse(text || '{}') as Fields);
    if (path === '/session' && method !== 'DELETE') return this.session(method, fields, cookie);
    if (!this.cookies.has(cookie)) return problem(401, 'Sign in first.');
    if (path === '/session') {
      this.cookies.delete(cookie);
      return { status: 204, cookie: '' };
    }
    const handler = this.handlers()[`${method} ${path}`];
    if (!handler) return problem(404, `there is no operation ${method} ${path}`);
    try {
      return { status: 200, body: handler(fields) };
    } catch (error) {
      return problem(422, (error as Error).message);
    }
  }

  private session(method: string, fields: Fields, cookie: string): Answer {
    const view = (): api.Session => ({ address: ADMIN, scopes: this.scopes, csrf: this.csrf, expires_at: Date.now() + 8 * HOUR, totp: this.totp });
    if (method === 'GET') return this.cookies.has(cookie) ? { status: 200, body: view() } : problem(401, 'Not signed in.');
    const enter = (rest: object): Answer => {
      const made = randomBytes(12).toString('hex');
      this.cookies.add(made);
      return { status: 200, body: { ...rest, session: view() }, cookie: made };
    };
    if (typeof fields.client_first === 'string') {
      const bare = fields.client_first.slice(3);
      const nonce = /r=(.*)$/.exec(bare)?.[1] ?? '';
      const serverFirst = `r=${nonce}${randomBytes(9).toString('base64')},s=${this.salt.toString('base64')},i=4096`;
      const login = randomBytes(8).toString('hex');
      this.logins.set(login, { bare, serverFirst, proved: false });
      return { status: 200, body: { login, server_first: serverFirst } };
    }
    const login = this.logins.get(String(fields.login));
    if (!login) return problem(401, 'That took too long. Try again.');
    if (typeof fields.client_final === 'string') {
      const [withoutProof = '', proof = ''] = fields.client_final.split(',p=');
      const hmac = (key: Buffer, data: string) => createHmac('sha256', key).update(data).digest();
      const salted = pbkdf2Sync('secret', this.salt, 4096, 32, 'sha256');
      const key = hmac(salted, 'Client Key');
      const signed = `${login.bare},${login.serverFirst},${withoutProof}`;
      const signature = hmac(createHash('sha256').update(key).digest(), signed);
      const right = Buffer.from(key.map((byte, n) => byte ^ (signature[n] ?? 0))).toString('base64');
      if (proof !== right || !login.bare.startsWith(`n=${ADMIN},`)) return problem(401, 'The address or the password is wrong, or this is not an administrator.');
      const server_final = `v=${hmac(hmac(salted, 'Server Key'), signed).toString('base64')}`;
      login.proved = true;
      return this.totp ? { status: 200, body: { server_final, second_factor: true } } : enter({ server_final });
    }
    if (!login.proved || !/^\d{6}$/.test(String(fields.code)) || fields.code === '000000') return problem(401, 'The code is wrong.');
    return enter({});
  }

  private summary(domain: string): api.DomainSummary {
    const big = noise(domain, 2) ** 3;
    const bad = domain.includes('spam') || domain.includes('free');
    const block = blockOf(domain, this.blocks) !== undefined;
    const stanzas = Math.round(400 + big * 900_000);
    return {
      domain, state: block ? 'blocked' : (['connected', 'connected', 'idle', 'waiting'][Math.floor(noise(domain, 3) * 4)] ?? 'idle'),
      first_seen: Date.now() - Math.round(noise(domain, 4) * 400) * DAY - HOUR, last_seen: Date.now() - Math.round(noise(domain, 5) * 90) * MINUTE,
      stanzas_in: stanzas, stanzas_out: Math.round(stanzas * (bad ? 0.02 : 0.4 + noise(domain, 6))), refused: Math.round(stanzas * (bad ? 0.6 : 0.002)), held: Math.round(noise(domain, 7) * (bad ? 900 : 20)),
      reports: bad ? Math.round(noise(domain, 8) * 60) : 0, reputation: bad ? Math.round(noise(domain, 9) * 25) : 60 + Math.round(noise(domain, 9) * 40), queue: domain.startsWith('old') ? 41 : 0,
      level: this.levels.find((it) => it.domain === domain)?.level ?? this.all.level, blocked: block,
    };
  }

  private handlers(): Record<string, (fields: Fields) => unknown> {
    const done = (text: string) => ({ outcome: 'done', text });
    const find = (id: unknown) => {
      const found = this.rules.find((it) => it.id === Number(id));
      if (!found) throw new Error(`there is no rule ${String(id)}`);
      return found;
    };
    const text = (value: unknown) => (typeof value === 'string' ? value : '');
    const until = (value: unknown) => (typeof value === 'number' ? value : null);
    return {
      'GET /now': (): api.NowView & { outcome: string } => {
        const wave = Math.sin(Date.now() / 40_000);
        const jitter = Math.random();
        const closed = this.all.level === 'closed';
        return {
          outcome: 'now', at: Date.now(), inside: 84 + 12 * wave + 6 * jitter, outside_in: closed ? 0 : 31 + 9 * Math.sin(Date.now() / 17_000) + 5 * jitter, outside_out: closed ? 0 : 18 - 5 * wave + 3 * jitter,
          sessions: 1412 + Math.round(8 * wave), peers: closed ? 0 : 11, level: this.all.level, levels: this.levels.length,
          refused: closed ? { 'breaker-closed': 402 } : { 'policy-rule': 214 + Math.round(20 * jitter), 'no-consent': 96, 'domain-rate': 41, 'dialback-invalid': 12, 'stanza-too-large': 2 },
          busiest: closed ? [] : NAMES.slice(0, 8).map((it, n): [string, number] => [it, Math.round(900 / (n + 1) + 10 * jitter)]),
          requests: this.requests.length, reports: this.reports.filter((it) => it.state === 'open').length,
        };
      },
      'GET /domains': (fields) => {
        const key: Record<string, keyof api.DomainSummary> = { 'first-seen': 'first_seen', in: 'stanzas_in', out: 'stanzas_out', refused: 'refused', held: 'held', reports: 'reports', reputation: 'reputation', queue: 'queue' };
        const sort = key[text(fields.sort)];
        const found = NAMES.filter((it) => it.includes(text(fields.search))).map((it) => this.summary(it)).sort((a, b) => (sort ? Number(b[sort]) - Number(a[sort]) : a.domain.localeCompare(b.domain)));
        const offset = Number(fields.offset ?? 0);
        return { outcome: 'domains', domains: found.slice(offset, offset + 10), total: found.length };
      },
      'GET /domains/show': (fields) => {
        const domain = text(fields.domain);
        const summary = this.summary(domain);
        const bad = summary.reputation < 50;
        return {
          outcome: 'domain', summary,
          counters: { 'message-in': Math.round(summary.stanzas_in * 0.5), 'message-out': Math.round(summary.stanzas_out * 0.6), 'presence-in': Math.round(summary.stanzas_in * 0.3), 'presence-out': 9000, 'iq-in': 4100, 'iq-out': 3900, 'bytes-in': summary.stanzas_in * 412, 'bytes-out': summary.stanzas_out * 388, handshakes: 120, 'failed certificate-expired': 2, 'refused policy-rule': summary.refused },
          acknowledged_after: [38, 412], queue_age: summary.queue ? 7 * MINUTE : null, certificate: [`subject ${domain}`, 'issuer R11, Let’s Encrypt', 'ends 2027-01-19'], authentication: domain.startsWith('old') ? 'dialback' : 'certificate',
          reputation_reasons: bad ? [[-40, 'spam: 31 reports in the last 30 days'], [-22, 'first contacts: 3 accepted of 214'], [-9, 'refused: 60 % of what it sends'], [5, 'first seen 212 days ago']] : [[30, 'first seen 212 days ago'], [12, 'first contacts: 41 accepted of 44'], [-2, 'two reports']],
          sanctions: this.rules.filter((it) => it.rule.when.domain && domain.endsWith(it.rule.when.domain)), contacts: [`abuse-addresses: mailto:abuse@${domain}`, `admin-addresses: xmpp:admin@${domain}`], last_error: summary.queue ? 'connecting to 192.0.2.7:5269: timed out' : null,
        };
      },
      'GET /domains/history': (fields) => {
        const hours = Number(fields.hours ?? 24);
        const step = hours <= 1 ? MINUTE : hours <= 24 ? 10 * MINUTE : hours <= 168 ? HOUR : 6 * HOUR;
        const length = Math.floor((hours * HOUR) / step);
        const name = text(fields.domain) || 'all';
        const points = Array.from({ length }, (_, n): api.HistoryPoint => {
          const at = Date.now() - (length - n) * step;
          const day = 1 + 0.6 * Math.sin((at / DAY) * 2 * Math.PI);
          const value = Math.round((day * step) / 900 + noise(name, n) * 60);
          return { at, stanzas_in: value, stanzas_out: Math.round(value * 0.6), bytes_in: value * 400, bytes_out: value * 220, refused: Math.round(noise(name, n + 9) ** 6 * 90), held: Math.round(noise(name, n + 3) ** 8 * 20), reports: 0, inside_in: 0, inside_out: 0 };
        });
        return { outcome: 'history', step, points };
      },
      'GET /policy': (): api.PolicyView & { outcome: string } => ({ outcome: 'policy', preset: this.preset, preset_shadow: this.presetShadow, preset_hits: 3120, preset_shadow_hits: 0, rules: this.rules, blocks: this.blocks, blocks_total: this.blocks.length, warnings: ['rule 5 names the list gone, which is not there: it decides as if everybody were on it'] }),
      'POST /policy/preset': (fields) => {
        this.log('policy set-preset', text(fields.why), JSON.stringify({ preset: this.preset }), JSON.stringify({ preset: fields.preset }));
        this.preset = fields.preset as api.Preset;
        this.presetShadow = fields.shadow === true;
        return done(`The preset is ${this.preset}.`);
      },
      'POST /policy/add': (fields) => {
        const id = Math.max(0, ...this.rules.map((it) => it.id ?? 0)) + 1;
        const rule = fields.rule as api.Rule;
        this.rules.push({ id, rule, set_by: ADMIN, set_at: Date.now(), hits: 0, shadow_hits: 0 });
        this.log('policy add', rule.reason, null, JSON.stringify(rule));
        return done(`Rule ${id} is in force.`);
      },
      'POST /policy/replace': (fields) => {
        const found = find(fields.id);
        this.log('policy replace', (fields.rule as api.Rule).reason, JSON.stringify(found.rule), JSON.stringify(fields.rule));
        found.rule = fields.rule as api.Rule;
        return done(`Rule ${String(fields.id)} is replaced.`);
      },
      'POST /policy/move': (fields) => {
        const found = find(fields.id);
        this.rules = this.rules.filter((it) => it !== found);
        this.rules.splice(Number(fields.position) + this.rules.filter((it) => it.id === null).length, 0, found);
        return done('Moved.');
      },
      'POST /policy/remove': (fields) => {
        const found = find(fields.id);
        this.rules = this.rules.filter((it) => it !== found);
        this.log('policy remove', text(fields.why), JSON.stringify(found.rule), null);
        return done(`Rule ${String(fields.id)} is removed.`);
      },
      'POST /policy/test': (fields): api.TestResult & { outcome: string } => {
        if (!text(fields.stanza).startsWith('<')) throw new Error('line 1: this is not a stanza');
        return { outcome: 'tested', action: 'text-only', by: 'rule 2', reason: 'links of strangers are not passed', trace: ['configuration 1: another domain', 'rule 1: another domain', 'rule 4 (shadow): would hold'] };
      },
      'POST /policy/block': (fields) => {
        const block = { domain: text(fields.domain), subdomains: fields.subdomains === true, reason: text(fields.reason), until: until(fields.until) };
        this.blocks = [{ block, set_by: ADMIN, set_at: Date.now(), configured: false }, ...this.blocks];
        this.log('policy block', block.reason, null, JSON.stringify(block));
        return done(`${text(fields.domain)} is blocked.`);
      },
      'POST /policy/unblock': (fields) => {
        this.blocks = this.blocks.filter((it) => it.block.domain !== fields.domain);
        return done(`${text(fields.domain)} is no longer blocked.`);
      },
      'GET /policy/blocks': (fields) => ({ outcome: 'file', media_type: fields.format === 'csv' ? 'text/csv' : 'application/json', text: 'domain,subdomains,reason,until\nspamhaven.example,true,spam,\n' }),
      'POST /policy/blocks': (fields) => done(`${text(fields.text).trim().split('\n').length - 1} blocks are imported.`),
      'GET /breaker': (): api.BreakerView & { outcome: string } => ({ outcome: 'breaker', all: this.all, domains: this.levels, covered: [], triggers: ['no new contacts for a domain when more than half of 200 stanzas a minute are refused', 'closed for a domain when its queue is older than 6 h'] }),
      'POST /breaker': (fields) => {
        const domain = text(fields.domain) || null;
        const made: api.LevelView = { domain, level: fields.level as api.Level, reason: text(fields.why), set_by: ADMIN, set_at: Date.now(), until: until(fields.until) };
        this.log('breaker set', made.reason, JSON.stringify(domain ? (this.levels.find((it) => it.domain === domain) ?? null) : this.all), JSON.stringify(made));
        if (!domain) this.all = made;
        else this.levels = [...this.levels.filter((it) => it.domain !== domain), ...(made.level === 'normal' ? [] : [made])];
        return done(`${domain ?? 'The outside'} is at ${made.level}.`);
      },
      'GET /audit': (fields) => {
        const found = this.audit.filter((it) => JSON.stringify(it).includes(text(fields.search)) && it.id < Number(fields.before ?? Infinity));
        return { outcome: 'audit', entries: found.slice(0, 25), more: found.length > 25 };
      },
      'GET /requests': (fields) => ({ outcome: 'requests', requests: this.requests.filter((it) => it.from.includes(text(fields.domain))), more: false }),
      'POST /requests/drop': (fields) => {
        this.requests = this.requests.filter((it) => it.from !== fields.from && !it.from.endsWith(`@${text(fields.from)}`));
        return done('Thrown away.');
      },
      'GET /reports': (fields) => ({ outcome: 'reports', reports: this.reports.filter((it) => (fields.open_only !== 'true' || it.state === 'open') && it.about.includes(text(fields.domain))), more: false }),
      'GET /reports/show': (fields) => {
        const found = this.reports.find((it) => it.id === Number(fields.id));
        if (!found) throw new Error(`there is no report ${text(fields.id)}`);
        return { outcome: 'report', ...found };
      },
      'POST /reports/decide': (fields) => {
        this.reports = this.reports.map((it) => (it.id === fields.id ? { ...it, state: fields.action === 'forward' ? 'open' : 'handled', actions: [...it.actions, `${ADMIN} ${text(fields.action)}: ${text(fields.why)}`] } : it));
        return done('Done, and the reporter is told.');
      },
      'GET /lists': () => ({ outcome: 'lists', lists: this.lists }),
      'GET /lists/items': (fields) => ({ outcome: 'list-items', items: fields.name === 'own' ? this.own : NAMES.slice(4, 9).map((entry) => ({ entry, reason: 'spam source' })), more: false }),
      'GET /lists/subscribers': () => ({ outcome: 'list-subscribers', subscribers: this.subscribers }),
      'POST /lists/remove-subscriber': (fields) => {
        const who = text(fields.address);
        const left = this.subscribers.filter((it) => it.address !== who && !(it.address.split('/')[0] ?? '').endsWith(`@${who}`));
        if (left.length === this.subscribers.length) throw new Error(`${who} is not among the subscribers`);
        this.subscribers = left;
        return done(`${who} is not subscribed any more.`);
      },
      'POST /lists/subscribe': (fields) => {
        this.lists.splice(-1, 0, { name: text(fields.name), service: text(fields.service), node: text(fields.node), action: (fields.action as api.Action | undefined) ?? null, entries: 0, state: 'asked', changed_at: null, hits: 0 });
        return done('Subscribed.');
      },
      'POST /lists/unsubscribe': (fields) => {
        this.lists = this.lists.filter((it) => it.name !== fields.name);
        return done('No longer followed.');
      },
      'POST /lists/publish': (fields) => {
        this.own = [...this.own, { entry: text(fields.entry), reason: text(fields.reason) }];
        return done('Published.');
      },
      'POST /lists/retract': (fields) => {
        this.own = this.own.filter((it) => it.entry !== fields.entry);
        return done('Taken off.');
      },
      'GET /accounts': () => ({ outcome: 'users', users: this.users, more: false }),
      'POST /accounts/add': (fields) => {
        if (this.users.some((it) => it.address === fields.address)) throw new Error(`${text(fields.address)} exists already`);
        this.users = [...this.users, { address: text(fields.address), created_at: Date.now(), disabled: false, sessions: 0 }];
        return done(`${text(fields.address)} is added.`);
      },
      'POST /accounts/remove': (fields) => {
        this.users = this.users.filter((it) => it.address !== fields.address);
        return done('Removed.');
      },
      'POST /accounts/disable': (fields) => {
        this.users = this.users.map((it) => (it.address === fields.address ? { ...it, disabled: true, sessions: 0 } : it));
        return done(`${text(fields.address)} is disabled.`);
      },
      'POST /accounts/enable': (fields) => {
        this.users = this.users.map((it) => (it.address === fields.address ? { ...it, disabled: false } : it));
        return done(`${text(fields.address)} can be used again.`);
      },
      'GET /accounts/devices': () => ({ outcome: 'clients', clients: this.devices }),
      'POST /accounts/end-device': (fields) => {
        this.devices = this.devices.filter((it) => it.id !== fields.client);
        return done('The device was signed out.');
      },
      'POST /accounts/password': () => done('The password is set.'),
      'POST /accounts/reset-second-factor': () => done('The second factor is off.'),
      'POST /accounts/end-sessions': () => done('2 sessions are ended.'),
      'POST /invitations/create': () => ({ outcome: 'invitation', uri: 'xmpp:trunkline.example?register;preauth=7f3kd92mmw', expires_at: Date.now() + 7 * DAY }),
      'GET /tokens': () => ({ tokens: this.tokens }),
      'POST /tokens/create': (fields) => {
        this.tokens = [...this.tokens, { name: text(fields.name), scopes: fields.scopes as api.Scope[], created_at: Date.now(), until: until(fields.until), last_used_at: null }];
        return { token: `trunkline_${randomBytes(18).toString('hex')}` };
      },
      'POST /tokens/revoke': (fields) => {
        this.tokens = this.tokens.filter((it) => it.name !== fields.name);
        return done('Revoked.');
      },
      'GET /status': (): api.Status & { outcome: string } => ({
        outcome: 'status', version: '0.1.0', pid: 4242, started_at: Date.now() - 9 * DAY, domains: [{ name: 'trunkline.example', certificate_expires_at: Date.now() + 61 * DAY }], listeners: [{ name: 'clients.listen', address: '0.0.0.0:5222' }],
        accounts: 1890, sessions: 1412, sessions_waiting: 31, peers: 11, federation_open: this.all.level !== 'closed', memory: 91_000_000, database: 412_000_000, needs_restart: [], problems: ['the disk of the database has 3 % left'],
      }),
      'POST /reload': () => ({ outcome: 'reloaded' }),
      'POST /session/totp': (fields) => {
        if (fields.code === undefined) return { uri: `otpauth://totp/Trunkline:${encodeURIComponent(ADMIN)}?secret=JBSWY3DPEHPK3PXP&issuer=Trunkline`, secret: 'JBSWY3DPEHPK3PXP' };
        if (fields.code === '000000') throw new Error('The code is wrong.');
        this.totp = true;
        return done('On.');
      },
      'DELETE /session/totp': () => {
        this.totp = false;
        return done('Off.');
      },
    };
  }
}

function problem(status: number, detail: string): Answer {
  return { status, body: { type: 'about:blank', title: 'Refused', detail, status } };
}
