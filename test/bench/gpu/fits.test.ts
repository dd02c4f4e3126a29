import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it, onTestFinished } from 'vitest';
import { fitOf, fitOfNetwork, fitsTable } from '../../../bench/gpu/fits.ts';
import { engineMemory } from '../../../services/lib/engine/memory.ts';
import { allFiles } from '../../../services/lib/model/bundle/bundle.ts';
import { exportBundle } from '../../../services/lib/model/bundle/export-bundle.ts';
import { publishedSpec } from '../../../services/lib/model/checkpoint/synth.ts';
import { PACKAGE_ROOT } from '../../../services/lib/process/package-root.ts';

const GIB = 2 ** 30;

it('sizes of weights are those of the bundle that is exported, up to padding and rotation tables', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-fits-'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  const llm = join(PACKAGE_ROOT, 'models', 'tiny-coder');
  const manifest = await exportBundle({ llm, to: join(dir, 'bundle'), precision: 'int4-fp16' });
  const written = allFiles(manifest)
    .filter(({ path }) => path.startsWith('llm/'))
    .reduce((sum, { bytes }) => sum + bytes, 0);
  const { weights, slot } = fitOfNetwork('tiny-coder', manifest.llm.spec, 'int4-fp16');
  expect(Math.abs(weights - written)).toBeLessThan(0.2 * written);
  expect(slot).toBe(engineMemory(manifest, 'llm', 1, 4096).kv);
});

it('slots fill nine tenths of a card together with weights, a staging slot and results, and one more does not fit', () => {
  const fit = fitOf('qwen2.5-coder-7b', 'int4-fp16');
  const slots = fit.slotsOn(24 * GIB);
  expect(fit.weights + (slots + 1) * fit.slot).toBeLessThan(0.9 * 24 * GIB);
  expect(fit.weights + (slots + 3) * fit.slot).toBeGreaterThan(0.9 * 24 * GIB);
  expect(fitOf('qwen2.5-coder-7b', 'fp16').slotsOn(8 * GIB)).toBe(0);
});

it('a device has room for the widest quantised matrix in 16 bits, or for 32,768 rows of a larger vocabulary', () => {
  const scratchOf = (shape: 'qwen2.5-coder-0.5b' | 'qwen2.5-coder-7b', precision: 'fp16' | 'int4-fp16' | 'int4') => {
    const llm = { spec: publishedSpec(shape), maxPositions: 4096, files: [] };
    return engineMemory({ precision, llm }, 'llm', 1, 4096).scratch;
  };
  const small = scratchOf('qwen2.5-coder-0.5b', 'int4-fp16') - scratchOf('qwen2.5-coder-0.5b', 'fp16');
  expect(small).toBe(32_768 * 896 * 2); // the vocabulary of 151,936 rows takes 260 MiB
  const large = scratchOf('qwen2.5-coder-7b', 'int4-fp16') - scratchOf('qwen2.5-coder-7b', 'fp16');
  expect(large).toBe(32_768 * 3584 * 2);
  expect(scratchOf('qwen2.5-coder-7b', 'int4')).toBe(2 * scratchOf('qwen2.5-coder-7b', 'fp16'));
});

it('a name that is not that of a published shape, and an unknown precision, are refused with those that there are', () => {
  expect(() => fitOf('abacus', 'fp16')).toThrow(/--fits knows no abacus: use qwen2\.5-coder-0\.5b, /);
  expect(() => fitOf('qwen2.5-coder-7b', 'fp3')).toThrow(/--fits knows no fp3: use fp32, fp16/);
});

it('deploy/GPU.md has the table as the command prints it', async () => {
  const page = await readFile(join(PACKAGE_ROOT, 'deploy', 'GPU.md'), 'utf8');
  const models = ['1.5b', '7b', '14b', '32b'].map((size) => `qwen2.5-coder-${size}`);
  expect(page).toContain(fitsTable(models, ['fp16', 'int8-fp16', 'int4-fp16']));
});
