import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { atOnce } from '../../services/lib/async/turns.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { clientFrame } from '../../services/lib/text/client-frame.ts';
import { PromptBuilder, type PromptParts } from '../../services/lib/text/prompt.ts';
import { choosePromptFormat, PROMPT_ORDERS } from '../../services/lib/text/prompt-format.ts';
import { Tokenizer } from '../../services/lib/text/tokenizer.ts';
import { readTokenizerJson } from '../../services/lib/text/tokenizer-json.ts';

const TINY = join(PACKAGE_ROOT, 'models/tiny-coder/tokenizer.json');
const tiny = readTokenizerJson(await readFile(TINY, 'utf8'), TINY);

/** The shipped tokenizer with these special tokens in place of its own, besides the end of text. */
function tokenizerOf(names: readonly string[]): Tokenizer {
  const own = tiny.added_tokens.filter(({ content }) => content === '<|endoftext|>');
  const first = Math.max(...Object.values(tiny.model.vocab), ...tiny.added_tokens.map(({ id }) => id)) + 1;
  const added = names.map((content, i) => ({ id: first + i, content, special: true, normalized: false }));
  return new Tokenizer({ ...tiny, added_tokens: [...own, ...added] });
}

interface Family {
  readonly name: string;
  readonly tokens: readonly string[];
  /** The forms that clients write, as far as the family has them. */
  readonly psm?: (left: string, right: string) => string;
  readonly spm?: (left: string, right: string) => string;
}

const ordinary = (name: string, prefix: string, suffix: string, middle: string): Family => ({
  name,
  tokens: [prefix, suffix, middle],
  psm: (left, right) => `${prefix}${left}${suffix}${right}${middle}`,
  spm: (left, right) => `${suffix}${right}${prefix}${left}${middle}`,
});
const FAMILIES: Family[] = [
  ordinary('qwen', '<|fim_prefix|>', '<|fim_suffix|>', '<|fim_middle|>'),
  ordinary('starcoder', '<fim_prefix>', '<fim_suffix>', '<fim_middle>'),
  ordinary('deepseek', '<｜fim▁begin｜>', '<｜fim▁hole｜>', '<｜fim▁end｜>'),
  ordinary('glm', '<|code_prefix|>', '<|code_suffix|>', '<|code_middle|>'),
  {
    name: 'codestral',
    tokens: ['[SUFFIX]', '[PREFIX]'],
    spm: (left, right) => `[SUFFIX]${right}[PREFIX]${left}`,
  },
  {
    name: 'codellama',
    tokens: ['▁<PRE>', '▁<SUF>', '▁<MID>'],
    psm: (left, right) => `▁<PRE>${left}▁<SUF>${right}▁<MID>`,
    spm: (left, right) => `▁<PRE>▁<SUF>${right}▁<MID>${left}`,
  },
  {
    name: 'seed',
    tokens: ['<[fim-prefix]>', '<[fim-suffix]>', '<[fim-middle]>'],
    spm: (left, right) => `<[fim-suffix]>${right}<[fim-prefix]>${left}<[fim-middle]>`,
  },
];

const code = fc.string({
  unit: fc.constantFrom('a', ' ', '\n', 'def ', '(', '<', '|', '[PRE', 'é', '😀'),
  maxLength: 200,
});

describe.each(FAMILIES)('the form $name', ({ name, tokens, psm, spm }) => {
  const tokenizer = tokenizerOf(tokens);
  const format = choosePromptFormat(tokenizer);
  const apart = (prompt: string) => atOnce(clientFrame(tokenizer, format, prompt));

  test(`a client's prompt in the form ${name} has the ids of prompt and suffix sent apart, in either order`, () => {
    expect(format.name).toBe(name);
    for (const order of PROMPT_ORDERS) {
      const builder = new PromptBuilder(tokenizer, format, order);
      const ids = (parts: Pick<PromptParts, 'prompt' | 'suffix' | 'head'>, capacity: number) =>
        Array.from(atOnce(builder.build({ ...parts, capacity, maxTokens: 1 })).ids);
      fc.assert(
        fc.property(code, code, fc.integer({ min: 10, max: 600 }), (left, right, capacity) => {
          for (const form of [psm, spm]) {
            if (form === undefined) continue;
            const framed = apart(form(left, right))!;
            // Where both forms of Code Llama read alike, the first one counts.
            if (left !== '' || right !== '') expect(framed).toEqual({ head: '', left, right });
            const { head, left: prompt, right: suffix } = framed;
            expect(ids({ head, prompt, suffix }, capacity)).toEqual(ids({ prompt: left, suffix: right }, capacity));
          }
        }),
      );
      // What the model sees is what the client has written, token by token, where the order is the client's.
      const written = (order === 'psm' ? (psm ?? spm) : (spm ?? psm))!('left = 1\n', '\nright = 2');
      expect(ids({ prompt: 'left = 1\n', suffix: '\nright = 2' }, 4096)).toEqual(
        tokenizer.encode(written, 'as tokens'),
      );
    }
  });

  test(`a prompt in the form ${name} is taken as it is where a token lacks, or is one too many`, () => {
    const [whole] = [psm, spm].flatMap((form) => (form ? [form('left', 'right')] : []));
    for (const token of tokens) {
      expect(apart(whole!.replace(token, ''))).toBeUndefined();
      expect(apart(whole! + token)).toBeUndefined();
    }
    expect(apart(whole!.replace('left', 'le<|endoftext|>ft'))).toBeUndefined();
    expect(apart(whole!)).toBeDefined();
  });
});

