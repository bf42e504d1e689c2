// Serves the invented exchange to `npm run dev`. Never part of a build.

import type { IncomingMessage } from 'node:http';

import type { Plugin } from 'vite';

import { Exchange } from './exchange';

export function mock(): Plugin {
  return {
    name: 'mock-exchange',
    apply: 'serve',
    configureServer(server) {
      const exchange = new Exchange();
      server.middlewares.use('/api/v1', (request, response) => {
        void body(request).then((text) => {
          const cookie = /trunkline=(\w+)/.exec(request.headers.cookie ?? '')?.[1] ?? '';
          const url = new URL(request.url ?? '/', 'http://mock');
          const answer = exchange.answer(request.method ?? 'GET', url, text, cookie);
          response.statusCode = answer.status;
          response.setHeader('Content-Type', answer.status < 400 ? 'application/json' : 'application/problem+json');
          if (answer.cookie !== undefined) response.setHeader('Set-Cookie', `trunkline=${answer.cookie}; HttpOnly; SameSite=Strict; Path=/`);
          response.end(answer.status === 204 ? '' : JSON.stringify(answer.body));
        });
      });
    },
  };
}

async function body(request: IncomingMessage): Promise<string> {
  let text = '';
  for await (const chunk of request) text += String(chunk);
  return text;
}
