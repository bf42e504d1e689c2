// Rules in words, and what a form about a rule comes to.

import type { Action, Authentication, BlockView, Conditions, Content, Direction, Level, Preset, Relation, Rule, StanzaKind } from '../api/types';
import { duration, moment, words } from './format';

export const LEVEL: Record<Level, { name: string; means: string }> = {
  normal: { name: 'Normal', means: 'As the policy says.' },
  'no-new-contacts': { name: 'No new contacts', means: 'Strangers are refused. Contacts and conversations go on.' },
  'granted-only': { name: 'Granted only', means: 'Only people who have consented to each other.' },
  'text-only': { name: 'Text only', means: 'Granted contacts only, and of what they write only the text.' },
  closed: { name: 'Closed', means: 'All streams to the outside end, within a second. Inside goes on.' },
};

export const PRESET: Record<Preset, { name: string; means: string }> = {
  open: { name: 'Open', means: 'Everything passes that no rule stops.' },
  careful: { name: 'Careful', means: 'First contacts wait for the consent of the one they are for.' },
  'allow-list-only': { name: 'Allow-list only', means: 'Only domains that a rule allows.' },
  closed: { name: 'Closed', means: 'Nothing passes.' },
};

export const ACTIONS: Record<Action['do'], string> = {
  allow: 'allow',
  reject: 'reject with an error',
  drop: 'drop silently',
  hold: 'hold for consent',
  limit: 'limit to a rate',
  mark: 'mark',
  'text-only': 'pass the text only',
};

export const RELATION: Record<Relation, string> = {
  stranger: 'strangers',
  conversation: 'people in a conversation',
  contact: 'contacts',
};

/** What a rule does, as the end of a sentence. */
export function actionInWords(action: Action): string {
  switch (action.do) {
    case 'reject':
      return action.condition ? `reject (${action.condition})` : 'reject';
    case 'limit':
      return action.per === 'rule' ? `limit all together to ${action.per_minute} a minute` : `limit to ${action.per_minute} a minute`;
    case 'mark':
      return `mark “${action.text}”`;
    case 'drop':
      return 'drop';
    default:
      return ACTIONS[action.do];
  }
}

/** What a rule applies to, piece by piece. */
export function conditionsInWords(when: Conditions): string[] {
  const parts: string[] = [];
  if (when.domain) parts.push(when.subdomains ? `${when.domain} and below` : when.domain);
  if (when.address) parts.push(when.address);
  if (when.kind?.length) parts.push(when.kind.map(words).join(' or '));
  if (when.relation?.length) parts.push(when.relation.map((it) => RELATION[it]).join(' or '));
  if (when.has?.length) parts.push(`with ${when.has.join(' and ')}`);
  if (when.larger_than != null) parts.push(`larger than ${when.larger_than} bytes`);
  if (when.faster_than != null) parts.push(`faster than ${when.faster_than} a minute`);
  if (when.first_seen_within != null) parts.push(`first seen less than ${duration(when.first_seen_within * 1000)} ago`);
  if (when.authentication) parts.push(`proved by ${when.authentication}`);
  if (when.reputation_below != null) parts.push(`reputation below ${when.reputation_below}`);
  if (when.listed_in) parts.push(`on the list ${when.listed_in}`);
  return parts;
}

export const DIRECTION: Record<Direction, string> = { in: 'from outside', out: 'to the outside', both: 'either way' };

/** The whole rule in one line. */
export function ruleInWords(rule: Rule): string {
  const conditions = conditionsInWords(rule.when);
  const what = conditions.length ? conditions.join(', ') : 'everything';
  const end = rule.until === null ? '' : `, until ${moment(rule.until)}`;
  return `${DIRECTION[rule.direction]}: ${what}: ${actionInWords(rule.then)}${end}`;
}

/** The block that holds for a domain. */
export function blockOf(domain: string, blocks: BlockView[]): BlockView | undefined {
  return blocks.find(({ block }) => block.domain === domain || (block.subdomains && domain.endsWith(`.${block.domain}`)));
}

/** A form about a rule: everything as people type it. */
export interface RuleForm {
  direction: Direction;
  domain: string;
  subdomains: boolean;
  address: string;
  kind: StanzaKind[];
  relation: Relation[];
  has: Content[];
  largerThan: string;
  fasterThan: string;
  seenWithinHours: string;
  authentication: Authentication | '';
  reputationBelow: string;
  listedIn: string;
  action: Action['do'];
  condition: string;
  errorText: string;
  perMinute: string;
  together: boolean;
  mark: string;
  reason: string;
  until: number | null;
  shadow: boolean;
}