test("Code Llama's frame is known as templates write it, without the sign that its tokens begin with", () => {
  const names = ['▁<PRE>', '▁<SUF>', '▁<MID>'];
  const apart = (prompt: string, tokens = names) => {
    const tokenizer = tokenizerOf(tokens);
    return atOnce(clientFrame(tokenizer, choosePromptFormat(tokenizer), prompt));
  };
  const tokenizer = tokenizerOf(names);
  const format = choosePromptFormat(tokenizer);
  const property = fc.property(code, code, (left, right) => {
    for (const prompt of [`<PRE> ${left} <SUF>${right} <MID>`, `<PRE> <SUF>${right} <MID> ${left}`]) {
      expect(atOnce(clientFrame(tokenizer, format, prompt))).toEqual({ head: '', left, right });
    }
  });
  fc.assert(property);
  expect(apart('# a.py\n <PRE> x <SUF>y <MID>')).toEqual({ head: '# a.py\n', left: 'x', right: 'y' });
  expect(apart('<|endoftext|> <PRE> x <SUF>y <MID>')).toMatchObject({ left: 'x', right: 'y' });
  for (const other of [
    '<PRE> x <SUF>y',
    '<PRE> x <SUF>y <MID> <PRE>',
    '<PRE> x <SUF>y▁<MID>',
    '<SUF>y <PRE> x <MID>',
  ]) {
    expect(apart(other), other).toBeUndefined();
  }
  expect(apart('<PRE> x<|endoftext|> <SUF>y <MID>')).toBeUndefined();
  expect(apart('<PRE> x <SUF>y <MID>', ['<fim_prefix>', '<fim_suffix>', '<fim_middle>'])).toBeUndefined();
});

describe('what a client has put before its frame', () => {
  const tokenizer = tokenizerOf([
    '<|fim_prefix|>',
    '<|fim_suffix|>',
    '<|fim_middle|>',
    '<|repo_name|>',
    '<|file_sep|>',
  ]);
  const format = choosePromptFormat(tokenizer);
  const builder = new PromptBuilder(tokenizer, format);
  const head = '<|repo_name|>shop\n<|file_sep|>a.py\nx = 1\n<|file_sep|>b.py\n';
  const frame = '<|fim_prefix|>y = <|fim_suffix|>\n<|fim_middle|>';
  const build = (prompt: string, capacity = 4096) => {
    const { left, right, head } = atOnce(clientFrame(tokenizer, format, prompt))!;
    return Array.from(atOnce(builder.build({ prompt: left, suffix: right, head, capacity, maxTokens: 1 })).ids);
  };

  test('files before the frame stay there, as tokens', () => {
    expect(build(head + frame)).toEqual(tokenizer.encode(head + frame, 'as tokens'));
  });

  test('files before the frame take at most half of the room, and lose their beginning first', () => {
    const headIds = tokenizer.encode(head, 'as tokens');
    const ids = build(head + frame.replace('y', 'y'.repeat(200)), 28);
    expect(ids).toHaveLength(27);
    expect(ids.slice(0, 12)).toEqual(headIds.slice(-12));
    expect(tokenizer.decode(ids.slice(12))).toMatch(/^<\|fim_prefix\|>y+ = <\|fim_suffix\|>\n<\|fim_middle\|>$/);
  });
});

test('a model that cannot fill in the middle takes nothing apart', () => {
  const tokenizer = tokenizerOf(['<|fim_prefix|>', '<|fim_suffix|>', '<|fim_middle|>']);
  const plain = choosePromptFormat(tokenizer, 'prefix-only');
  expect(atOnce(clientFrame(tokenizer, plain, '<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>'))).toBeUndefined();
});
