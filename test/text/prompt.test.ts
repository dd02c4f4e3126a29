import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { atOnce } from '../../services/lib/async/turns.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { PromptBuilder, type PromptParts, share } from '../../services/lib/text/prompt.ts';
import { choosePromptFormat } from '../../services/lib/text/prompt-format.ts';
import { loadTokenizer } from '../../services/lib/text/tokenizer.ts';

const TINY = join(PACKAGE_ROOT, 'models/tiny-coder');
const tokenizer = await loadTokenizer(TINY);
const format = choosePromptFormat(tokenizer);
const builder = new PromptBuilder(tokenizer, format);
const id = (name: string) => tokenizer.idOf(name)!;
const [PREFIX, SUFFIX, MIDDLE] = ['<|fim_prefix|>', '<|fim_suffix|>', '<|fim_middle|>'].map(id) as [
  number,
  number,
  number,
];
const room = { capacity: 4096, maxTokens: 16 };
const ids = (...parts: Parameters<PromptBuilder['build']>) => Array.from(atOnce(builder.build(...parts)).ids);

/** A tokenizer that knows only these names. */
const naming = (...names: string[]) => ({
  eosId: names.indexOf('</s>') < 0 ? undefined : names.indexOf('</s>'),
  idOf: (name: string) => (names.includes(name) ? names.indexOf(name) : undefined),
});

describe('the format', () => {
  test('the format follows from the tokens that the tokenizer has', () => {
    expect(format).toMatchObject({ name: 'qwen', frame: [PREFIX, SUFFIX, MIDDLE], placeholder: id('<|fim_pad|>') });
    const starcoder = naming('x', '<fim_prefix>', '<fim_suffix>', '<fim_middle>', '</s>');
    expect(choosePromptFormat(starcoder)).toMatchObject({ name: 'starcoder', frame: [1, 2, 3], placeholder: 4 });
    const deepseek = naming('<｜fim▁begin｜>', '<｜fim▁hole｜>', '<｜fim▁end｜>');
    expect(choosePromptFormat(deepseek)).toMatchObject({ name: 'deepseek', frame: [0, 1, 2], repository: undefined });
    const others = {
      codestral: ['[SUFFIX]', '[PREFIX]'],
      codellama: ['▁<PRE>', '▁<SUF>', '▁<MID>'],
      glm: ['<|code_prefix|>', '<|code_suffix|>', '<|code_middle|>'],
      seed: ['<[fim-suffix]>', '<[fim-prefix]>', '<[fim-middle]>'],
    };
    for (const [name, tokens] of Object.entries(others)) {
      expect(choosePromptFormat(naming(...tokens))).toMatchObject({ name, frame: tokens.map((_, i) => i) });
    }
    const granite3 = ['<fim_prefix>', '<fim_middle>', '<fim_suffix>', '<fim_pad>', '<filename>', '<reponame>'];
    expect(choosePromptFormat(naming(...granite3))).toMatchObject({ name: 'starcoder', placeholder: 3 });
    expect(choosePromptFormat(naming(...granite3)).stopIds).toEqual(expect.arrayContaining([4, 5]));
    const granite4 = ['<|fim_prefix|>', '<|fim_middle|>', '<|fim_suffix|>', '<|fim_pad|>', '<|filename|>'];
    expect(choosePromptFormat(naming(...granite4))).toMatchObject({ name: 'qwen', frame: [0, 2, 1], placeholder: 3 });
    const gemma = ['<|fim_prefix|>', '<|fim_suffix|>', '<|fim_middle|>', '<|file_separator|>'];
    expect(choosePromptFormat(naming(...gemma)).stopIds).toContain(3);
    expect(choosePromptFormat(naming('</s>'))).toMatchObject({ name: 'prefix-only', frame: undefined, stopIds: [0] });
  });

  test('a format can be chosen only if the tokenizer has the tokens that it needs', () => {
    expect(choosePromptFormat(tokenizer, 'prefix-only').frame).toBeUndefined();
    expect(() => choosePromptFormat(tokenizer, 'deepseek')).toThrow(/<｜fim▁begin｜>/);
  });

  test('answers end at the end of text and at tokens that begin another part', () => {
    const names = ['<|endoftext|>', '<|fim_prefix|>', '<|fim_pad|>', '<|file_sep|>', '<|repo_name|>'];
    expect(format.stopIds).toEqual(expect.arrayContaining(names.map(id)));
    expect(new Set(format.stopIds).size).toBe(format.stopIds.length);
  });

  test('answers also end at every id that the configuration names, as with Llama 3', () => {
    const names: Record<string, number> = { '<|end_of_text|>': 128_001, '<|eot_id|>': 128_009 };
    const llama = { eosId: 128_001, idOf: (name: string) => names[name] };
    const { stopIds } = choosePromptFormat(llama, undefined, [128_001, 128_008, 128_009]);
    expect([...stopIds].sort()).toEqual([128_001, 128_008, 128_009]);
  });
});

