/** Gaps at token boundaries: what a model that goes on with a text reads is what its tokenizer makes of the whole. */
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test, vi } from 'vitest';
import { loadTokenizer, Tokenizer } from '../../../services/lib/text/tokenizer.ts';
import { SampleMaker } from '../../../training/data/samples.ts';
import { atTokenBoundary } from '../../../training/data/token-boundary.ts';
import { readJsonFile, TINY_CODER } from '../../support/models.ts';

const json = await readJsonFile<ConstructorParameters<typeof Tokenizer>[0]>(join(TINY_CODER, 'tokenizer.json'));
const GPT2 = { type: 'ByteLevel', add_prefix_space: false, use_regex: true };
/** One vocabulary, with words as Qwen2 splits them, and as GPT-2 does. */
const tokenizers = {
  qwen2: await loadTokenizer(TINY_CODER),
  gpt2: new Tokenizer({ ...json, pre_tokenizer: GPT2 }),
};
const row = { name: 'a row', right: '', chunks: [{ path: 'a.py', text: 'a = 1' }] };
const lengths = { chunks: 1, promptTokens: 64, targetTokens: 24, textTokens: 16 };

describe.each(Object.entries(tokenizers))('with the words of %s', (_, tokenizer) => {
  const ids = (text: string) => tokenizer.encode(text, 'as text', 'within');

  test('a gap behind the indentation of a line gives its last space to the target', () => {
    const gap = atTokenBoundary(tokenizer, { left: 'def f(x):\n        ', target: 'return x' });
    expect(gap).toEqual({ left: 'def f(x):\n       ', target: ' return x' });
  });

  test('a gap at a boundary stays where it is', () => {
    const gap = { left: 'value', target: ' = 1' };
    expect(atTokenBoundary(tokenizer, gap)).toEqual(gap);
  });

  test('nothing is lost, and the ids of both parts are those of the whole, or the gap stays', () => {
    const word = fc.constantFrom(' ', '    ', '\n', 'def', 'ret', 'urn', 'x', 'é', '😀', '():');
    const piece = fc
      .array(fc.oneof(word, fc.string({ unit: 'binary', maxLength: 3 })), { maxLength: 6 })
      .map((parts) => parts.join(''));
    /** Half of the texts end as a line is begun, so that many gaps must move: about 150 of 500. */
    const left = fc.tuple(piece, fc.constantFrom('', 'x', '\n    ', '  ')).map(([text, end]) => text + end);
    let moved = 0;
    fc.assert(
      fc.property(left, piece, (left, target) => {
        const found = atTokenBoundary(tokenizer, { left, target });
        expect(found.left + found.target).toBe(left + target);
        expect(left.startsWith(found.left)).toBe(true);
        if (found.left !== left) {
          moved++;
          expect([...ids(found.left), ...ids(found.target)]).toEqual(ids(left + target));
        }
      }),
      { numRuns: 500 },
    );
    expect(moved).toBeGreaterThan(20);
  });

  test('a text that is longer than what is looked at is cut at the same place', () => {
    const left = `${'value = compute(1)\n'.repeat(100)}    `;
    const found = atTokenBoundary(tokenizer, { left, target: 'done()' });
    expect(found).toEqual({ left: left.slice(0, -1), target: ' done()' });
  });
});

test('a gap is moved for a model that cannot fill in the middle, and for no other', () => {
  const tokenizer = tokenizers.qwen2;
  const data = { rows: [{ ...row, left: 'def f(x):\n        ', target: 'return x' }], digest: 'd' };
  const whole = new SampleMaker(tokenizer, [], lengths);
  expect(whole.read(data)).toBe(data);
  vi.spyOn(tokenizer, 'idOf').mockReturnValue(undefined);
  const samples = new SampleMaker(tokenizer, [], lengths);
  vi.restoreAllMocks();
  const read = samples.read(data);
  expect(read.digest).not.toBe(data.digest);
  const { promptIds, targetIds } = samples.without(read.rows[0]!);
  expect([...promptIds, ...targetIds]).toEqual(tokenizer.encode('def f(x):\n        return x'));
  expect(targetIds).toEqual(tokenizer.encode(' return x'));
});
