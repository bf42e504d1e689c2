// What both suites need: a browser, checks with names, and what every page must keep.

import { createHmac } from 'node:crypto';
import { mkdirSync } from 'node:fs';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

import axe from 'axe-core';
import { chromium } from 'playwright-core';

export const WIDE = { width: 1280, height: 800 };
export const PHONE = { width: 390, height: 844 };

/** Counts checks; whatever goes wrong in one is a failure with a reason, and the next one runs. */
export class Report {
  passed = 0;
  failed = 0;

  constructor(only = []) {
    this.only = only;
  }

  async check(name, work) {
    if (this.only.length && !this.only.some((it) => name.includes(it))) return;
    const start = Date.now();
    let wrong = '';
    try {
      await work();
    } catch (error) {
      wrong = error instanceof Failed ? error.message : (error?.stack ?? String(error));
    }
    if (wrong) this.failed += 1;
    else this.passed += 1;
    const seconds = ((Date.now() - start) / 1000).toFixed(1).padStart(6);
    console.log(`${wrong ? 'FAIL' : 'pass'}  ${name.padEnd(64)} ${seconds} s  ${wrong}`);
  }

  /** Prints the line that `cargo xtask test` counts. */
  end() {
    console.log(`${this.passed} passed, ${this.failed} failed`);
    return this.failed > 0 || this.passed === 0 ? 1 : 0;
  }
}

export class Failed extends Error {}

export function must(condition, text) {
  if (!condition) throw new Failed(text);
}

/** People with XMPP clients, who do what they are asked (run.py): `stage('say', { from, to, text })`. */
export function enter(port) {
  const socket = createConnection(port, '127.0.0.1');
  const answers = createInterface({ input: socket })[Symbol.asyncIterator]();
  async function stage(act, fields = {}) {
    socket.write(`${JSON.stringify({ act, ...fields })}\n`);
    const { value } = await answers.next();
    const answer = JSON.parse(value);
    if (answer.error) throw new Error(`${act}: ${answer.error}`);
    return answer.result;
  }
  return { stage, leave: () => socket.end() };
}

export async function browser() {
  const executablePath = process.env.CHROMIUM ?? '/usr/bin/chromium';
  // Without a sandbox: tests run as root in containers, and only pages of ours are opened.
  return await chromium.launch({ executablePath, timeout: 120_000, args: ['--no-sandbox', '--disable-dev-shm-usage'] });
}

/** A page that notes what no page of ours may do: errors, breaches of the policy, requests elsewhere. */
export async function visit(running, base, options = {}) {
  const context = await running.newContext({ viewport: WIDE, reducedMotion: 'reduce', locale: 'en-GB', ...options });
  const page = await context.newPage();
  // A loaded machine takes its time.
  page.setDefaultTimeout(30_000);
  page.wrongs = [];
  page.on('pageerror', (error) => page.wrongs.push(`error in the page: ${error.message}`));
  page.on('console', (message) => {
    // Being refused is an answer; Chromium notes each as an error of its own.
    if (message.type() === 'error' && !message.text().includes('the server responded with a status of')) page.wrongs.push(message.text());
  });
  page.on('request', (request) => {
    const url = new URL(request.url());
    if (url.origin !== new URL(base).origin && url.protocol !== 'blob:') page.wrongs.push(`a request to ${url.origin}`);
    // `<img src=x>` of somebody's.
    if (url.pathname === '/x') page.wrongs.push('something that somebody wrote was fetched');
  });
  page.on('dialog', (dialog) => {
    page.wrongs.push(`a script of somebody's ran: ${dialog.message()}`);
    void dialog.dismiss();
  });
  await page.goto(base);
  return page;
}

/** Nothing went wrong since the last time this was asked. */
export function clean(page) {
  const wrongs = page.wrongs.splice(0);
  must(wrongs.length === 0, wrongs.join('; '));
}

export async function signIn(page, { address, password }) {
  await page.getByLabel('Address').fill(address);
  await page.getByLabel('Password').fill(password);
  await page.getByRole('button', { name: 'Sign in' }).click();
}

/** Opens a page of the console by its address and waits for its heading. */
export async function at(page, path, heading) {
  await page.evaluate((to) => {
    window.location.hash = to;
  }, `#/${path}`);
  await page.getByRole('heading', { level: 1, name: heading }).waitFor();
  await settled(page);
}

/** Nothing says "Loading" any more. */
export async function settled(page) {
  await page.waitForFunction(() => ![...document.querySelectorAll('[role=status]')].some((it) => it.textContent.startsWith('Loading')));
}

export async function shot(page, directory, name, fullPage = true) {
  mkdirSync(directory, { recursive: true });
  await page.screenshot({ path: join(directory, `${name}.png`), fullPage });
}

/** Serious and critical findings of axe. */
export async function accessible(page) {
  // Evaluated by the debugger, which the page's policy does not bind.
  await page.evaluate(axe.source);
  const found = await page.evaluate(async () => {
    const result = await window.axe.run(document, { resultTypes: ['violations'] });
    return result.violations
      .filter((it) => it.impact === 'serious' || it.impact === 'critical')
      .map((it) => `${it.id}: ${it.nodes.slice(0, 3).map((node) => `${node.html.slice(0, 160)} ${node.any.map((why) => why.message).join(' ')}`).join(' | ')}`);
  });
  must(found.length === 0, found.join('\n      '));
}

/** What others wrote is text: none of it is an element, turns the text around it, or is hidden in it. */
export async function inert(page) {
  const wrong = await page.evaluate(() => {
    const found = [...document.querySelectorAll('#evil, [onerror], main img, iframe, object, embed')].map((it) => `an element: ${it.outerHTML.slice(0, 80)}`);
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const place = (node, at) => {
      const range = document.createRange();
      range.setStart(node, at);
      range.setEnd(node, at + 1);
      return range.getBoundingClientRect();
    };
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const text = node.data;
      if (/[\u202A-\u202E\u2066-\u2069]/.test(text)) found.push(`a mark that turns text: ${text.slice(0, 80)}`);
      // Two letters of one word: the first is to the left, or on the line above.
      const at = text.search(/[A-Za-z]{2}/);
      if (at < 0 || !node.parentElement?.checkVisibility()) continue;
      const [one, two] = [place(node, at), place(node, at + 1)];
      if (one.width && two.width && one.top === two.top && one.left > two.left) found.push(`turned: ${text.slice(0, 80)}`);
    }
    return found;
  });
  must(wrong.length === 0, wrong.join('\n      '));
}

/** Nothing sticks out to the side. */
export async function fits(page) {
  const [content, window_] = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
  must(content <= window_, `the page is ${content} wide on a screen of ${window_}`);
}

/** The code that a program for one-time codes shows (RFC 6238). */
export function totp(secret, at = Date.now()) {
  const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567';
  const bits = [...secret.replace(/[=\s]/g, '').toUpperCase()].map((it) => alphabet.indexOf(it).toString(2).padStart(5, '0')).join('');
  const key = Buffer.from((bits.match(/.{8}/g) ?? []).map((it) => parseInt(it, 2)));
  const counter = Buffer.alloc(8);
  counter.writeBigUInt64BE(BigInt(Math.floor(at / 30_000)));
  const digest = createHmac('sha1', key).update(counter).digest();
  const offset = digest[19] & 15;
  return String((digest.readUInt32BE(offset) & 0x7fffffff) % 1_000_000).padStart(6, '0');
}
