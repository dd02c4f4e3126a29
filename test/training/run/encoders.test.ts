/** Projectors for each kind of encoder: each is trained, and exported with no other encoder than that. */
import { cp, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { exportBundle } from '../../../services/lib/model/bundle/export-bundle.ts';
import { writeJina } from '../../support/jina.ts';
import { GOLDENS } from '../../support/models.ts';
import { smallRuns, TRAINING_TIMEOUT_MS, trained } from '../../support/training.ts';

const { dir, options } = await smallRuns(2);
const LLM = join(GOLDENS, 'qwen2-tied');

/**
 * A small encoder of 64 dimensions with a tokenizer of bytes, which has UniXcoder's marks as well: two goldens lack
 * one, and of Jina there is no golden.
 */
async function encoderFolder(name: string): Promise<string> {
  const folder = join(dir, name);
  if (name === 'jina') await writeJina(folder, { hidden: 64, vocab: 260 });
  else await cp(join(GOLDENS, name), folder, { recursive: true });
  if (name === 'bert') return folder;
  const tokenizer = JSON.parse(await readFile(join(LLM, 'tokenizer.json'), 'utf8'));
  const marks = ['<s>', '</s>', '<unk>', '<encoder-only>'];
  const bytes = Object.entries<number>(tokenizer.model.vocab).filter(([, id]) => id < 256);
  const vocab = Object.fromEntries([...bytes, ...marks.map((mark, i) => [mark, 256 + i] as const)]);
  const made = { ...tokenizer, added_tokens: [], model: { ...tokenizer.model, vocab, merges: [] } };
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(made));
  return folder;
}
const ENCODERS = ['bert', 'qwen3-embedding', 'unixcoder', 'jina'] as const;
const folders = await Promise.all(ENCODERS.map(encoderFolder));

test.each([
  ['bert', { pooling: 'mean', addSpecialTokens: true, modality: 'source' }],
  ['qwen3-embedding', { pooling: 'last', recipe: 'authors', addSpecialTokens: false }],
  ['unixcoder', { pooling: 'mean', modality: 'ast', input: 'unixcoder' }],
  ['jina', { pooling: 'mean', addSpecialTokens: true, modality: 'source', input: 'text' }],
] as const)(
  'a projector for %s is trained, and no other encoder of its width is exported with it',
  {
    timeout: TRAINING_TIMEOUT_MS,
  },
  async (name, settings) => {
    const place = ENCODERS.indexOf(name);
    const [encoder, other] = [folders[place]!, folders[(place + 1) % ENCODERS.length]!];
    const encoderChoices = { maxTokens: 24, modality: name === 'unixcoder' ? ('ast' as const) : undefined };
    const { report } = await trained(options(name, { encoder, encoderChoices, steps: 1, every: 1 }));
    const to = join(dir, `${name}-bundle`);
    const asked = { llm: LLM, projector: report.projector, to, precision: 'fp32' } as const;
    const { context } = await exportBundle({ ...asked, encoder });
    expect(context!.encoder).toMatchObject({ ...settings, maxTokens: 24, dim: 64 });
    for (const wrong of [other, undefined]) {
      await expect(exportBundle({ ...asked, encoder: wrong })).rejects.toMatchObject({
        code: 'projector_invalid',
        message: expect.stringMatching(
          /^the projector was trained with an encoder of \w+ with \d layers, and this one is/,
        ),
      });
    }
  },
);