describe('fill-in-the-middle', () => {
  test('fill-in-the-middle gives the ids that the model was trained on', async () => {
    const expected = JSON.parse(await readFile(join(TINY, 'expected.json'), 'utf8'));
    for (const { input_ids } of [expected.fim, expected.loop] as { input_ids: number[] }[]) {
      const left = tokenizer.decode(input_ids.slice(1, input_ids.indexOf(SUFFIX)));
      const right = tokenizer.decode(input_ids.slice(input_ids.indexOf(SUFFIX) + 1, -1));
      expect(ids({ ...room, prompt: left, suffix: right })).toEqual(input_ids);
    }
  });

  test('names of special tokens in the user’s file are plain characters', () => {
    const prompt = ids({ ...room, prompt: 'a = "<|fim_middle|>"', suffix: '<|endoftext|>' });
    expect(prompt.filter((each) => each === MIDDLE)).toHaveLength(1);
    expect(prompt).not.toContain(id('<|endoftext|>'));
  });

  test('an empty suffix, and token ids before the cursor, also ask for fill-in-the-middle', () => {
    expect(ids({ ...room, prompt: [5, 6], suffix: '' })).toEqual([PREFIX, 5, 6, SUFFIX, MIDDLE]);
  });

  test('a model that cannot fill in the middle gets no text after the cursor', () => {
    const plain = new PromptBuilder(tokenizer, choosePromptFormat(tokenizer, 'prefix-only'));
    expect(Array.from(atOnce(plain.build({ ...room, prompt: [5, 6], suffix: 'later' })).ids)).toEqual([5, 6]);
  });

  test('a cut keeps what is nearest to the cursor, two parts before it for one after it', () => {
    const code = fc.string({ unit: fc.constantFrom('a', ' ', '\n', 'def ', '('), maxLength: 300 });
    fc.assert(
      fc.property(code, code, fc.integer({ min: 5, max: 400 }), (before, after, capacity) => {
        const left = tokenizer.encode(before);
        const right = tokenizer.encode(after);
        const prompt = ids({ prompt: before, suffix: after, capacity, maxTokens: 1 });
        const sides = capacity - 1 - 3;
        const [keepLeft, keepRight] = share(sides, left.length, right.length);
        expect(prompt).toEqual([
          PREFIX,
          ...left.slice(left.length - keepLeft),
          SUFFIX,
          ...right.slice(0, keepRight),
          MIDDLE,
        ]);
        expect(prompt.length).toBe(Math.min(left.length + right.length, sides) + 3);
      }),
    );
  });

  test('room is shared by need, then 2:1', () => {
    const length = fc.nat(5000);
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 5000 }), length, length, (room, left, right) => {
        const [keepLeft, keepRight] = share(room, left, right);
        expect(keepLeft + keepRight).toBe(Math.min(room, left + right));
        expect(keepLeft).toBeLessThanOrEqual(left);
        expect(keepRight).toBeLessThanOrEqual(right);
        if (keepRight < right) expect(keepRight).toBeGreaterThanOrEqual(Math.floor(room / 3));
        if (keepLeft < left) expect(keepLeft).toBeGreaterThanOrEqual(room - Math.floor(room / 3));
      }),
    );
  });
});

