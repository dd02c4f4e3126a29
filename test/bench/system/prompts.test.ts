import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { PromptMaker } from '../../../bench/system/prompts.ts';
import { atOnce } from '../../../services/lib/async/turns.ts';
import { PACKAGE_ROOT } from '../../../services/lib/process/package-root.ts';
import { PromptBuilder } from '../../../services/lib/text/prompt.ts';
import { choosePromptFormat } from '../../../services/lib/text/prompt-format.ts';
import { loadTokenizer, type Tokenizer } from '../../../services/lib/text/tokenizer.ts';

const SHOP = join(PACKAGE_ROOT, 'examples', 'shop');

describe('PromptMaker', () => {
  let tokenizer: Tokenizer;
  let prompts: PromptMaker;
  beforeAll(async () => {
    tokenizer = await loadTokenizer(join(PACKAGE_ROOT, 'models', 'tiny-coder'));
    prompts = await PromptMaker.load('shop', SHOP, tokenizer);
  });

  it.each([0, 1, 17, 5000])('the gateway counts exactly the tokens that were asked for at cursor %i', (index) => {
    const builder = new PromptBuilder(tokenizer, choosePromptFormat(tokenizer));
    const context = { kind: 'soft' as const, vectors: Array.from({ length: 10 }, () => new Float32Array(4)) };
    const { prompt, suffix, rag } = prompts.make(index, { tokens: 1010, context: 'compressed', contextTokens: 10 });
    expect(atOnce(builder.build({ prompt, suffix, context, capacity: 4096, maxTokens: 50 })).ids).toHaveLength(1010);
    expect(rag).toMatchObject({ repo: 'shop', mode: 'compressed', top_k: 10 });
  });

  it('a prompt has the same code around its cursor whatever its context is', () => {
    const text = prompts.make(3, { tokens: 1500, context: 'text', contextTokens: 500 });
    const soft = prompts.make(3, { tokens: 1010, context: 'compressed', contextTokens: 10 });
    const mixed = prompts.make(3, { tokens: 1100, context: 'mixed', contextTokens: 100 });
    const textTokens = text.rag!.max_text_tokens! - 500 + 100 - 9; // nine chunks are soft tokens
    expect(mixed.rag).toMatchObject({ mode: 'mixed', top_k: 10, text_chunks: 1, max_text_tokens: textTokens });
    expect([mixed.prompt, mixed.suffix]).toEqual([soft.prompt, soft.suffix]);
    expect(text.prompt).toEqual(soft.prompt);
    expect(text.suffix).toEqual(soft.suffix);
  });

  it('prompts at different cursors begin differently', () => {
    const starts = [1, 2, 3, 4].map((index) =>
      prompts.make(index, { tokens: 2000, context: 'off', contextTokens: 0 }).prompt.slice(0, 8).toString(),
    );
    expect(new Set(starts).size).toBe(4);
  });
});
