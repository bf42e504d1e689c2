// Writing a rule.

import { useState } from 'preact/hooks';

import { change } from '../api/client';
import { type Action, type Authentication, type Content, type Direction, KINDS, RELATIONS, type Relation, type RuleView, type StanzaKind } from '../api/types';
import { capital } from '../logic/format';
import { ACTIONS, DIRECTION, EMPTY, RELATION, type RuleForm, ruleInWords, toForm, toRule } from '../logic/rules';
import { Dialog, Form } from './dialog';
import { Check, Select, Some, Text, Until } from './fields';

type WrongFields = Partial<Record<keyof RuleForm, string>>;

export function RuleEditor(props: { edit?: RuleView; onClose: () => void; onDone: () => void }) {
  const { edit } = props;
  const [form, setForm] = useState<RuleForm>(edit ? toForm(edit.rule) : EMPTY);
  const [first, setFirst] = useState(true);
  const [wrong, setWrong] = useState<WrongFields>({});
  const set = (change: Partial<RuleForm>) => setForm((old) => ({ ...old, ...change }));
  const made = toRule(form);
  return (
    <Dialog title={edit ? `Edit rule ${edit.id ?? ''}` : 'Add a rule'} onClose={props.onClose} wide>
      <Form act={edit ? 'Replace the rule' : 'Add the rule'} onCancel={props.onClose} onDone={props.onDone} work={() => {
        if ('wrong' in made) {
          setWrong(made.wrong);
          return null;
        }
        setWrong({});
        return edit ? change('/policy/replace', { id: edit.id, rule: made.rule }) : change('/policy/add', { rule: made.rule, ...(first ? { position: 0 } : {}) });
      }}>
        <fieldset class="group">
          <legend>When</legend>
          <p class="hint">Everything that is given must be true. What is left empty is not asked.</p>
          <div class="pair">
            <Select<Direction> label="Direction" value={form.direction} onChange={(direction) => set({ direction })} options={(['in', 'out', 'both'] as const).map((it) => [it, DIRECTION[it]])} />
            <Text label="Domain outside" value={form.domain} onInput={(domain) => set({ domain })} wrong={wrong.domain} mono autoFocus />
            <Text label="Address outside" value={form.address} onInput={(address) => set({ address })} wrong={wrong.address} mono />
            <Check label="What is below the domain too" value={form.subdomains} onChange={(subdomains) => set({ subdomains })} />
          </div>
          <Some<StanzaKind> label="Kind of stanza" value={form.kind} onChange={(kind) => set({ kind })} options={KINDS.map((it) => [it, it === 'subscribe' ? 'subscription request' : it === 'iq' ? 'request (iq)' : it])} />
          <Some<Relation> label="The two people are" value={form.relation} onChange={(relation) => set({ relation })} options={RELATIONS.map((it) => [it, RELATION[it]])} />
          <Some<Content> label="It contains" value={form.has} onChange={(has) => set({ has })} options={[['link', 'a link'], ['media', 'a file or picture']]} />
          <details open={Boolean(form.largerThan || form.fasterThan || form.seenWithinHours || form.reputationBelow || form.listedIn || form.authentication || Object.keys(wrong).length)}>
            <summary>More conditions</summary>
            <div class="pair">
              <Text label="Larger than, bytes" value={form.largerThan} onInput={(largerThan) => set({ largerThan })} wrong={wrong.largerThan} inputMode="numeric" />
              <Text label="Faster than, stanzas a minute" value={form.fasterThan} onInput={(fasterThan) => set({ fasterThan })} wrong={wrong.fasterThan} inputMode="numeric" />
              <Text label="First seen less than, hours ago" value={form.seenWithinHours} onInput={(seenWithinHours) => set({ seenWithinHours })} wrong={wrong.seenWithinHours} inputMode="numeric" />
              <Text label="Reputation below, 0 to 100" value={form.reputationBelow} onInput={(reputationBelow) => set({ reputationBelow })} wrong={wrong.reputationBelow} inputMode="numeric" />
              <Text label="On the list" value={form.listedIn} onInput={(listedIn) => set({ listedIn })} hint="Its name on the page Lists." mono />
              <Select<Authentication | ''> label="Domain proved by" value={form.authentication} onChange={(authentication) => set({ authentication })} options={[['', 'either'], ['certificate', 'a certificate'], ['dialback', 'dialback only']]} />
            </div>
          </details>
        </fieldset>
        <fieldset class="group">
          <legend>Then</legend>
          <div class="pair">
            <Select<Action['do']> label="Action" value={form.action} onChange={(action) => set({ action })} options={(Object.keys(ACTIONS) as Action['do'][]).map((it) => [it, capital(ACTIONS[it])])} />
            {form.action === 'reject' && <Text label="Error condition" value={form.condition} onInput={(condition) => set({ condition })} hint="policy-violation if empty" mono />}
            {form.action === 'reject' && <Text label="Error text" value={form.errorText} onInput={(errorText) => set({ errorText })} hint="What the sender reads. If empty, people here read the reason, others that it is policy." />}
            {form.action === 'limit' && <Text label="Stanzas a minute" value={form.perMinute} onInput={(perMinute) => set({ perMinute })} wrong={wrong.perMinute} inputMode="numeric" />}
            {form.action === 'limit' && <Check label="All together" value={form.together} onChange={(together) => set({ together })} hint="Else each domain for itself; whoever owns one can make many below it." />}
            {form.action === 'mark' && <Text label="The mark says" value={form.mark} onInput={(mark) => set({ mark })} wrong={wrong.mark} />}
          </div>
          <Text label="Reason" value={form.reason} onInput={(reason) => set({ reason })} wrong={wrong.reason} hint="People here read it when the rule stops their stanza." required />
          <Until value={form.until} onChange={(until) => set({ until })} />
          <Check label="In shadow" value={form.shadow} onChange={(shadow) => set({ shadow })} hint="Decided and counted, not enforced." />
          {!edit && <Check label="Before all other rules" value={first} onChange={setFirst} hint="Else after them: rules of the configuration always come first." />}
        </fieldset>
        {'rule' in made && <p class="sentence"><span class="quiet">In words:</span> {ruleInWords(made.rule)}</p>}
      </Form>
    </Dialog>
  );
}
