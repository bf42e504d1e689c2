// What can be done about a report.

import type { ReportAction, ReportView } from '../api/types';

export function domainOf(address: string): string {
  const bare = address.split('/')[0] ?? '';
  return bare.slice(bare.indexOf('@') + 1);
}

/** It is about somebody of this server, whose domains are `domains`. */
export function isOurs(report: Pick<ReportView, 'about' | 'origin'>, domains: string[]): boolean {
  return report.origin === 'outside' || domains.includes(domainOf(report.about));
}

/** What the server does about it and does not refuse. */
export function choices(report: Pick<ReportView, 'state' | 'origin' | 'may_forward' | 'forwarded_to'>, ours: boolean): ReportAction[] {
  const found: ReportAction[] = [];
  if (report.state === 'open') {
    found.push('dismiss', 'warn');
    if (!ours) found.push('limit', 'block-sender', 'block-domain');
  }
  if (!ours && report.origin !== 'outside' && report.may_forward && !report.forwarded_to) found.push('forward');
  return found;
}

/** The text of a message that was reported as a stanza; nothing of it is carried out or fetched. */
export function spoken(xml: string): string | null {
  // What is no stanza would be answered with a document about the error, whose style the page's policy forbids.
  if (!/^<message[\s>]/.test(xml)) return null;
  const stanza = new DOMParser().parseFromString(xml, 'text/xml').documentElement;
  if (stanza.localName !== 'message') return null;
  const bodies = [...stanza.children].filter((it) => it.localName === 'body' && it.namespaceURI === stanza.namespaceURI);
  return bodies[0]?.textContent ?? null;
}