describe('a raw prompt', () => {
  test('a raw prompt may name tokens', () => {
    expect(ids({ ...room, prompt: '<|fim_prefix|>a<|fim_suffix|><|fim_middle|>' })).toEqual([
      PREFIX,
      ...tokenizer.encode('a'),
      SUFFIX,
      MIDDLE,
    ]);
    expect(ids({ ...room, prompt: [1, 2, 3] })).toEqual([1, 2, 3]);
  });

  test('a raw prompt that is too long is refused, unless it may be cut', () => {
    const tight = { capacity: 20, maxTokens: 16 };
    const prompt = [1, 2, 3, 4, 5];
    expect(() => ids({ ...tight, prompt })).toThrow(expect.objectContaining({ code: 'context_length_exceeded' }));
    expect(() => ids({ ...tight, prompt: 'a b c d e f' })).toThrow(expect.objectContaining({ param: 'prompt' }));
    expect(() => ids({ capacity: 16, maxTokens: 16, prompt })).toThrow(
      expect.objectContaining({ param: 'max_tokens' }),
    );
    expect(ids({ ...tight, prompt, truncateTo: -1 })).toEqual([2, 3, 4, 5]);
    expect(ids({ ...tight, prompt, truncateTo: 2 })).toEqual([4, 5]);
    expect(ids({ ...tight, prompt: 'a b c d e f', truncateTo: 2 })).toEqual(tokenizer.encode('a b c d e f').slice(-2));
  });

  test('an empty raw prompt is refused', () => {
    expect(() => ids({ ...room, prompt: '' })).toThrow(expect.objectContaining({ code: 'invalid_request' }));
  });
});

describe('soft context', () => {
  const vectors = [Float32Array.of(1, 2), Float32Array.of(3, 4), Float32Array.of(5, 6)];
  const context = { kind: 'soft', vectors } as const;

  test('soft context comes first in the prompt, the best chunk first', () => {
    const prompt = atOnce(builder.build({ ...room, prompt: [7], suffix: '', context }));
    const pad = id('<|fim_pad|>');
    expect(Array.from(prompt.ids)).toEqual([pad, pad, pad, PREFIX, 7, SUFFIX, MIDDLE]);
    expect(Array.from(prompt.soft.positions)).toEqual([0, 1, 2]);
    expect(Array.from(prompt.soft.vectors)).toEqual([1, 2, 3, 4, 5, 6]);
    expect(ids({ ...room, prompt: [7, 8], context })).toEqual([pad, pad, pad, 7, 8]);
  });

  test('soft context counts against the room', () => {
    const tight = { capacity: 9, maxTokens: 1, context };
    expect(ids({ ...tight, prompt: [5, 6, 7, 8], suffix: '' }).slice(3)).toEqual([PREFIX, 7, 8, SUFFIX, MIDDLE]);
    const pad = id('<|fim_pad|>');
    expect(ids({ ...tight, capacity: 7, prompt: [5], suffix: '' })).toEqual([pad, pad, PREFIX, 5, SUFFIX, MIDDLE]);
    expect(ids({ ...tight, prompt: [1, 2, 3, 4, 5, 6] })).toEqual([pad, pad, 1, 2, 3, 4, 5, 6]);
    expect(() => ids({ ...tight, prompt: [1, 2, 3, 4, 5, 6, 7, 8, 9] })).toThrow(/does not fit/);
  });

  test('a prompt says how much of its soft context stands in it', () => {
    const built = (capacity: number) =>
      atOnce(builder.build({ capacity, maxTokens: 1, prompt: [1, 2, 3, 4], context }));
    expect(built(99)).toMatchObject({ contextChunks: 3, contextCut: false });
    const tight = built(7);
    expect(tight).toMatchObject({ contextChunks: 2, contextCut: true });
    expect(Array.from(tight.soft.vectors)).toEqual([1, 2, 3, 4]);
    expect(built(5)).toMatchObject({ contextChunks: 0, contextCut: true, ids: Int32Array.of(1, 2, 3, 4) });
  });

  test('a chunk of several soft tokens stands in the prompt whole or not at all', () => {
    const pairs = { kind: 'soft', vectors: vectors.map((v) => Float32Array.of(...v, ...v)), perChunk: 2 } as const;
    const built = (capacity: number) =>
      atOnce(builder.build({ capacity, maxTokens: 1, prompt: [1, 2, 3, 4], context: pairs }));
    const whole = built(99);
    expect(whole).toMatchObject({ contextChunks: 3, contextCut: false });
    expect(Array.from(whole.soft.positions)).toEqual([0, 1, 2, 3, 4, 5]);
    expect(Array.from(whole.soft.vectors)).toEqual([1, 2, 1, 2, 3, 4, 3, 4, 5, 6, 5, 6]);
    // Of the 3 tokens that are left one is for nothing: half a chunk is none.
    const tight = built(4 + 3 + 1);
    expect(tight).toMatchObject({ contextChunks: 1, contextCut: true });
    expect(tight.ids).toHaveLength(2 + 4);
    expect(built(4 + 1 + 1)).toMatchObject({ contextChunks: 0, contextCut: true });
  });

  test('soft tokens of files stand before those of chunks, and give way to them', () => {
    const files = [Float32Array.of(-1, -2), Float32Array.of(-3, -4)];
    const built = (capacity: number) =>
      atOnce(builder.build({ capacity, maxTokens: 1, prompt: [1, 2, 3, 4, 5, 6], context: { ...context, files } }));
    const whole = built(99);
    expect(whole).toMatchObject({ contextChunks: 3, contextFiles: 2, contextCut: false });
    expect(Array.from(whole.soft.vectors)).toEqual([-1, -2, -3, -4, 1, 2, 3, 4, 5, 6]);
    const tight = built(6 + 4 + 1);
    expect(tight).toMatchObject({ contextChunks: 3, contextFiles: 1, contextCut: true });
    expect(Array.from(tight.soft.vectors)).toEqual([-1, -2, 1, 2, 3, 4, 5, 6]);
    expect(built(6 + 2 + 1)).toMatchObject({ contextChunks: 2, contextFiles: 0, contextCut: true });
  });
});

