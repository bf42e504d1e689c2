// Who wrote what is embedded, and under which licence: dist/NOTICE.txt, and a build that fails on a licence that we
// have not agreed to.

import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

import type { Plugin } from 'vite';

/** Licences whose only condition is that they are shown. */
export const AGREED = ['MIT', 'ISC', 'BSD-2-Clause', 'BSD-3-Clause', 'Apache-2.0', '0BSD', 'Unlicense'];

interface Package {
  name: string;
  version: string;
  licence: string;
  text: string;
}

/** The package that a file in node_modules belongs to. */
export function owner(file: string): Package | undefined {
  const inside = /^(.*\/node_modules\/(?:@[^/]+\/)?[^/]+)\//.exec(file.replace(/^\0/, ''));
  const home = inside?.[1];
  if (!home || !existsSync(join(home, 'package.json'))) return undefined;
  const about = JSON.parse(readFileSync(join(home, 'package.json'), 'utf8')) as Record<string, string>;
  const licence = readdirSync(home).find((name) => /^licen[cs]e/i.test(name));
  return {
    name: about.name ?? dirname(home),
    version: about.version ?? '',
    licence: about.license ?? 'none',
    text: licence ? readFileSync(join(home, licence), 'utf8').trim() : '',
  };
}

/** What stands in NOTICE.txt. Throws for a package that must not be embedded. */
export function noticeOf(files: Iterable<string>): string {
  const packages = new Map<string, Package>();
  for (const file of files) {
    const found = owner(file.split('?')[0] ?? '');
    if (found) packages.set(found.name, found);
  }
  const parts = [...packages.values()].sort((a, b) => a.name.localeCompare(b.name)).map((it) => {
    if (!AGREED.includes(it.licence)) throw new Error(`${it.name} is under ${it.licence}: not agreed (notice.ts)`);
    if (!it.text) throw new Error(`${it.name} ships no text of its licence`);
    return `${it.name} ${it.version} (${it.licence})\n\n${it.text}\n`;
  });
  return `The console of Trunkline contains these packages.\n\n${parts.join(`\n${'-'.repeat(80)}\n\n`)}`;
}

export function notice(): Plugin {
  return {
    name: 'notice',
    apply: 'build',
    generateBundle(_, bundle) {
      const files = Object.values(bundle).flatMap((it) => (it.type === 'chunk' ? it.moduleIds : []));
      this.emitFile({ type: 'asset', fileName: 'NOTICE.txt', source: noticeOf(files) });
    },
  };
}
