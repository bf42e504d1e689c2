// Makes dist/chat/: converse.js as its makers built it, and the page around it. Each file that gets smaller lies there
// compressed too, so that the server compresses nothing.

import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { brotliCompressSync, constants, gzipSync } from 'node:zlib';

const here = dirname(fileURLToPath(import.meta.url));
const home = join(here, '../node_modules/converse.js');
const out = join(here, '../dist/chat');

/** What no browser asks for: maps, what is there minified too, the project's own web site. */
const LEFT_OUT = /\.map$|\/converse\.(js|css)$|\/website|\/manifest\.json$|README$/;
/** Compressed already. */
const DENSE = /\.(png|ogg|mp3|woff2)$/;

rmSync(out, { recursive: true, force: true });
mkdirSync(join(out, 'converse'), { recursive: true });
cpSync(join(home, 'dist'), join(out, 'converse'), {
  recursive: true,
  filter: (source) => !LEFT_OUT.test(source.replaceAll('\\', '/')),
});
for (const name of ['index.html', 'chat.css', 'chat.js']) cpSync(join(here, name), join(out, name));

const about = JSON.parse(readFileSync(join(home, 'package.json'), 'utf8'));
writeFileSync(
  join(out, 'NOTICE.txt'),
  `The web chat is ${about.name} ${about.version}, unchanged, under the ${about.license}.
Its source: https://github.com/conversejs/converse.js/tree/v${about.version}
and https://registry.npmjs.org/${about.name}/-/${about.name}-${about.version}.tgz

${readFileSync(join(home, 'COPYRIGHT'), 'utf8').trim()}

${readFileSync(join(home, 'LICENSE'), 'utf8')}`,
);

let [count, before, after] = [0, 0, 0];
for (const entry of readdirSync(out, { recursive: true })) {
  const file = join(out, entry);
  if (!statSync(file).isFile()) continue;
  const bytes = readFileSync(file);
  [count, before] = [count + 1, before + bytes.length];
  const params = { [constants.BROTLI_PARAM_QUALITY]: 11, [constants.BROTLI_PARAM_SIZE_HINT]: bytes.length };
  const small = bytes.length < 1024 || DENSE.test(file);
  const brotli = small ? bytes : brotliCompressSync(bytes, { params });
  const gzip = small ? bytes : gzipSync(bytes, { level: 9 });
  if (brotli.length < bytes.length) writeFileSync(`${file}.br`, brotli);
  if (gzip.length < bytes.length) writeFileSync(`${file}.gz`, gzip);
  after += Math.min(brotli.length, bytes.length);
}
if (!existsSync(join(out, 'converse/converse.min.js'))) throw new Error('converse.js ships no converse.min.js');
const kb = (n) => `${Math.round(n / 1024)} kB`;
console.log(`dist/chat: ${count} files, ${kb(before)}, compressed ${kb(after)}`);