describe('soft tokens and text in one prompt', () => {
  const chunks = [0, 1, 2].map((i) => ({ path: `m${i}.py`, text: `alpha_${i} = beta\n`.repeat(5) }));
  const text = { kind: 'text', repo: 'shop', path: 'c.py', chunks, maxTokens: 512 } as const;
  const build = (context: PromptParts['context'], capacity = 4096) =>
    atOnce(builder.build({ capacity, maxTokens: 1, prompt: [7], suffix: '', context }));
  const vector = (i: number) => Float32Array.of(i, i + 10);

  test('text stands behind the soft tokens, as it stands without them', () => {
    const alone = build(text);
    const both = build({ kind: 'soft', vectors: [vector(8), vector(9)], text });
    expect([...both.ids].slice(2)).toEqual([...alone.ids]);
    expect([...both.soft.positions]).toEqual([0, 1]);
    expect(both).toMatchObject({ contextChunks: 5, contextTexts: 3, contextCut: false });
  });

  test('chunks that have no place as text stand as soft tokens before the others, if they have vectors', () => {
    const maxTokens = build({ ...text, chunks: chunks.slice(0, 1) }).ids.length - 10; // a part of the first chunk
    const textVectors = [vector(0), undefined, vector(2)];
    const both = build({ kind: 'soft', vectors: [vector(9)], text: { ...text, maxTokens }, textVectors });
    expect(both).toMatchObject({ contextChunks: 3, contextTexts: 1, contextCut: false });
    expect([...both.soft.vectors]).toEqual([2, 12, 9, 19]);
    const none = build({ kind: 'soft', vectors: [vector(9)], text: { ...text, maxTokens: 1 }, textVectors });
    expect([...none.soft.vectors]).toEqual([0, 10, 2, 12, 9, 19]);
    expect(none).toMatchObject({ contextChunks: 3, contextTexts: 0 });
    const pair = (i: number) => Float32Array.of(...vector(i), ...vector(i));
    const ofPairs = { perChunk: 2, files: [vector(7)], textVectors: [pair(0), undefined, pair(2)] };
    const twice = build({ kind: 'soft', vectors: [pair(9)], text: { ...text, maxTokens }, ...ofPairs });
    expect(twice).toMatchObject({ contextChunks: 3, contextTexts: 1, contextFiles: 1, contextCut: false });
    expect([...twice.soft.vectors]).toEqual([7, 17, 2, 12, 2, 12, 9, 19, 9, 19]);
    expect(twice.soft.positions).toHaveLength(5);
  });
});

