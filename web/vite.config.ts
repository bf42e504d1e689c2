// How the console is built: everything in files of its own, so that a strict Content-Security-Policy holds.

import { defineConfig } from 'vitest/config';

import { mock } from './mock/plugin';
import { notice } from './notice';

const api = process.env.TRUNKLINE_API;

export default defineConfig({
  base: './',
  plugins: [notice(), ...(api ? [] : [mock()])],
  server: { proxy: api ? { '/api': api } : {} },
  build: {
    target: 'es2022',
    // dist/ itself is always there: cargo watches it (crates/server/build.rs).
    outDir: 'dist/site',
    // Small pictures as data: URIs, and the preload helper as an inline script, would not pass the policy.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  test: { include: ['test/**/*.test.ts'] },
});
