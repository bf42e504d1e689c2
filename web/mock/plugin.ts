// Serves the invented exchange to `npm run dev`, and to `npm run preview` beside what was built. Never part of a build.

import type { IncomingMessage } from 'node:http';

import type { Connect, Plugin } from 'vite';

import { Exchange } from './exchange';
import { hostile } from './hostile';

/** As the server says it (crates/server/src/admin/api). */
const POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

export function mock(): Plugin {
  return {
    name: 'mock-exchange',
    configureServer(server) {
      serve(server.middlewares);
    },
    configurePreviewServer(server) {
      server.middlewares.use((_, response, next) => {
        response.setHeader('Content-Security-Policy', POLICY);
        next();
      });
      serve(server.middlewares);
    },
  };
}

function serve(middlewares: Connect.Server): void {
  const exchange = new Exchange();
  const worst = process.env.TRUNKLINE_MOCK === 'hostile';
  middlewares.use('/api/v1', (request, response) => {
    void body(request).then((text) => {
      const cookie = /trunkline=(\w+)/.exec(request.headers.cookie ?? '')?.[1] ?? '';
      const url = new URL(request.url ?? '/', 'http://mock');
      const answer = exchange.answer(request.method ?? 'GET', url, text, cookie);
      response.statusCode = answer.status;
      response.setHeader('Content-Type', answer.status < 400 ? 'application/json' : 'application/problem+json');
      if (answer.cookie !== undefined) response.setHeader('Set-Cookie', `trunkline=${answer.cookie}; HttpOnly; SameSite=Strict; Path=/`);
      const told = worst && !url.pathname.startsWith('/session') ? hostile(answer.body) : answer.body;
      response.end(answer.status === 204 ? '' : JSON.stringify(told));
    });
  });
}

async function body(request: IncomingMessage): Promise<string> {
  let text = '';
  for await (const chunk of request) text += String(chunk);
  return text;
}