describe('context gives way', () => {
  const chunks = Array.from({ length: 4 }, (_, i) => ({ path: `m${i}.py`, text: `alpha_${i} = beta\n`.repeat(5) }));
  const vectors = chunks.map(() => Float32Array.of(1, 2));
  const contexts = fc.oneof(
    fc.constant({ kind: 'soft', vectors } as const),
    fc.constantFrom(1, 20, 512).map((maxTokens) => {
      const text = { kind: 'text', repo: 'r', path: 'a.py', chunks: chunks.slice(2), maxTokens } as const;
      return { kind: 'soft', vectors: vectors.slice(2), text, textVectors: vectors.slice(2) } as const;
    }),
    fc.record({
      kind: fc.constant('soft' as const),
      vectors: fc.constant(vectors),
      perChunk: fc.constantFrom(2, 4, 8),
      files: fc.constantFrom([], vectors),
    }),
    fc.record({
      kind: fc.constant('text' as const),
      repo: fc.constantFrom('r', 'owner/'.repeat(30)),
      path: fc.constantFrom('', 'a.py', 'src/'.repeat(1000)),
      chunks: fc.constant(chunks),
      maxTokens: fc.constantFrom(1, 20, 512),
    }),
  );
  const prompts = fc.oneof(
    fc.integer({ min: 1, max: 60 }).map((count) => Array<number>(count).fill(5)),
    fc.integer({ min: 1, max: 60 }).map((count) => 'a '.repeat(count)),
  );

  test.each(['qwen', 'prefix-only'] as const)(
    'no prompt of the form %s fails with context that fits without',
    (form) => {
      const build = new PromptBuilder(tokenizer, choosePromptFormat(tokenizer, form));
      const parts = fc.record({
        prompt: prompts,
        suffix: fc.constantFrom(undefined, '', 'b b b'),
        capacity: fc.integer({ min: 2, max: 90 }),
        truncateTo: fc.constantFrom(undefined, -1, 1, 10),
      });
      fc.assert(
        fc.property(parts, contexts, ({ suffix, truncateTo, ...rest }, context) => {
          const asked = {
            ...rest,
            maxTokens: 1,
            ...(suffix !== undefined && { suffix }),
            ...(truncateTo && { truncateTo }),
          };
          try {
            atOnce(build.build(asked));
          } catch {
            return; // it does not fit anyway
          }
          const built = atOnce(build.build({ ...asked, context }));
          expect(built.ids.length).toBeLessThanOrEqual(rest.capacity - 1);
          expect(built.contextChunks).toBeLessThanOrEqual(chunks.length);
          if (built.contextChunks < chunks.length && (context.kind === 'soft' || context.maxTokens === 512)) {
            expect(built.contextCut).toBe(true);
          }
        }),
        { numRuns: 500 },
      );
    },
  );
});

