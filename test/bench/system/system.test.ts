import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { divideCores, parseCores } from '../../../bench/system/cores.ts';
import { PromptMaker } from '../../../bench/system/prompts.ts';
import { loadSession, replaySession } from '../../../bench/typing/measure.ts';
import { PACKAGE_ROOT } from '../../../services/lib/process/package-root.ts';
import { PromptBuilder } from '../../../services/lib/text/prompt.ts';
import { choosePromptFormat } from '../../../services/lib/text/prompt-format.ts';
import { loadTokenizer, type Tokenizer } from '../../../services/lib/text/tokenizer.ts';

const SHOP = join(PACKAGE_ROOT, 'examples', 'shop');

describe('cores', () => {
  it('are read as ranges', () => expect(parseCores('0,2-4,2')).toEqual([0, 2, 3, 4]));
  it.each(['', '3-1', 'x'])('refuses %j', (text) => expect(() => parseCores(text)).toThrow(/must be like/));

  it('are divided evenly, shared where asked, and taken in turns where there are too few', () => {
    expect(divideCores([0, 1, 2, 3, 4], 2, 'split')).toEqual([
      [0, 1, 2],
      [3, 4],
    ]);
    expect(divideCores([0, 1], 2, 'shared')).toEqual([
      [0, 1],
      [0, 1],
    ]);
    expect(divideCores([0, 1], 3, 'split')).toEqual([[0], [1], [0]]);
  });
});

describe('PromptMaker', () => {
  let tokenizer: Tokenizer;
  let prompts: PromptMaker;
  beforeAll(async () => {
    tokenizer = await loadTokenizer(join(PACKAGE_ROOT, 'models', 'tiny-coder'));
    prompts = await PromptMaker.load('shop', SHOP, tokenizer);
  });

  it.each([0, 1, 17, 5000])('cursor %i: the gateway counts exactly the tokens asked for', (index) => {
    const builder = new PromptBuilder(tokenizer, choosePromptFormat(tokenizer));
    const context = { kind: 'soft' as const, vectors: Array.from({ length: 10 }, () => new Float32Array(4)) };
    const { prompt, suffix, rag } = prompts.make(index, { tokens: 1010, context: 'compressed', contextTokens: 10 });
    expect(builder.build({ prompt, suffix, context, capacity: 4096, maxTokens: 50 }).ids).toHaveLength(1010);
    expect(rag).toMatchObject({ repo: 'shop', mode: 'compressed', top_k: 10 });
  });

  it('the code around a cursor is the same whatever the context', () => {
    const text = prompts.make(3, { tokens: 1500, context: 'text', contextTokens: 500 });
    const soft = prompts.make(3, { tokens: 1010, context: 'compressed', contextTokens: 10 });
    expect(text.prompt).toEqual(soft.prompt);
    expect(text.suffix).toEqual(soft.suffix);
  });

  it('prompts of different cursors begin differently', () => {
    const starts = [1, 2, 3, 4].map((index) =>
      prompts.make(index, { tokens: 2000, context: 'off', contextTokens: 0 }).prompt.slice(0, 8).toString(),
    );
    expect(new Set(starts).size).toBe(4);
  });
});

describe('a typing session', () => {
  it('is replayed into what the editor holds', () => {
    const lines = [
      '{"path": "a.py", "line": 1, "note": ""}',
      '{"at_ms": 5, "insert": "ab"}',
      '{"at_ms": 9, "delete": 1}',
    ].join('\n');
    expect(replaySession(lines, 'one\ntwo\n')).toEqual({
      path: 'a.py',
      keystrokes: [
        { atMs: 5, before: 'one\nab', after: 'two\n' },
        { atMs: 9, before: 'one\na', after: 'two\n' },
      ],
    });
  });

  it('the one that ships ends in a method that the file lacks', async () => {
    const { path, keystrokes } = await loadSession(SHOP);
    expect(path).toBe('shop/cart.py');
    expect(keystrokes.at(-1)!.before).toMatch(/self\.coupon_code = other\.coupon_code\n\n$/);
    expect(keystrokes.map(({ atMs }) => atMs)).toEqual(keystrokes.map(({ atMs }) => atMs).toSorted((a, b) => a - b));
  });
});
