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