export const EMPTY: RuleForm = {
  direction: 'in', domain: '', subdomains: false, address: '', kind: [], relation: [], has: [], largerThan: '', fasterThan: '',
  seenWithinHours: '', authentication: '', reputationBelow: '', listedIn: '', action: 'reject', condition: '', errorText: '', perMinute: '60', together: false, mark: '',
  reason: '', until: null, shadow: false,
};

function shown(value: number | null | undefined): string {
  return value == null ? '' : String(value);
}

export function toForm(rule: Rule): RuleForm {
  const { when, then } = rule;
  return {
    direction: rule.direction,
    domain: when.domain ?? '',
    subdomains: when.subdomains ?? false,
    address: when.address ?? '',
    kind: when.kind ?? [],
    relation: when.relation ?? [],
    has: when.has ?? [],
    largerThan: shown(when.larger_than),
    fasterThan: shown(when.faster_than),
    seenWithinHours: when.first_seen_within == null ? '' : String(when.first_seen_within / 3600),
    authentication: when.authentication ?? '',
    reputationBelow: shown(when.reputation_below),
    listedIn: when.listed_in ?? '',
    action: then.do,
    condition: then.do === 'reject' ? (then.condition ?? '') : '',
    errorText: then.do === 'reject' ? (then.text ?? '') : '',
    perMinute: then.do === 'limit' ? String(then.per_minute) : '60',
    together: then.do === 'limit' && then.per === 'rule',
    mark: then.do === 'mark' ? then.text : '',
    reason: rule.reason,
    until: rule.until,
    shadow: rule.shadow,
  };
}

/** The rule, or what is wrong with the form by the name of the field. */
export function toRule(form: RuleForm): { rule: Rule } | { wrong: Partial<Record<keyof RuleForm, string>> } {
  const wrong: Partial<Record<keyof RuleForm, string>> = {};
  const number = (field: 'largerThan' | 'fasterThan' | 'seenWithinHours' | 'reputationBelow' | 'perMinute', most: number) => {
    const text = form[field].trim();
    if (text === '') return undefined;
    const value = Number(text);
    const whole = field === 'seenWithinHours' || Number.isInteger(value);
    if (!whole || !(value >= 0) || value > most) {
      wrong[field] = `a number from 0 to ${most}`;
      return undefined;
    }
    return value;
  };
  const when: Conditions = {};
  const domain = form.domain.trim().toLowerCase();
  if (domain) {
    if (/[\s@/]/.test(domain)) wrong.domain = 'a domain, such as example.org';
    when.domain = domain;
    if (form.subdomains) when.subdomains = true;
  }
  const address = form.address.trim();
  if (address) {
    if (!/^[^@\s/]+@[^@\s/]+$/.test(address)) wrong.address = 'an address, such as name@example.org';
    when.address = address;
  }
  if (form.kind.length) when.kind = form.kind;
  if (form.relation.length) when.relation = form.relation;
  if (form.has.length) when.has = form.has;
  const larger = number('largerThan', 10_000_000);
  if (larger !== undefined) when.larger_than = larger;
  const faster = number('fasterThan', 1_000_000);
  if (faster !== undefined) when.faster_than = faster;
  const hours = number('seenWithinHours', 87_600);
  if (hours !== undefined) when.first_seen_within = Math.round(hours * 3600);
  const reputation = number('reputationBelow', 100);
  if (reputation !== undefined) when.reputation_below = reputation;
  if (form.authentication) when.authentication = form.authentication;
  if (form.listedIn.trim()) when.listed_in = form.listedIn.trim();
  const then = toAction(form, number('perMinute', 1_000_000), wrong);
  if (!form.reason.trim()) wrong.reason = 'say why: it stands in the audit log, and people whom the rule stops read it';
  if (Object.keys(wrong).length) return { wrong };
  return { rule: { when, direction: form.direction, then, reason: form.reason.trim(), until: form.until, shadow: form.shadow } };
}

function toAction(form: RuleForm, perMinute: number | undefined, wrong: Partial<Record<keyof RuleForm, string>>): Action {
  switch (form.action) {
    case 'reject': {
      const [condition, text] = [form.condition.trim(), form.errorText.trim()];
      return { do: 'reject', ...(condition ? { condition } : {}), ...(text ? { text } : {}) };
    }
    case 'limit':
      if (perMinute === undefined) wrong.perMinute ??= 'how many a minute?';
      return { do: 'limit', per_minute: perMinute ?? 0, ...(form.together ? { per: 'rule' as const } : {}) };
    case 'mark':
      if (!form.mark.trim()) wrong.mark = 'what does the mark say?';
      return { do: 'mark', text: form.mark.trim() };
    default:
      delete wrong.perMinute;
      return { do: form.action };
  }
}
