/** Distillation in a run: its targets are what the model writes with the chunks as text, computed once. */
import { appendFile, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { loadTokenizer } from '../../../services/lib/text/tokenizer.ts';
import { readDataSet } from '../../../training/data/rows.ts';
import { SampleMaker } from '../../../training/data/samples.ts';
import { evaluate } from '../../../training/evaluate/evaluate.ts';
import { authorsScores } from '../../../training/metrics/lines.ts';
import type { TrainOptions } from '../../../training/run/settings.ts';
import { GOLDENS } from '../../support/models.ts';
import { killed, never, resultsOf, smallRuns, TRAINING_TIMEOUT_MS, trained } from '../../support/training.ts';

const ROWS = 68; // more than a group, which is four times what completes together
const { dir, ...small } = await smallRuns(ROWS);
const WEIGHTS = { ce: 0.5, reinforce: 0, kl: 0, alignment: 0.1, distill: 1 };
const options = (name: string, changes: Partial<TrainOptions> = {}) =>
  small.options(name, { batch: 23, weights: WEIGHTS, ...changes });
interface Line {
  readonly key: string;
  readonly value: { readonly ids: number[] };
}
const completionsOf = async (folder: string): Promise<{ path: string; lines: Line[] }> => {
  const [name] = (await readdir(folder)).filter((one) => one.startsWith('completions-'));
  const path = join(folder, name!);
  const text = await readFile(path, 'utf8');
  return {
    path,
    lines: text
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Line),
  };
};

describe('distillation', { timeout: TRAINING_TIMEOUT_MS }, () => {
  test('its targets are the completions that the evaluator finds for the text arm, and its loss is logged', async () => {
    const run = options('whole');
    const { said } = await trained(run);
    const figures = (await resultsOf(run)).log.map((line) => JSON.parse(line)).filter((line) => 'loss' in line);
    for (const { loss, ce, alignment, distill } of figures) {
      expect(distill).toBeGreaterThan(0);
      expect(loss).toBeCloseTo(0.5 * ce + 0.1 * alignment + distill, 5);
    }
    expect(await readFile(join(run.to, 'report.html'), 'utf8')).toContain('what the model that reads text writes');

    const { lines } = await completionsOf(join(run.to, 'embeddings'));
    expect(lines).toHaveLength(ROWS);
    const tokenizer = await loadTokenizer(join(GOLDENS, 'qwen2-tied'));
    const { rows } = await readDataSet(run.data, 'train');
    const { judgements } = await evaluate(
      { ...run, arm: 'text', to: join(dir, 'text.jsonl'), work: join(dir, 'work') },
      () => {},
      never,
    );
    // Rows are completed in the order of the data set, since all are seen.
    const stops = new Set(new SampleMaker(tokenizer, [], run).format.stopIds);
    const texts = lines.map(({ value }) => tokenizer.decode(value.ids.filter((id) => !stops.has(id))));
    expect(texts.map((text, i) => authorsScores(text, rows[i]!.target).text)).toEqual(
      judgements.map(({ text }) => text),
    );
    expect(said).toContain(`completing with chunks as text: 64 of ${ROWS} samples`);
  });

  test('a run that was killed while it completed, and while it trained, ends with the same bits', async () => {
    const run = options('killed');
    await killed(run, 'completing with chunks as text: 64');
    await killed(run, 'step 2 of 3');
    await trained(run);
    expect(await resultsOf(run)).toEqual(await resultsOf(options('whole')));
  });

  test('completions are kept for other runs; of a group with a damaged line all are made anew', async () => {
    const shared = join(dir, 'whole/embeddings');
    const { path, lines } = await completionsOf(shared);
    const heard = async (name: string) => {
      const run = options(name, { embeddings: shared });
      const { said } = await trained(run);
      expect(await resultsOf(run)).toEqual(await resultsOf(options('whole')));
      return said.filter((text) => text.startsWith('completing'));
    };
    expect(await heard('shared')).toEqual([]);
    await writeFile(
      path,
      lines
        .slice(0, 65)
        .map((line) => `${JSON.stringify(line)}\n`)
        .join(''),
    );
    await appendFile(path, '{"key":"cut sh');
    expect(await heard('damaged')).toEqual([`completing with chunks as text: 64 of ${ROWS} samples`]);
    expect((await readFile(path, 'utf8')).split('\n')).toHaveLength(65 + 1 + 4 + 1);
  });

  test('a run that sees a part of the samples completes those alone', async () => {
    const run = options('part', { steps: 1, batch: 3, every: 1 });
    await trained(run);
    expect((await completionsOf(join(run.to, 'embeddings'))).lines).toHaveLength(3);
  });
});
