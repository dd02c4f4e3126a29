/** One evaluator for all arms: scores of greedy completions and cross-entropy, kept as they are made. */
import { appendFile, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import { loadTokenizer } from '../../../services/lib/text/tokenizer.ts';
import { ARMS, type Arm } from '../../../training/choices.ts';
import { readDataSet } from '../../../training/data/rows.ts';
import { SampleMaker } from '../../../training/data/samples.ts';
import { type EvaluationOptions, evaluate } from '../../../training/evaluate/evaluate.ts';
import { QUESTIONS } from '../../../training/evaluate/judge.ts';
import { authorsScores, paperScores } from '../../../training/metrics/lines.ts';
import { GOLDENS, TINY_CODER, temporaryFolder } from '../../support/models.ts';
import { never, row, writeRows } from '../../support/training.ts';

const dir = await temporaryFolder();
const data = join(dir, 'valid.jsonl');
const ROWS = QUESTIONS + 2; // more than are judged before they are kept
await writeRows(
  data,
  Array.from({ length: ROWS }, (_, i) => row(i)),
);

const options = (arm: Arm, to: string): EvaluationOptions => ({
  llm: TINY_CODER,
  data,
  arm,
  to: join(dir, to),
  work: join(dir, 'work'),
  chunks: 2,
  promptTokens: 64,
  targetTokens: 24,
  textTokens: 48,
  rolloutTokens: 8,
  frozen: 'fp32',
  threads: 1,
  ...(arm === 'compressed' && {
    compressor: {
      projector: join(TINY_CODER, 'projector'),
      encoder: undefined,
      encoderChoices: { pooling: 'mean', maxTokens: 48 },
      embeddings: join(dir, 'embeddings'),
    },
  }),
});

describe('an evaluation', { timeout: 120_000 }, () => {
  test('every sample has a cross-entropy, a completion and the scores of it, which differ between arms', async () => {
    const ces = new Set<number>();
    for (const arm of ARMS) {
      const { judgements, inputs } = await evaluate(options(arm, `${arm}.jsonl`), () => {}, never);
      expect(judgements).toHaveLength(ROWS);
      expect(inputs).toMatchObject({ arm, settings: { chunks: 2 } });
      expect(inputs.projector === undefined).toBe(arm !== 'compressed');
      for (const [i, { ce, text, exactMatch, editSimilarity, authorsEditSimilarity }] of judgements.entries()) {
        const target = row(i).groundtruth;
        expect(ce).toBeGreaterThan(0);
        expect({ exactMatch, editSimilarity }).toMatchObject({
          exactMatch: paperScores(text, target).exactMatch,
          editSimilarity: paperScores(text, target).editSimilarity,
        });
        expect(authorsEditSimilarity).toBe(authorsScores(text, target).editSimilarity);
      }
      expect(judgements.some(({ editSimilarity }) => editSimilarity > 0.1)).toBe(true);
      ces.add(judgements[0]!.ce);
      // Soft tokens of other chunks give another cross-entropy.
      const controls = judgements.filter(({ ce, controlCe }) => controlCe !== undefined && controlCe !== ce);
      expect(controls).toHaveLength(arm === 'compressed' ? ROWS : 0);
    }
    expect(ces.size).toBe(ARMS.length);
  });

  test('one that was stopped, with a line cut short, goes on to the same file', async () => {
    const stopped = options('none', 'stopped.jsonl');
    const controller = new AbortController();
    const stop = (text: string) => {
      if (text.startsWith(`judging ${QUESTIONS + 1}`)) controller.abort(new Error('stopped by the test'));
    };
    await expect(evaluate(stopped, stop, controller.signal)).rejects.toThrow('stopped by the test');
    await appendFile(stopped.to, '{"ce":1.25,"te');
    const judged: string[] = [];
    await evaluate(stopped, (text) => judged.push(text), never);
    expect(judged.filter((text) => text.startsWith('judging'))).toEqual([`judging ${QUESTIONS + 1} of ${ROWS}`]);
    expect(await readFile(stopped.to, 'utf8')).toBe(await readFile(join(dir, 'none.jsonl'), 'utf8'));
  });

  test('judgements of other settings are made anew', async () => {
    const first = options('none', 'again.jsonl');
    await evaluate(first, () => {}, never);
    const judged: string[] = [];
    await evaluate({ ...first, rolloutTokens: 4 }, (text) => judged.push(text), never);
    expect(judged).toContain(`judging 1 of ${ROWS}`);
  });

  test('soft tokens need a projector, and one that fits', async () => {
    const { compressor, ...without } = options('compressed', 'refused.jsonl');
    await expect(evaluate(without, () => {}, never)).rejects.toMatchObject({ code: 'config_invalid' });
    const long = { ...options('text', 'long.jsonl'), textTokens: 100_000 };
    const message = expect.stringMatching(/a sample may take 100088 positions .* shorten .*--text-tokens as well$/);
    await expect(evaluate(long, () => {}, never)).rejects.toMatchObject({ code: 'config_invalid', message });
    const other = { ...compressor!, projector: join(GOLDENS, 'projector-mlp2') };
    await expect(evaluate({ ...without, compressor: other }, () => {}, never)).rejects.toMatchObject({
      code: 'projector_invalid',
    });
  });
});

test('the same code stands in the prompts of all arms, however long the text is', async () => {
  const tokenizer = await loadTokenizer(TINY_CODER);
  const long = { ...row(1), prompt: `${'x = compute(1)\n'.repeat(200)}y = `, right_context: '\nz = 2'.repeat(200) };
  const path = join(dir, 'long.jsonl');
  const texts = [
    ['# a.py\na = 1'],
    [`# a.py\n${'a = 1\n'.repeat(100)}`],
    Array.from({ length: 9 }, () => '# b.py\nb = 2'),
  ];
  await writeRows(
    path,
    texts.map((chunks) => ({ ...long, crossfile_array: chunks })),
  );
  const { rows } = await readDataSet(path, 'valid');
  const settings = { chunks: 10, promptTokens: 128, targetTokens: 24, textTokens: 512 };
  const samples = new SampleMaker(tokenizer, [], settings);
  const start = tokenizer.idOf('<|fim_prefix|>')!;
  for (const row of rows) {
    const code = (ids: readonly number[]) => ids.slice(ids.indexOf(start));
    const plain = samples.without(row).promptIds;
    const text = samples.withText(row).promptIds;
    expect(code(text)).toEqual(code(plain));
    expect(code(plain).length).toBeLessThanOrEqual(128 - row.chunks.length);
    expect(code(plain).length).toBeGreaterThan(100 - row.chunks.length);
    expect(text.length).toBeGreaterThan(plain.length);
  }
  const whole = new SampleMaker(tokenizer, [], { ...settings, promptTokens: 1024 });
  expect(whole.withText(rows[1]!).promptIds.length - whole.without(rows[1]!).promptIds.length).toBeLessThanOrEqual(512);
});

test('a model that cannot fill in the middle reads the same code in all arms too', async () => {
  const tokenizer = await loadTokenizer(TINY_CODER);
  vi.spyOn(tokenizer, 'idOf').mockReturnValue(undefined);
  const path = join(dir, 'left.jsonl');
  await writeRows(path, [{ ...row(1), prompt: 'x = compute(1)\n'.repeat(200) }]);
  const { rows } = await readDataSet(path, 'valid');
  const samples = new SampleMaker(tokenizer, [], { chunks: 2, promptTokens: 66, targetTokens: 24, textTokens: 48 });
  const [plain, text] = [samples.without(rows[0]!).promptIds, samples.withText(rows[0]!).promptIds];
  expect(tokenizer.decode(plain).endsWith('compute(1)\n')).toBe(true);
  expect(plain.length).toBeGreaterThan(50);
  expect(text.length).toBeGreaterThan(plain.length + 30);
  expect(text.length).toBeLessThanOrEqual(plain.length + 48);
  expect(text.slice(-plain.length)).toEqual(plain);
  // It goes on with what stands after the gap, where one that fills in the middle ends its answer.
  const target = tokenizer.encode(rows[0]!.target);
  expect(samples.without(rows[0]!).targetIds).toEqual(target);
  vi.restoreAllMocks();
  const middle = new SampleMaker(tokenizer, [], { chunks: 2, promptTokens: 66, targetTokens: 24, textTokens: 48 });
  expect(middle.without(rows[0]!).targetIds).toEqual([...target, tokenizer.eosId]);
});
