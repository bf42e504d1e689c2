// The description of the API, which the server's code is the source of, against what the console believes.

import { readFileSync, readdirSync } from 'node:fs';

import ts from 'typescript';
import { expect, test } from 'vitest';

import { KINDS, LEVELS, PRESETS, RELATIONS, SCOPES } from '../src/api/types';
import { ACTIONS } from '../src/logic/rules';

interface Schema {
  properties?: Record<string, { const?: string }>;
  enum?: string[];
  const?: string;
  oneOf?: Schema[];
}

interface Document {
  paths: Record<string, Record<string, unknown>>;
  components: { schemas: Record<string, Schema> };
}

const here = new URL('.', import.meta.url);
const api = JSON.parse(readFileSync(new URL('../../docs/api/openapi.json', here), 'utf8')) as Document;
/** Ours on the left. */
const NAMES: Record<string, string> = { Token: 'TokenView', Session: 'SessionView' };

test('what the console needs of an answer, the API gives', () => {
  const source = ts.createSourceFile('types.ts', readFileSync(new URL('../src/api/types.ts', here), 'utf8'), ts.ScriptTarget.ES2022);
  const missing: string[] = [];
  let compared = 0;
  source.forEachChild((node) => {
    if (!ts.isInterfaceDeclaration(node)) return;
    const name = node.name.text;
    const known = api.components.schemas[NAMES[name] ?? name]?.properties;
    if (!known) return;
    compared += 1;
    for (const member of node.members) {
      const field = member.name && ts.isIdentifier(member.name) ? member.name.text : '';
      if (!member.questionToken && !(field in known)) missing.push(`${name}.${field}`);
    }
  });
  expect(missing).toEqual([]);
  // As many as there are interfaces with a schema: a renamed one is noticed.
  expect(compared).toBeGreaterThanOrEqual(22);
});

test('names that the API knows are those that the console knows', () => {
  const values = (name: string): string[] => {
    const schema = api.components.schemas[name];
    const one = (it: Schema) => it.enum ?? [it.const ?? it.properties?.do?.const ?? ''];
    return (schema?.oneOf?.flatMap(one) ?? (schema ? one(schema) : [])).sort();
  };
  expect(values('Level')).toEqual([...LEVELS].sort());
  expect(values('Scope')).toEqual([...SCOPES].sort());
  expect(values('Preset')).toEqual([...PRESETS].sort());
  expect(values('Relation')).toEqual([...RELATIONS].sort());
  expect(values('StanzaKind')).toEqual([...KINDS].sort());
  expect(values('Action')).toEqual(Object.keys(ACTIONS).sort());
});

test('every path that a page asks for is there, with its method', () => {
  const asked = new Set<string>();
  for (const directory of ['pages', 'parts', 'api', '.']) {
    for (const file of readdirSync(new URL(`../src/${directory}/`, here)).filter((it) => /\.tsx?$/.test(it))) {
      const text = readFileSync(new URL(`../src/${directory}/${file}`, here), 'utf8');
      for (const [, call, path] of text.matchAll(/\b(get|post|change)\((?:'[a-z-]+', )?'(\/[a-z/-]+)'/g)) asked.add(`${call === 'get' ? 'get' : 'post'} ${path ?? ''}`);
      for (const [, method, path] of text.matchAll(/method: '(GET|POST|DELETE)', path: '(\/[a-z/-]+)'/g)) asked.add(`${(method ?? '').toLowerCase()} ${path ?? ''}`);
    }
  }
  expect(asked.size).toBeGreaterThan(35);
  const unknown = [...asked].filter((it) => {
    const [method = '', path = ''] = it.split(' ');
    return api.paths[path]?.[method] === undefined;
  });
  expect(unknown).toEqual([]);
});
