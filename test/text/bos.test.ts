/** The beginning-of-text id of some tokenizers, and the prompts that get it. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { echoSteps } from '../../services/gateway/completion/choice.ts';
import { completionBody } from '../../services/gateway/http/completion-body.ts';
import { atOnce } from '../../services/lib/async/turns.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { NO_SOFT_TOKENS } from '../../services/lib/request/token-prompt.ts';
import { PromptBuilder } from '../../services/lib/text/prompt.ts';
import { choosePromptFormat } from '../../services/lib/text/prompt-format.ts';
import { Tokenizer } from '../../services/lib/text/tokenizer.ts';

const json = JSON.parse(await readFile(join(PACKAGE_ROOT, 'models/tiny-coder/tokenizer.json'), 'utf8'));
const BOS = 4094;
const name = '<|repo_name|>';
json.post_processor = {
  type: 'TemplateProcessing',
  single: [{ SpecialToken: { id: name, type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
  pair: [],
  special_tokens: { [name]: { id: name, ids: [BOS], tokens: [name] } },
};
const tokenizer = new Tokenizer(json);
const room = { capacity: 64, maxTokens: 8 };
const build = (parts: Partial<Parameters<PromptBuilder['build']>[0]>, format?: 'prefix-only') => {
  const builder = new PromptBuilder(tokenizer, choosePromptFormat(tokenizer, format));
  return Array.from(atOnce(builder.build({ ...room, prompt: '', ...parts })).ids);
};

describe('the beginning of text', () => {
  test('the beginning of text comes before a text, unless the client refuses it', () => {
    const text = tokenizer.encode('def pop');
    expect(build({ prompt: 'def pop' })).toEqual([BOS, ...text]);
    expect(build({ prompt: 'def pop', addSpecialTokens: false })).toEqual(text);
    expect(build({ prompt: 'a', suffix: 'b' })[0]).toBe(BOS);
    expect(build({ prompt: 'a', suffix: 'b', addSpecialTokens: false })).not.toContain(BOS);
  });

  test('the beginning of text does not come before ids, which are taken as they are', () => {
    expect(build({ prompt: [BOS, 7, 8] })).toEqual([BOS, 7, 8]);
    expect(build({ prompt: [7, 8] })).toEqual([7, 8]);
    expect(build({ prompt: [7, 8], suffix: 'b' }, 'prefix-only')).toEqual([7, 8]);
  });

  test('the beginning of text comes before a frame into which ids are put', () => {
    expect(build({ prompt: [7, 8], suffix: '' })[0]).toBe(BOS);
    expect(build({ prompt: [7, 8], suffix: '' })).toHaveLength(1 + 3 + 2);
  });

  test('the beginning of text moves the places of soft tokens only if it is there', () => {
    const context = { kind: 'soft', vectors: [Float32Array.of(1, 2)] } as const;
    const builder = new PromptBuilder(tokenizer, choosePromptFormat(tokenizer));
    const positions = (prompt: string | number[]) => [
      ...atOnce(builder.build({ ...room, prompt, context })).soft.positions,
    ];
    expect([positions('a'), positions([7])]).toEqual([[1], [0]]);
  });

  test('the echo leaves out the beginning of text and nothing else', () => {
    const echoed = (body: object) => {
      const request = completionBody.parse({ echo: true, max_tokens: 1, truncate_prompt_tokens: -1, ...body });
      const prompt = request.prompts[0]!;
      const ids = Int32Array.from(build({ prompt, addSpecialTokens: request.addSpecialTokens }));
      const echo = atOnce(echoSteps(request, 0, { ids, soft: NO_SOFT_TOKENS }, [], tokenizer));
      return echo.tokens.map(({ id }) => id);
    };
    const text = tokenizer.encode('def pop');
    expect(echoed({ prompt: 'def pop' })).toEqual(text);
    expect(echoed({ prompt: 'def pop', add_special_tokens: false })).toEqual(text);
    expect(echoed({ prompt: [BOS, 7, 8] })).toEqual([BOS, 7, 8]);
  });
});
