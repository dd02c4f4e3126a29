import { expect, test } from 'vitest';
import { ScriptedEngine } from '../../../bench/typing/scripted-engine.ts';
import { choosePromptFormat } from '../../../services/lib/text/prompt-format.ts';
import { tokenizer } from '../../support/fake-gateway.ts';
import { FINGERPRINT } from '../../support/fake-workers.ts';

const format = choosePromptFormat(tokenizer, undefined, []);
const [prefix, suffix, middle] = format.frame as [number, number, number];
const script = 'def f(x):\n    return x + 1\n\nprint(f(1))\n';
const engine = new ScriptedEngine({ tokenizer, format, fingerprint: FINGERPRINT, script, prefillMs: 1, stepMs: 1 });

/** The text that is predicted at a cursor, with some output already there. */
function predicted(before: string, output = '') {
  const [left, right, prior] = [before, '\n\nprint(f(1))\n', output].map((text) => [...tokenizer.encode(text)]);
  const ids = engine.predict([prefix, ...left!, suffix, ...right!, middle, ...prior!], prior!.length);
  expect(format.stopIds).toContain(ids.at(-1));
  return tokenizer.decode(ids.slice(0, -1));
}

test('a scripted engine predicts the rest of the script, and goes on from what is put out', () => {
  expect(predicted('def f(x):\n    ')).toBe('return x + 1\n\nprint(f(1))\n');
  expect(predicted('def f(x):\n    ', 'return')).toBe(' x + 1\n\nprint(f(1))\n');
});

test('it predicts the end of text where the typist is off the script', () => {
  expect(predicted('def g(x):\n    ')).toBe('');
});

test('it counts the prompts and the steps that it is asked for, wanted or not', async () => {
  const signal = new AbortController().signal;
  const tokenIds = [prefix, ...tokenizer.encode('def f(x):\n    '), suffix, middle];
  const events = [];
  for await (const event of engine.prefill.prefill({ tokenIds, choices: [{}] }, signal)) events.push(event);
  const kv = events[0]!.accepted!.kv;
  const tokens: number[] = [events[1]!.first!.tokens[0]!.id];
  for await (const { step } of engine.decode.decode({ kv, maxTokens: 4, sampling: {} }, signal)) {
    tokens.push(...(step?.tokens ?? []).map(({ id }) => id));
  }
  expect('return x + 1').toMatch(tokenizer.decode(tokens).slice(0, 8));
  expect([engine.prompts, engine.steps]).toEqual([1, 3]);
});
