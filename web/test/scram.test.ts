import { expect, test } from 'vitest';

import { ScramError, final, first, prepared, verify } from '../src/logic/scram';

// RFC 7677 s.3.
const NONCE = 'rOprNGfwEbeRWgbNEkqO';
const CHALLENGE = 'r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096';

test('the example of RFC 7677', async () => {
  const begun = first('user', NONCE);
  expect(begun.message).toBe('n,,n=user,r=rOprNGfwEbeRWgbNEkqO');
  const { message, expected } = await final(begun, CHALLENGE, 'pencil');
  expect(message).toBe('c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=');
  expect(expected).toBe('v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=');
  verify(expected, 'v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=');
  expect(() => verify(expected, 'v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G5=')).toThrow(ScramError);
  expect(() => verify(expected, 'e=other-error')).toThrow(ScramError);
});

test('passwords are prepared as the server does', () => {
  // RFC 4013 s.3, then what is commonly mapped to nothing, and spaces.
  const cases = { 'I\u00adX': 'IX', user: 'user', USER: 'USER', '\u00aa': 'a', '\u2168': 'IX', 'a\u200d\ufe0f\ufeffb': 'ab', 'a\u00a0\u3000\u200bb': 'a  b' };
  for (const [typed, meant] of Object.entries(cases)) expect(prepared(typed), typed).toBe(meant);
});

test('a server that plays tricks gets no proof', async () => {
  const begun = first('user', NONCE);
  const tricks = {
    'another nonce': CHALLENGE.replace('rOpr', 'xOpr'),
    'our own nonce only': `r=${NONCE},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096`,
    'few iterations': CHALLENGE.replace('4096', '1'),
    'endless iterations': CHALLENGE.replace('4096', '4096000000'),
    'no salt': CHALLENGE.replace('s=W22ZaJ0SNY7soEsUEjb6gQ==', 's='),
    'a salt that is none': CHALLENGE.replace('W22', '!!!'),
    'an extension': `m=x,${CHALLENGE}`,
    nothing: '',
  };
  for (const [name, trick] of Object.entries(tricks)) {
    await expect(final(begun, trick, 'pencil'), name).rejects.toThrow(ScramError);
  }
});

test('names can contain what SCRAM uses itself', () => {
  expect(first('a,b=c@example.org', 'n').bare).toBe('n=a=2Cb=3Dc@example.org,r=n');
});

test('no two attempts have one nonce', () => {
  expect(first('a').nonce).not.toBe(first('a').nonce);
});
