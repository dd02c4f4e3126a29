/** An ablation trains and judges each row once, goes on row by row, and prints ours beside the paper's figures. */
import { appendFile, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { type AblationOptions, ablate } from '../../../training/ablate/ablate.ts';
import type { AblationResults } from '../../../training/ablate/results.ts';
import {
  encoderRows,
  LOSS_ROWS,
  pretrainingRows,
  type Row,
  readRows,
  type Schemes,
} from '../../../training/ablate/rows.ts';
import { tableOf } from '../../../training/ablate/table.ts';
import { lockRun } from '../../../training/run/lock.ts';
import { GOLDENS, temporaryFolder } from '../../support/models.ts';
import {
  CE_ALONE,
  never,
  silent,
  smallOptions,
  smallRow,
  stopAt,
  TRAINING_TIMEOUT_MS,
  writeRows,
} from '../../support/training.ts';

const dir = await temporaryFolder();
const TIMEOUT_MS = TRAINING_TIMEOUT_MS;
const LLM = join(GOLDENS, 'qwen2-tied');
const dataSet = (name: string, from: number, to: number) =>
  writeRows(
    join(dir, name),
    Array.from({ length: to - from }, (_, i) => smallRow(from + i)),
  );
const data = await dataSet('train.jsonl', 0, 4);
const validation = await dataSet('valid.jsonl', 10, 15);

const options = (name: string, changes: Partial<AblationOptions> = {}): AblationOptions => ({
  ...smallOptions({ data, validation, to: join(dir, name) }),
  ...changes,
});
const SCHEMES: Schemes = {
  reconstruct: { scheme: 'reconstruct', steps: 2, learningRate: 1e-2, tokens: 8 },
  memory: { scheme: 'memory', steps: 2, learningRate: 1e-2, tokens: 8, memory: { steps: 3, learningRate: 0.05 } },
};
/** What must be the same however often an ablation was stopped. */
const outcome = async (to: string, ids: readonly string[]) =>
  Promise.all(ids.map((id) => readFile(join(to, 'rows', id, 'judgements.jsonl'), 'utf8')));

describe('table 1', { timeout: TIMEOUT_MS }, () => {
  const whole = options('whole');
  const ids = LOSS_ROWS.map(({ id }) => id);
  let results: AblationResults;

  test('every row has figures with intervals, beside those of the paper', async () => {
    results = await ablate(LOSS_ROWS, whole, silent(), never);
    expect(results.rows.map(({ id }) => id)).toEqual(ids);
    const ofEncodings = new Set<number | undefined>();
    for (const { id, ce, em, es, paper, parameters, gain, ofChunks, cosine, cosineOfEmbeddings } of results.rows) {
      for (const { mean, low, high } of [ce, em, es]) {
        expect(low).toBeLessThanOrEqual(mean);
        expect(mean).toBeLessThanOrEqual(high);
      }
      expect(ce.mean).toBeGreaterThan(0);
      expect(paper.em).toBeGreaterThan(30);
      // 2 layers from 64 to 64 with a norm between them.
      expect(parameters).toBe(id === 'none' || id === 'text' ? undefined : 2 * (64 * 64 + 64) + 2 * 64);
      expect(gain === undefined).toBe(id === 'none');
      for (const figure of [ofChunks, cosine, cosineOfEmbeddings]) {
        expect(figure === undefined).toBe(id === 'none' || id === 'text');
      }
      if (cosineOfEmbeddings) ofEncodings.add(cosineOfEmbeddings.mean);
    }
    expect(ofEncodings.size).toBe(1); // all rows have the same encoder, and projectors of their own
    expect(new Set(results.rows.map(({ cosine }) => cosine?.mean)).size).toBe(ids.length - 1);
    // Each set of weights leads to another projector, which is judged otherwise.
    expect(new Set(results.rows.map(({ ce }) => ce.mean)).size).toBe(ids.length);
    expect(await readdir(join(whole.to, 'rows'))).toHaveLength(ids.length);
  });

  test('its table has a line for each row, and says what differs from the paper', () => {
    const text = tableOf(results);
    const lines = text.split('\n');
    expect(lines[0]).toMatch(
      /CE, R, A, KL.*Parameters.*CE .*paper.*CE, of its chunks.*cosine.*of encodings.*EM %.*paper.*ES %.*paper.*EM gained/,
    );
    expect(lines.filter((line) => line.startsWith('|'))).toHaveLength(ids.length + 2);
    expect(lines.find((line) => line.includes('xRAG'))).toMatch(/1, 0, 0, 2.*8,448.*0\.84.*44\.00.*65\.50/);
    expect(text).toContain('- steps of the optimiser: 3; the paper: about 6600');
    expect(text).toContain('- training samples: 4; the paper: about 150000');
    expect(new Set(lines.slice(0, ids.length + 2).map((line) => line.length)).size).toBe(1);
  });

  test('one that was stopped within the training and the judging of rows ends with the same bytes', async () => {
    const parted = options('parted');
    const stops = ['LLaVA (CE only): step 2 of 3', 'REINFORCE only: judging 1 of 5', 'xRAG (CE + KL): reading the enc'];
    for (const stop of stops) {
      const { progress, signal } = stopAt(stop);
      await expect(ablate(LOSS_ROWS, parted, progress, signal)).rejects.toThrow(`stopped at ${stop}`);
    }
    const trained: string[] = [];
    const again = await ablate(
      LOSS_ROWS,
      parted,
      silent((text) => trained.push(text)),
      never,
    );
    expect(trained.some((text) => text.includes('LLaVA'))).toBe(false); // it was done
    expect(JSON.stringify(again)).toBe(JSON.stringify(results));
    expect(await outcome(parted.to, ids)).toEqual(await outcome(whole.to, ids));
  });

  test('rows that are done are not computed again, and damage to one is named', async () => {
    const shown: string[] = [];
    expect(
      JSON.stringify(
        await ablate(
          LOSS_ROWS,
          whole,
          silent((text) => shown.push(text)),
          never,
        ),
      ),
    ).toBe(JSON.stringify(results));
    expect(shown).toEqual([]);
    const path = join(whole.to, 'rows/llava/judgements.jsonl');
    const lines = (await readFile(path, 'utf8')).split('\n');
    await writeFile(path, `${lines.slice(0, 3).join('\n')}\n`);
    const refused = { code: 'config_invalid', message: expect.stringMatching(/rows\/llava is damaged: remove it/) };
    await expect(ablate(LOSS_ROWS, whole, silent(), never)).rejects.toMatchObject(refused);
    await rm(join(whole.to, 'rows/llava'), { recursive: true });
    expect(JSON.stringify(await ablate(LOSS_ROWS, whole, silent(), never))).toBe(JSON.stringify(results));
  });

  test('a second process in one folder is refused', async () => {
    const release = await lockRun(whole.to);
    try {
      await expect(ablate(LOSS_ROWS, whole, silent(), never)).rejects.toMatchObject({ code: 'path_unusable' });
    } finally {
      await release();
    }
  });

  test('a folder of another ablation, or of other data, is refused', async () => {
    const refused = (what: string) => ({ code: 'config_invalid', message: expect.stringContaining(what) });
    await expect(ablate(LOSS_ROWS, { ...whole, steps: 4 }, silent(), never)).rejects.toMatchObject(
      refused('{"steps":4}'),
    );
    await expect(ablate(LOSS_ROWS.slice(1), whole, silent(), never)).rejects.toMatchObject(refused('"rows"'));
    await appendFile(data, `${JSON.stringify(smallRow(99))}\n`);
    await expect(ablate(LOSS_ROWS, whole, silent(), never)).rejects.toMatchObject(refused('"digests"'));
  });
});

test('a row that cannot be computed is refused before any other row is', async () => {
  const run = options('refused');
  const [none, , llava, reinforce] = LOSS_ROWS;
  const refused = async (row: Row, changes: Partial<AblationOptions>, what: RegExp) => {
    const asked = { ...run, ...changes };
    await expect(ablate([none!, row], asked, silent(), never)).rejects.toThrow(what);
    expect(await readdir(run.to)).toEqual([]);
  };
  const absent = join(dir, 'absent');
  await refused({ ...llava!, changes: { encoder: absent } }, {}, /^row llava: .*absent/);
  await refused(llava!, { memory: 1000 }, /^row llava: --memory/);
  const { max_position_embeddings: positions } = JSON.parse(await readFile(join(LLM, 'config.json'), 'utf8'));
  const promptTokens = positions - 8; // with a target there is no room for a rollout
  await refused(reinforce!, { promptTokens }, /^row reinforce: --prompt-tokens \d+: a sample may take/);
  await refused({ ...none!, id: 'text', arm: 'text' }, { promptTokens }, /^row text: --prompt-tokens/);
});

test('pretraining has the usual training with and without a stage before it, beside what the paper says', {
  timeout: TIMEOUT_MS,
}, async () => {
  const run = options('pretraining', { weights: CE_ALONE, steps: 1 });
  const results = await ablate(pretrainingRows(SCHEMES), run, silent(), never);
  expect(results.rows.map(({ id }) => id)).toEqual(['none', 'single-stage', 'reconstruct', 'memory']);
  expect(new Set(results.rows.map(({ ce }) => ce.mean)).size).toBe(4);
  expect(await readdir(join(run.to, 'rows/memory/run'))).toContain('pretrain');
  expect(await readdir(join(run.to, 'rows/single-stage/run'))).not.toContain('pretrain');
  const text = tableOf(results);
  expect(text).toMatch(/LlavaCode, one stage.*47\.66.*68\.74/);
  expect(text).toMatch(/after reconstruction of chunks.*no improvement/);
  expect(text).toMatch(/after regression on memory tokens.*fits a small subset alone/);
});

describe('the rows of an ablation', () => {
  test('table 3 has each encoder with two and three layers, beside the figures of its architecture', async () => {
    const unixcoder = join(GOLDENS, 'unixcoder');
    const rows = await encoderRows([unixcoder, join(GOLDENS, 'qwen3-embedding')], LLM, { maxTokens: 32 });
    expect(rows.map(({ title }) => title)).toEqual([
      'unixcoder, 2 layers',
      'unixcoder, 3 layers',
      'qwen3-embedding, 2 layers',
      'qwen3-embedding, 3 layers',
    ]);
    expect(rows.map(({ paper }) => paper.em)).toEqual([46.69, 46.94, 47.01, 47.66]);
    expect(rows.map(({ changes }) => changes.encoderChoices!.modality)).toEqual(['ast', 'ast', undefined, undefined]);
    expect(rows[0]!.changes).toMatchObject({ encoder: unixcoder, layers: 2, encoderChoices: { maxTokens: 32 } });
    expect((await encoderRows([], LLM, {})).map(({ paper }) => paper)).toEqual([{}, {}]);
  });

  test('table 3 trains projectors of different sizes', { timeout: TIMEOUT_MS }, async () => {
    const rows = await encoderRows([], LLM, {});
    const { rows: found } = await ablate(rows, options('encoders', { steps: 1 }), silent(), never);
    expect(found.map(({ parameters }) => parameters)).toEqual([
      2 * (64 * 64 + 64) + 2 * 64,
      64 * 128 + 128 + (128 * 128 + 128) + (128 * 64 + 64) + 4 * 128,
    ]);
    expect(found.every(({ gain }) => gain === undefined)).toBe(true);
  });

  test('rows of a file are read, and what is wrong in them is named', async () => {
    const path = join(dir, 'rows.json');
    const read = async (value: unknown) => {
      await writeFile(path, typeof value === 'string' ? value : JSON.stringify(value));
      return readRows(path, SCHEMES);
    };
    expect(
      await read([
        { id: 'none', arm: 'none' },
        { id: 'half', title: 'half', weights: { ce: 0.5 }, layers: 2 },
        { id: 'taught', weights: { distill: 1 }, pretrain: 'memory' },
      ]),
    ).toEqual([
      { id: 'none', title: 'none', arm: 'none', changes: {}, paper: {} },
      {
        id: 'half',
        title: 'half',
        arm: 'compressed',
        changes: { weights: { ce: 0.5, reinforce: 0, kl: 0, alignment: 0 }, layers: 2 },
        paper: {},
      },
      {
        id: 'taught',
        title: 'taught',
        arm: 'compressed',
        changes: { weights: { ce: 0, reinforce: 0, kl: 0, alignment: 0, distill: 1 }, pretrain: SCHEMES.memory },
        paper: {},
      },
    ]);
    const refused = (what: RegExp) => ({ code: 'config_invalid', message: expect.stringMatching(what) });
    await expect(read('table2')).rejects.toMatchObject(refused(/is not JSON: name table1, table3, pretraining/));
    await expect(read([])).rejects.toMatchObject(refused(/has no rows/));
    await expect(read([{ id: '../x' }])).rejects.toMatchObject(refused(/lower-case letters/));
    await expect(read([{ id: 'a' }, { id: 'a' }])).rejects.toMatchObject(refused(/two rows of one id/));
    await expect(read([{ id: 'a', step: 3 }])).rejects.toMatchObject(refused(/step/));
    await expect(readRows(join(dir, 'absent.json'), SCHEMES)).rejects.toMatchObject({
      code: 'path_unusable',
      message: expect.stringMatching(/absent\.json, which is not table1, table3 or pretraining: it does not exist/),
    });
  });
});