describe('context as text', () => {
  const chunks = [
    { path: 'a.py', text: 'x = 1\n' },
    { path: 'b.py', text: 'y = 2' },
  ];
  const context = { kind: 'text', repo: 'shop', path: 'c.py', chunks, maxTokens: 512 } as const;
  const [REPO, FILE] = [id('<|repo_name|>'), id('<|file_sep|>')];
  const enc = (text: string) => tokenizer.encode(text);

  test('context as text is written in the repository form if the model has one', () => {
    const front = [REPO, ...enc('shop\n'), FILE, ...enc('a.py\nx = 1\n'), FILE, ...enc('b.py\ny = 2\n')];
    const end = [FILE, ...enc('c.py\n'), PREFIX, 7, SUFFIX, MIDDLE];
    expect(ids({ ...room, prompt: [7], suffix: '', context })).toEqual([...front, ...end]);
    const cut = ids({ ...room, prompt: [7], suffix: '', context: { ...context, maxTokens: 8 } });
    expect(cut).toEqual([...front.slice(0, 8), ...end]);
    const built = (maxTokens: number, capacity = 4096) =>
      atOnce(builder.build({ capacity, maxTokens: 1, prompt: [7], suffix: '', context: { ...context, maxTokens } }));
    // The context's own limit is what the client asked for; room is not.
    expect(built(8)).toMatchObject({ contextChunks: 1, contextCut: false });
    expect(built(512)).toMatchObject({ contextChunks: 2, contextCut: false });
    expect(built(512, 31)).toMatchObject({ contextChunks: 1, contextCut: true });
    expect(built(512, 11)).toMatchObject({ contextChunks: 0, contextCut: true });
  });

  test('context as text is written as comments if the model has no repository form', () => {
    const plain = new PromptBuilder(tokenizer, choosePromptFormat(tokenizer, 'prefix-only'));
    const prompt = (path: string) =>
      tokenizer.decode(atOnce(plain.build({ ...room, prompt: 'z', suffix: '', context: { ...context, path } })).ids);
    expect(prompt('c.py')).toBe(
      '# Here are some relevant code fragments from other files of the repo:\n\n' +
        '# the below code fragment can be found in:\n# a.py\n# x = 1\n\n' +
        '# the below code fragment can be found in:\n# b.py\n# y = 2\n\nz',
    );
    expect(prompt('c.ts')).toMatch(/^\/\/ Here are[\s\S]*\n\/\/ y = 2\n/);
  });

  test('context as text takes at most half of the room, and nothing without chunks', () => {
    const tight = ids({ capacity: 61, maxTokens: 1, prompt: 'a '.repeat(100), suffix: '', context });
    expect(tight.indexOf(PREFIX)).toBeLessThanOrEqual(30 + 1 + enc('c.py\n').length);
    expect(tight).toHaveLength(60);
    expect(ids({ ...room, prompt: [7], suffix: '', context: { ...context, chunks: [] } })[0]).toBe(PREFIX);
  });
});

describe('between two keystrokes', () => {
  const file = Array.from({ length: 400 }, (_, i) => `    value_${i} = compute(${i}, previous=value_${i - 1})\n`).join(
    '',
  );
  const typed = 'result = value_399 + value_398 # so\n';
  const prompts = (order: 'psm' | 'spm', capacity: number) => {
    const build = new PromptBuilder(tokenizer, format, order);
    const suffix = '\n    return result\n';
    return Array.from({ length: typed.length }, (_, i) =>
      Array.from(atOnce(build.build({ prompt: file + typed.slice(0, i), suffix, capacity, maxTokens: 16 })).ids),
    );
  };
  const shared = (a: readonly number[], b: readonly number[]) => a.findIndex((token, i) => token !== b[i]);

  test('a cut LEFT begins at the same place for 512 characters, then moves once', () => {
    const all = prompts('psm', 1024);
    let moved = 0;
    for (let i = 1; i < all.length; i++) if (shared(all[i]!, all[i - 1]!) < 100) moved++;
    expect(moved).toBeLessThanOrEqual(1);
    for (const prompt of all) {
      expect(prompt.length).toBeLessThanOrEqual(1024 - 16);
      expect(prompt.length).toBeGreaterThan(1024 - 16 - 400);
    }
  });

  test('in spm all but the last few tokens stay the same, in psm the tokens behind the cursor change', () => {
    const [spm, psm] = [prompts('spm', 4096 * 4), prompts('psm', 4096 * 4)];
    const suffixTokens = tokenizer.encode('\n    return result\n').length;
    for (let i = 1; i < typed.length; i++) {
      expect(spm[i]!.length - shared(spm[i]!, spm[i - 1]!)).toBeLessThanOrEqual(8);
      expect(psm[i]!.length - shared(psm[i]!, psm[i - 1]!)).toBeGreaterThanOrEqual(suffixTokens);
      expect([...spm[i]!].sort()).toEqual([...psm[i]!].sort());
    }
  });

  test('spm frames RIGHT first', () => {
    const built = atOnce(new PromptBuilder(tokenizer, format, 'spm').build({ prompt: 'a', suffix: 'b', ...room }));
    const [a, b] = [tokenizer.encode('a'), tokenizer.encode('b')];
    expect(Array.from(built.ids)).toEqual([SUFFIX, ...b, PREFIX, ...a, MIDDLE]);
  });

  test('a file without line breaks is cut to what fits', () => {
    const prompt = 'x = 1; '.repeat(3000);
    expect(ids({ prompt, suffix: '', capacity: 512, maxTokens: 12 }).length).toBe(500);
  });
});
