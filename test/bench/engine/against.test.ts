/** `bench engine --against`, with this checkout as the other. Figures of a few pairs say nothing: none is asserted. */
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { measureAgainst } from '../../../bench/engine/against.ts';
import { ENGINE_COMMAND } from '../../../bench/engine/command.ts';
import { ENGINE_AGAINST } from '../../../bench/engine/report.ts';
import { defaultsOf, RUN_OPTIONS } from '../../../bench/options.ts';
import { PACKAGE_ROOT } from '../../../services/lib/process/package-root.ts';
import { GOLDENS } from '../../support/models.ts';

const LIMIT = 300_000;
let data: string;
beforeAll(async () => {
  data = await mkdtemp(join(tmpdir(), 'llavacode-against-'));
});
afterAll(() => rm(data, { recursive: true, force: true }));

const options = () => ({
  ...defaultsOf(ENGINE_COMMAND.options),
  ...defaultsOf(RUN_OPTIONS),
  command: '',
  model: join(GOLDENS, 'qwen2-tied'),
  precision: 'fp32',
  prompt: [40],
  chunk: [32],
  batch: [1, 2],
  context: [8],
  repeats: 2,
  threads: 1,
  data,
});

it('every cell gets one ratio a pair, and nothing is left behind', { timeout: LIMIT }, async () => {
  const said: string[] = [];
  const result = await measureAgainst(PACKAGE_ROOT, options(), (text) => said.push(text));
  expect(result.cells.map(({ phase, ratios }) => [phase, ratios.length])).toEqual([
    ['prefill', 2],
    ['decode', 2],
    ['decode', 2],
  ]);
  for (const { ratio, ratios, quartiles } of result.cells) {
    expect(Math.min(...ratios)).toBeGreaterThan(0);
    expect(ratio).toBeCloseTo((ratios[0]! + ratios[1]!) / 2);
    expect(quartiles.low).toBeLessThanOrEqual(quartiles.high);
  }
  expect(said).toContain('pair 2 of 2: decode of 2 at 8');
  expect(await readdir(data)).toEqual([]);
  const { markdown } = ENGINE_AGAINST.report({ result });
  expect(markdown).toContain('| prefill of 40, chunks of 32 |');
});

it('a folder that is no built checkout is refused with what to do', async () => {
  await expect(measureAgainst(data, options(), () => {})).rejects.toMatchObject({
    code: 'config_invalid',
    message: expect.stringMatching(/--against .*child\.js does not exist; .*npm run build/),
  });
});
