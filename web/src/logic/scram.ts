// SCRAM-SHA-256 (RFC 5802, RFC 7677) in a browser: the password never leaves the page.

/** Fewer would be a server that wants to learn passwords (RFC 7677 s.4); more would be one that wants us to hang. */
const ITERATIONS = { least: 4096, most: 10_000_000 };

/** The server's answer is wrong: it does not know the password's keys either, or something in between changed it. */
export class ScramError extends Error {}

export interface First {
  /** To be sent. */
  message: string;
  bare: string;
  nonce: string;
}

export function first(name: string, nonce: string = randomNonce()): First {
  // RFC 5802 s.5.1: `=` and `,` would end the attribute.
  const bare = `n=${name.replaceAll('=', '=3D').replaceAll(',', '=2C')},r=${nonce}`;
  return { message: `n,,${bare}`, bare, nonce };
}

export interface Final {
  /** To be sent. */
  message: string;
  /** What the server must answer. */
  expected: string;
}

export async function final(begun: First, serverFirst: string, password: string): Promise<Final> {
  const fields = attributes(serverFirst);
  const [nonce, salt, count] = [fields.get('r') ?? '', fields.get('s') ?? '', Number(fields.get('i'))];
  if (fields.has('m')) throw new ScramError('the server asks for an extension that this page does not know');
  if (!nonce.startsWith(begun.nonce) || nonce.length <= begun.nonce.length) throw new ScramError('the server answered to somebody else');
  if (!salt || !Number.isInteger(count) || count < ITERATIONS.least || count > ITERATIONS.most) throw new ScramError('the server asks for keys of an unusual kind');
  const salted = await saltedPassword(password, fromBase64(salt), count);
  const clientKey = await hmac(salted, utf8('Client Key'));
  const storedKey = await digest(clientKey);
  const withoutProof = `c=biws,r=${nonce}`;
  const signed = utf8(`${begun.bare},${serverFirst},${withoutProof}`);
  const signature = await hmac(storedKey, signed);
  const proof = clientKey.map((byte, at) => byte ^ (signature[at] ?? 0));
  const serverSignature = await hmac(await hmac(salted, utf8('Server Key')), signed);
  return { message: `${withoutProof},p=${toBase64(proof)}`, expected: `v=${toBase64(serverSignature)}` };
}

/** RFC 5802 s.3: the server has to prove that it knows the keys, too. */
export function verify(expected: string, serverFinal: string): void {
  if (serverFinal.split(',')[0] !== expected) throw new ScramError('the server could not prove that it knows you');
}

function attributes(message: string): Map<string, string> {
  return new Map(message.split(',').map((part): [string, string] => [part.slice(0, 1), part.slice(2)]));
}

async function saltedPassword(password: string, salt: Bytes, iterations: number): Promise<Bytes> {
  const key = await subtle().importKey('raw', utf8(prepared(password)), 'PBKDF2', false, ['deriveBits']);
  return new Uint8Array(await subtle().deriveBits({ name: 'PBKDF2', hash: 'SHA-256', salt, iterations }, key, 256));
}

/**
 * SASLprep (RFC 4013 s.2.1 and s.2.2) of what people type: spaces of other scripts become one of ours, and what is
 * "commonly mapped to nothing" goes. U+200B is on both lists; the server takes it for nothing.
 */
export function prepared(password: string): string {
  return password
    .replace(/[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]/g, ' ')
    .replace(/\u00ad|\u034f|\u1806|[\u180b-\u180d]|[\u200b-\u200d]|\u2060|[\ufe00-\ufe0f]|\ufeff/g, '')
    .normalize('NFKC');
}

type Bytes = Uint8Array<ArrayBuffer>;

async function hmac(key: Bytes, data: Bytes): Promise<Bytes> {
  const imported = await subtle().importKey('raw', key, { name: 'HMAC', hash: 'SHA-256' }, false, ['sign']);
  return new Uint8Array(await subtle().sign('HMAC', imported, data));
}

async function digest(data: Bytes): Promise<Bytes> {
  return new Uint8Array(await subtle().digest('SHA-256', data));
}

function subtle(): SubtleCrypto {
  // Browsers have it over HTTPS and on loopback only.
  const found = (globalThis.crypto as Crypto | undefined)?.subtle;
  if (!found) throw new ScramError('this browser signs in over HTTPS only: open the console by its https address');
  return found;
}

function randomNonce(): string {
  return toBase64(crypto.getRandomValues(new Uint8Array(18)));
}

function utf8(text: string): Bytes {
  return new TextEncoder().encode(text);
}

export function toBase64(bytes: Bytes): string {
  return btoa(String.fromCharCode(...bytes));
}

export function fromBase64(text: string): Bytes {
  try {
    return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  } catch {
    throw new ScramError('the server answered something that is not Base64');
  }
}
