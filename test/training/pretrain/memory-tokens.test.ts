/** Memory tokens: fitted until the frozen model recovers a text from one vector, and kept by content. */
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { fitMemoryToken, MemoryTokens } from '../../../training/pretrain/memory-tokens.ts';
import { ModelPass, type PassResult } from '../../../training/step/pass.ts';
import type { Sample } from '../../../training/step/rows.ts';
import { temporaryFolder } from '../../support/models.ts';
import { CE_ALONE } from '../../support/training.ts';
import { openTrainingGoldens } from '../../support/training-goldens.ts';

const folder = await temporaryFolder();
const goldens = await openTrainingGoldens();
afterAll(() => goldens.close());
const { spec, weights } = goldens;
const { hidden } = spec;
const place = { folder, threads: 1, spec, weights, layers: 'fp32', maxPositions: 64 } as const;
const model = await ModelPass.load(place, CE_ALONE);
afterAll(() => model.dispose());
const sample = (i: number): Sample => ({
  name: `chunk ${i}`,
  promptIds: [0, 5, 6],
  softPositions: [0],
  targetIds: [10 + i, 20 + i, 30 + i, 40],
});
const settings = { steps: 40, learningRate: 0.05 };
const BEGINNING = { seed: 3, scale: 0.02 };

describe('a fit', () => {
  test('the model recovers the text from the vector, and the same fit gives the same bits', async () => {
    const fitted = (steps: number) => fitMemoryToken(sample(1), model, hidden, { ...settings, steps }, BEGINNING);
    const [before, after] = [await fitted(0), await fitted(settings.steps)];
    expect(before.steps).toBe(0);
    expect(after.ce).toBeLessThan(0.5 * before.ce);
    // What it says of the vector is what the model says of it.
    expect((await model.run(sample(1), after.vector, 1, {})).ce).toBe(after.ce);
    expect(await fitted(settings.steps)).toEqual(after);
  });

  test('the vectors of several soft tokens of one chunk are fitted together', async () => {
    const several = { ...sample(1), promptIds: [0, 0, 5, 6], softPositions: [0, 1] };
    const fitted = (steps: number) => fitMemoryToken(several, model, hidden, { ...settings, steps }, BEGINNING);
    const [before, after] = [await fitted(0), await fitted(settings.steps)];
    expect(after.vector).toHaveLength(2 * hidden);
    expect(after.ce).toBeLessThan(0.5 * before.ce);
    expect((await model.run(several, after.vector, 1, {})).ce).toBe(after.ce);
    for (const at of [0, hidden])
      expect(after.vector.slice(at, at + hidden)).not.toEqual(before.vector.slice(at, at + hidden));
  });

  test('it ends when the text is recovered, and returns the best vector that it saw', async () => {
    const fake = (ces: number[]) => ({
      run: async (): Promise<PassResult> => ({
        ce: ces.shift()!,
        rolloutLogp: 0,
        kl: 0,
        distill: 0,
        gradient: new Float32Array(2).fill(1),
      }),
    });
    const ended = await fitMemoryToken(sample(1), fake([3, 0.04, 9]), 2, settings, BEGINNING);
    expect(ended).toMatchObject({ ce: 0.04, steps: 1 });
    const worse = await fitMemoryToken(sample(1), fake([3, 1, 2, 4]), 2, { steps: 3, learningRate: 0.5 }, BEGINNING);
    expect(worse).toMatchObject({ ce: 1, steps: 3 });
    // AdamW's first step with a gradient of 1 takes the whole learning rate off each value.
    const [start] = [await fitMemoryToken(sample(1), fake([3]), 2, { steps: 0, learningRate: 0.5 }, BEGINNING)];
    expect([...worse.vector]).toEqual([...start.vector].map((value) => expect.closeTo(value - 0.5, 5)));
  });
});

describe('memory tokens', () => {
  const few = { ...settings, steps: 3 };
  const open = (dir: string, changes = {}) => MemoryTokens.open(dir, model, hidden, { ...few, ...changes }, BEGINNING);
  const linesOf = async (dir: string) => {
    const [name] = await readdir(dir);
    const path = join(dir, name!);
    return { path, lines: (await readFile(path, 'utf8')).trim().split('\n') };
  };

  test('each text is fitted once, also for later processes, and by settings apart', async () => {
    const dir = join(folder, 'kept');
    const found = await (await open(dir)).of(sample(1));
    const later = await open(dir);
    expect(await later.of({ ...sample(1), name: 'the same text elsewhere' })).toEqual(found);
    expect((await later.of(sample(2))).vector).not.toEqual(found.vector);
    expect((await linesOf(dir)).lines).toHaveLength(2);
    await (await open(dir, { learningRate: 0.1 })).of(sample(1));
    expect(await readdir(dir)).toHaveLength(2);
  });

  test('a line that was cut short, or holds a vector that cannot be, is fitted again', async () => {
    const dir = join(folder, 'damaged');
    const found = await (await open(dir)).of(sample(1));
    const { path, lines } = await linesOf(dir);
    const line = JSON.parse(lines[0]!);
    const short = { ...line, value: { ...line.value, vector: 'AAAA' } };
    const infinite = Buffer.from(new Float32Array(hidden).fill(Number.POSITIVE_INFINITY).buffer).toString('base64');
    for (const text of [lines[0]!.slice(0, 40), JSON.stringify(short), '{}', infiniteLine(line, infinite)]) {
      await writeFile(path, text);
      expect(await (await open(dir)).of(sample(1)), text.slice(0, 20)).toEqual(found);
      expect(await (await open(dir)).of(sample(1))).toEqual(found);
    }
  });
});

const infiniteLine = (line: { readonly value: object }, vector: string) =>
  JSON.stringify({ ...line, value: { ...line.value, vector } });
