import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { QualityClient } from '../../../bench/quality/client.ts';
import { readSample } from '../../../bench/quality/formats.ts';
import { prune, Rewriters, type Summarizer } from '../../../bench/quality/rewriters.ts';
import { TypedPruning } from '../../../bench/quality/typed-pruning.ts';
import { SCORED_LANGUAGES } from '../../../training/metrics/keywords.ts';
import { benchmarkRow, FILES, GIVEN_CHUNKS } from '../../support/benchmark-rows.ts';
import { tokenizer } from '../../support/fake-gateway.ts';
import { temporaryFolder } from '../../support/models.ts';

const dir = await temporaryFolder();
const words = (text: string) => text.split(/\s+/).filter(Boolean).length;

describe('pruning by surprisal', () => {
  const client = (logprobs: readonly (number | null)[]) => ({ logprobs: async () => ({ logprobs, fingerprint: '' }) });

  it('keeps the tokens that the model expected least, in their order', async () => {
    expect(await prune([5, 6, 7, 8, 9], 3, client([null, -0.1, -4, -0.2, -9]))).toEqual([5, 7, 9]);
  });

  it('asks nobody about a chunk that is short enough', async () => {
    const nobody = { logprobs: () => expect.unreachable('the model was asked') };
    expect(await prune([5, 6], 2, nobody)).toEqual([5, 6]);
  });
});

describe('pruning by type', () => {
  let python: TypedPruning;
  beforeAll(async () => {
    python = await TypedPruning.load('python');
  });
  afterAll(() => python.dispose());

  it('signatures and calls stay longest, in the order of the code', () => {
    const code = 'def reserve(item):\n    # of the shop\n    limit = 7\n    return lookup(item, limit)\n';
    expect(python.prune(code, words, 3)).toBe('reserve item lookup');
    expect(python.prune(code, words, 100)).toContain('limit = 7');
    expect(python.prune(code, words, 0)).toBe('');
  });

  it('any text is pruned to the budget, with tokens that stand in it', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme', maxLength: 200 }), fc.integer({ min: 0, max: 20 }), (code, budget) => {
        const length = (text: string) => tokenizer.encode(text).length;
        const pruned = python.prune(code, length, budget);
        expect(length(pruned)).toBeLessThanOrEqual(budget);
        for (const token of pruned.split(' ')) expect(code).toContain(token);
      }),
      { numRuns: 50 },
    );
  });

  it.each(SCORED_LANGUAGES)('names that are defined and called are told in %s', async (language) => {
    const code = {
      python: 'def total(price):\n    return fetch(price)\n',
      java: 'class A { int total(int price) { return fetch(price); } }',
      javascript: 'function total(price) { return fetch(price); }',
      typescript: 'function total(price: number): number { return fetch(price); }',
      csharp: 'class A { int total(int price) { return fetch(price); } }',
    }[language];
    const pruning = await TypedPruning.load(language);
    const kept = pruning.prune(code, words, language === 'java' || language === 'csharp' ? 6 : 3).split(' ');
    pruning.dispose();
    expect(kept).toEqual(expect.arrayContaining(['total', 'fetch']));
    expect(kept).not.toContain('return');
  });
});

describe('what is rewritten', () => {
  const sample = readSample('authors', 'a.jsonl:1', benchmarkRow('authors'), () => {});
  const settings = { url: 'http://127.0.0.1:1', apiKey: undefined, timeoutMs: 1, signal: new AbortController().signal };
  const unasked: Summarizer = {
    client: { chat: () => expect.unreachable('a summary was asked for') },
    url: '',
    model: undefined,
  };
  const open = (file: string, rewriteTokens: number, summarizer = unasked) => {
    const client = new QualityClient(settings);
    const parts = { tokenizer, fingerprint: 'f', client, summarizer, language: 'python' } as const;
    return Rewriters.open(join(dir, file), parts, { rewriteTokens });
  };

  it('chunks share a budget, and what one does not need is for those after it', async () => {
    const rewriters = await open('shared.jsonl', 24);
    const chunks = [{ path: 'a.py', text: 'x' }, ...GIVEN_CHUNKS];
    const { ids } = await rewriters.rewrite('typed', sample, chunks);
    rewriters.dispose();
    expect(ids.length).toBeLessThanOrEqual(24);
    expect(ids.length).toBeGreaterThan(12);
    expect(tokenizer.decode(ids)).toMatch(/^x\nround_price/);
  });

  it('a field of the benchmark is cut to the budget', async () => {
    const rewriters = await open('given.jsonl', 4);
    const zipped = tokenizer.encode('def round_price reserve_item');
    expect((await rewriters.rewrite('zip', sample, [])).ids).toEqual(zipped.slice(0, 4));
    rewriters.dispose();
  });

  it('is kept, and not made again by another run', async () => {
    const chunks = [{ path: 'cart.py', text: FILES['cart.py']! }];
    const first = await open('kept.jsonl', 8);
    const made = await first.rewrite('typed', sample, chunks);
    first.dispose();
    const again = await open('kept.jsonl', 8);
    again.dispose(); // whoever asked the parser now would find none
    expect(await again.rewrite('typed', sample, chunks)).toEqual(made);
  });

  it('a summary is asked for in words, of the best chunk alone where the budget is that of ten soft tokens', async () => {
    const asked: [string, string | undefined, number][] = [];
    const chat: Summarizer['client']['chat'] = async (message, model, maxTokens) => {
      asked.push([message, model, maxTokens]);
      return 'rounds prices\n\nIt has two functions.';
    };
    const by = (model: string) => ({ client: { chat }, url: 'http://summaries', model });
    const rewriters = await open('summary.jsonl', 10, by('small'));
    const { ids } = await rewriters.rewrite('summary', sample, GIVEN_CHUNKS);
    rewriters.dispose();
    expect(asked).toHaveLength(1);
    const [message, model, maxTokens] = asked[0]!;
    expect(message).toContain(GIVEN_CHUNKS[0]!.text);
    expect(message).toContain('in at most 7 words');
    expect(model).toBe('small');
    expect(maxTokens).toBeGreaterThan(2 * 10); // its tokenizer may need more tokens for these words
    expect(ids).toEqual(tokenizer.encode('rounds prices').slice(0, 10));

    const again = await open('summary.jsonl', 10, by('small'));
    await again.rewrite('summary', sample, GIVEN_CHUNKS);
    again.dispose();
    expect(asked).toHaveLength(1);
    const other = await open('summary.jsonl', 10, by('large'));
    await other.rewrite('summary', sample, GIVEN_CHUNKS);
    other.dispose();
    expect(asked.map(([, each]) => each)).toEqual(['small', 'large']);
  });

  it('an empty summary is told, and asked for again by the next run', async () => {
    const answers = [' \n', 'rounds prices'];
    const client: Summarizer['client'] = { chat: async () => answers.shift()! };
    const rewritten = [];
    for (const _ of ['first run', 'next run', 'one that finds it kept']) {
      const rewriters = await open('empty.jsonl', 10, { client, url: 'http://summaries', model: 'thinks' });
      rewritten.push(await rewriters.rewrite('summary', sample, GIVEN_CHUNKS));
      rewriters.dispose();
    }
    const whole = { ids: tokenizer.encode('rounds prices').slice(0, 10), lacksSummary: false };
    expect(rewritten).toEqual([{ ids: [], lacksSummary: true }, whole, whole]);
  });
});
