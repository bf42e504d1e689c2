// The shapes on the wire, as crates/server/src/admin and control define them.

export type Scope = 'read' | 'moderate' | 'operate' | 'accounts' | 'audit';
export const SCOPES: Scope[] = ['read', 'moderate', 'operate', 'accounts', 'audit'];

export type Level = 'normal' | 'no-new-contacts' | 'granted-only' | 'text-only' | 'closed';
export const LEVELS: Level[] = ['normal', 'no-new-contacts', 'granted-only', 'text-only', 'closed'];

export type Direction = 'in' | 'out' | 'both';
export type Authentication = 'certificate' | 'dialback';
export type Relation = 'stranger' | 'conversation' | 'contact';
export const RELATIONS: Relation[] = ['stranger', 'conversation', 'contact'];
export type StanzaKind = 'message' | 'subscribe' | 'presence' | 'iq' | 'call' | 'invitation';
export const KINDS: StanzaKind[] = ['message', 'subscribe', 'presence', 'iq', 'call', 'invitation'];
export type Content = 'link' | 'media';
export type Preset = 'open' | 'careful' | 'allow-list-only' | 'closed';
export const PRESETS: Preset[] = ['open', 'careful', 'allow-list-only', 'closed'];

export interface Conditions {
  domain?: string | null;
  subdomains?: boolean;
  address?: string | null;
  first_seen_within?: number | null;
  authentication?: Authentication | null;
  relation?: Relation[];
  kind?: StanzaKind[];
  has?: Content[];
  larger_than?: number | null;
  faster_than?: number | null;
  reputation_below?: number | null;
  listed_in?: string | null;
}

export type Action =
  | { do: 'allow' }
  | { do: 'reject'; condition?: string | null; text?: string | null }
  | { do: 'drop' }
  | { do: 'hold' }
  | { do: 'limit'; per_minute: number; per?: 'domain' | 'rule' }
  | { do: 'mark'; text: string }
  | { do: 'text-only' };

export interface Rule {
  when: Conditions;
  direction: Direction;
  then: Action;
  reason: string;
  until: number | null;
  shadow: boolean;
}

export interface RuleView {
  id: number | null;
  rule: Rule;
  set_by: string;
  set_at: number;
  hits: number;
  shadow_hits: number;
}

export interface BlockView {
  block: { domain: string; subdomains: boolean; reason: string; until: number | null };
  set_by: string;
  set_at: number;
  configured: boolean;
}

export interface PolicyView {
  preset: Preset;
  preset_shadow: boolean;
  preset_hits: number;
  preset_shadow_hits: number;
  rules: RuleView[];
  blocks: BlockView[];
  blocks_total: number;
  warnings: string[];
}

export interface TestResult {
  action: string;
  by: string;
  reason: string;
  trace: string[];
}

export interface LevelView {
  domain: string | null;
  level: Level;
  reason: string;
  set_by: string;
  set_at: number;
  until: number | null;
}

export interface BreakerView {
  all: LevelView;
  domains: LevelView[];
  covered: LevelView[];
  triggers: string[];
}

export interface NowView {
  at: number;
  inside: number;
  outside_in: number;
  outside_out: number;
  sessions: number;
  peers: number;
  level: Level;
  levels: number;
  refused: Record<string, number>;
  busiest: [string, number][];
  requests: number;
  reports: number;
}

export interface DomainSummary {
  domain: string;
  state: string;
  first_seen: number;
  last_seen: number;
  stanzas_in: number;
  stanzas_out: number;
  refused: number;
  held: number;
  reports: number;
  reputation: number;
  queue: number;
  level: Level;
  blocked: boolean;
}

export interface DomainDetail {
  summary: DomainSummary;
  counters: Record<string, number>;
  acknowledged_after: [number, number] | null;
  queue_age: number | null;
  certificate: string[];
  authentication: string | null;
  reputation_reasons: [number, string][];
  sanctions: RuleView[];
  contacts: string[];
  last_error: string | null;
}

export interface HistoryPoint {
  at: number;
  stanzas_in: number;
  stanzas_out: number;
  bytes_in: number;
  bytes_out: number;
  refused: number;
  held: number;
  reports: number;
  inside_in: number;
  inside_out: number;
}

export interface RequestView {
  id: number;
  account: string;
  from: string;
  stanzas: number;
  since: number;
  asks_subscription: boolean;
}

export type ReportAction = 'dismiss' | 'warn' | 'limit' | 'block-sender' | 'block-domain' | 'forward';

export interface ReportView {
  id: number;
  at: number;
  reporter: string;
  origin?: string;
  affiliation: string;
  about: string;
  reason: string;
  text: string;
  stanza_ids: string[];
  messages: string[];
  may_forward: boolean;
  may_share: boolean;
  state: string;
  forwarded_to?: string | null;
  actions: string[];
}

export interface ListView {
  name: string;
  service: string;
  node: string;
  action: Action | null;
  entries: number;
  state: string;
  changed_at: number | null;
  hits: number;
}

export interface ListEntry {
  entry: string;
  reason: string;
}

export interface Subscriber {
  address: string;
  node: string;
  host: string;
  since: number;
  until: number;
}

export interface AuditEntry {
  id: number;
  at: number;
  who: string;
  face: string;
  what: string;
  why: string;
  before: string | null;
  after: string | null;
}

export interface User {
  address: string;
  created_at: number;
  disabled: boolean;
  sessions: number | null;
}

export interface Device {
  id: string;
  connected: boolean;
  first_seen: number | null;
  last_seen: number | null;
  password: boolean;
  token: boolean;
  software: string | null;
  device: string | null;
  resources: string[];
}

export interface Status {
  version: string;
  pid: number;
  started_at: number;
  domains: { name: string; certificate_expires_at: number | null }[];
  listeners: { name: string; address: string }[];
  accounts: number;
  sessions: number;
  sessions_waiting: number;
  peers: number;
  federation_open: boolean;
  memory: number | null;
  database: number | null;
  needs_restart: string[];
  problems: string[];
}

/** What an operation came to, by its `outcome`. */
export interface Outcomes {
  done: { text: string };
  users: { users: User[]; more: boolean };
  clients: { clients: Device[] };
  status: Status;
  invitation: { uri: string; expires_at: number };
  policy: PolicyView;
  tested: TestResult;
  file: { media_type: string; text: string };
  breaker: BreakerView;
  audit: { entries: AuditEntry[]; more: boolean };
  requests: { requests: RequestView[]; more: boolean };
  reports: { reports: ReportView[]; more: boolean };
  report: ReportView;
  lists: { lists: ListView[] };
  'list-items': { items: ListEntry[]; more: boolean };
  'list-subscribers': { subscribers: Subscriber[] };
  now: NowView;
  domains: { domains: DomainSummary[]; total: number };
  domain: DomainDetail;
  history: { step: number; points: HistoryPoint[] };
}

export interface Session {
  address: string;
  scopes: Scope[];
  csrf: string;
  expires_at: number;
  totp: boolean;
}

export interface Token {
  name: string;
  scopes: Scope[];
  created_at: number;
  until: number | null;
  last_used_at: number | null;
}

/** RFC 9457. */
export interface ProblemBody {
  type?: string;
  title?: string;
  detail?: string;
  status?: number;
}
