import fc from 'fast-check';
import { describe, expect, it, vi } from 'vitest';
import type { EvaluateOptions } from '../../../bench/quality/command.ts';
import { armSpecs, EvaluationPrompts, tokensOf } from '../../../bench/quality/prompts.ts';
import { atOnce } from '../../../services/lib/async/turns.ts';
import { PromptBuilder } from '../../../services/lib/text/prompt.ts';
import { choosePromptFormat } from '../../../services/lib/text/prompt-format.ts';
import { tokenizer } from '../../support/fake-gateway.ts';

const SETTINGS = { promptTokens: 303, textTokens: 64, topK: 10, promptOrder: 'psm', fileTokens: 2 } as const;
const format = choosePromptFormat(tokenizer);
const LONG = Array.from({ length: 400 }, (_, i) => `value_${i} = compute(${i})  # é😀`).join('\n');

describe('the prompts of an evaluation', () => {
  it('code is cut to a third after the gap and two thirds before it, at whole characters', () => {
    const prompts = new EvaluationPrompts(tokenizer, SETTINGS);
    const { left, right } = prompts.cut(LONG, LONG);
    expect(LONG.endsWith(left)).toBe(true);
    expect(LONG.startsWith(right)).toBe(true);
    const tokens = (text: string) => tokenizer.encode(text).length;
    expect(tokens(left)).toBeGreaterThan(190);
    expect(tokens(left)).toBeLessThanOrEqual(202);
    expect(tokens(right)).toBeGreaterThan(90);
    expect(tokens(right)).toBeLessThanOrEqual(101);
    expect(prompts.cut('a', 'b')).toEqual({ left: 'a', right: 'b' });
  });

  it('of a model that cannot fill in the middle, all of the room is before the gap', () => {
    vi.spyOn(tokenizer, 'idOf').mockReturnValue(undefined);
    const prompts = new EvaluationPrompts(tokenizer, SETTINGS);
    vi.restoreAllMocks();
    const { left, right } = prompts.cut(LONG, LONG);
    expect(LONG.endsWith(left)).toBe(true);
    expect(tokenizer.encode(left).length).toBeGreaterThan(290);
    expect(tokenizer.encode(left).length).toBeLessThanOrEqual(303);
    expect(LONG.startsWith(right)).toBe(true); // the server searches with it
    expect(prompts.withContext({ left: 'ab', right: 'cd' }, [70]).prompt).toEqual([
      ...tokenizer.leadingIds,
      70,
      ...tokenizer.encode('ab'),
    ]);
  });

  it('the gap of a model that cannot fill in the middle begins between two of its tokens', () => {
    const gap = { left: 'def f(x):\n        ', target: 'return x' };
    const ids = (text: string) => tokenizer.encode(text, 'as text', 'within');
    expect(new EvaluationPrompts(tokenizer, SETTINGS).gap(gap)).toEqual(gap);
    vi.spyOn(tokenizer, 'idOf').mockReturnValue(undefined);
    const prompts = new EvaluationPrompts(tokenizer, SETTINGS);
    vi.restoreAllMocks();
    const { left, target } = prompts.gap(gap);
    expect(left + target).toBe(gap.left + gap.target);
    expect([...ids(left), ...ids(target)]).toEqual(ids(gap.left + gap.target));
    expect(ids(gap.left)).not.toEqual(ids(left));
  });

  it.each(['psm', 'spm'] as const)('rewritten context stands where the server puts text, in the order %s', (order) => {
    const prompts = new EvaluationPrompts(tokenizer, { ...SETTINGS, promptOrder: order });
    const builder = new PromptBuilder(tokenizer, format, order);
    fc.assert(
      fc.property(fc.string(), fc.string(), (left, right) => {
        const built = atOnce(builder.build({ prompt: left, suffix: right, capacity: 4096, maxTokens: 1 }));
        const own = prompts.withContext({ left, right }, [70, 71]).prompt;
        expect(own).toEqual([...tokenizer.leadingIds, 70, 71, ...built.ids.subarray(tokenizer.leadingIds.length)]);
      }),
    );
  });

  it('a request names the budget of text and no budget for soft tokens, and has a salt of its own', () => {
    const prompts = new EvaluationPrompts(tokenizer, SETTINGS);
    const at = { repo: 'r', path: 'a.py', retriever: 'bm25' } as const;
    const code = { left: 'a', right: 'b' };
    const text = prompts.retrieving(code, 'text', at);
    const rag = { repo: 'r', mode: 'text', path: 'a.py', retriever: 'bm25', top_k: 10, max_text_tokens: 64 };
    expect(text).toMatchObject({ prompt: 'a', suffix: 'b', rag });
    expect(prompts.retrieving(code, 'compressed', at).rag).not.toHaveProperty('max_text_tokens');
    expect(prompts.retrieving(code, 'mixed', at).rag).toEqual({ ...rag, mode: 'mixed' });
    const one = new EvaluationPrompts(tokenizer, { ...SETTINGS, textChunks: 1 });
    expect(one.retrieving(code, 'mixed', at).rag).toEqual({ ...rag, mode: 'mixed', text_chunks: 1 });
    expect(one.retrieving(code, 'text', at).rag).toEqual(rag);
    const withFiles = { repo: 'r', mode: 'compressed', path: 'a.py', retriever: 'bm25', top_k: 10, file_tokens: 2 };
    expect(prompts.retrieving(code, 'compressed-files', at).rag).toEqual(withFiles);
    expect(prompts.retrieving(code, 'compressed', at).rag).not.toHaveProperty('file_tokens');
    expect(prompts.plain(code).cache_salt).not.toBe(prompts.plain(code).cache_salt);
  });
});

it('a slot must hold the soft tokens of all chunks and files, where these are more than text', () => {
  const options = { promptTokens: 1000, textTokens: 50, rewriteTokens: 10, maxTokens: 5, topK: 10, fileTokens: 3 };
  const needed = (softPerChunk: number) => tokensOf(options as EvaluateOptions, softPerChunk, 7);
  expect(needed(8) - needed(1)).toBe(83 - 50);
});

describe('the arms of a run', () => {
  it('those that retrieve are there once for each retriever, and others once', () => {
    const names = (retrievers: Parameters<typeof armSpecs>[0]['retrievers']) =>
      armSpecs({ arms: ['off', 'text', 'compressed', 'typed', 'zip', 'off'], retrievers }).map(({ name }) => name);
    expect(names(['jaccard'])).toEqual(['off', 'text', 'compressed', 'typed', 'zip']);
    expect(names(['jaccard', 'bm25'])).toEqual([
      'off',
      'text (jaccard)',
      'text (bm25)',
      'compressed (jaccard)',
      'compressed (bm25)',
      'typed',
      'zip',
    ]);
  });
});
