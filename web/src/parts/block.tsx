// Blocking a domain, and taking it back.

import { useState } from 'preact/hooks';

import { change } from '../api/client';
import { Dialog, Form } from './dialog';
import { Check, Text, Until } from './fields';

export function Block(props: { domain: string; onClose: () => void; onDone: () => void }) {
  const [domain, setDomain] = useState(props.domain);
  const [subdomains, setSubdomains] = useState(false);
  const [reason, setReason] = useState('');
  const [until, setUntil] = useState<number | null>(null);
  return (
    <Dialog title={props.domain ? `Block ${props.domain}?` : 'Block a domain'} onClose={props.onClose}>
      <p>Nothing passes to it or from it any more. Its streams end at once; people here who write to it get an error with your reason.</p>
      <Form act="Block" danger onCancel={props.onClose} onDone={props.onDone}
        work={() => change('/policy/block', { domain: domain.trim().toLowerCase(), subdomains, reason: reason.trim(), ...(until === null ? {} : { until }) })}>
        {!props.domain && <Text label="Domain" value={domain} onInput={setDomain} required mono autoFocus pattern="[^\s@\/]+" placeholder="example.org" />}
        <Check label="What is below it too" value={subdomains} onChange={setSubdomains} hint="conference.example.org for example.org" />
        <Text label="Reason" hint="People here read it when their stanza is stopped." value={reason} onInput={setReason} required autoFocus={props.domain !== ''} />
        <Until value={until} onChange={setUntil} />
      </Form>
    </Dialog>
  );
}

export function Unblock(props: { domain: string; onClose: () => void; onDone: () => void }) {
  const [why, setWhy] = useState('');
  return (
    <Dialog title={`Let ${props.domain} in again?`} onClose={props.onClose}>
      <p>The block is taken back. What the policy says applies again.</p>
      <Form act="Take the block back" onCancel={props.onClose} onDone={props.onDone} work={() => change('/policy/unblock', { domain: props.domain, why: why.trim() })}>
        <Text label="Reason" hint="For the audit log." value={why} onInput={setWhy} required autoFocus />
      </Form>
    </Dialog>
  );
}
