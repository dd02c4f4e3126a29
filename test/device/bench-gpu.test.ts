/**
 * `llavacode bench gpu` as an operator runs it, on the software GPU. Its figures say nothing of a card; that they are
 * there, and of this device, is what is tested. (test/bench/gpu has the other parts, on the CPU.)
 */
import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { GpuResult } from '../../bench/gpu/result.ts';
import { readArtifact } from '../../bench/report/artifact.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { COMPILING_MS, vulkanEnvironment } from '../support/vulkan.ts';

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-bench-gpu-'));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

test('bench gpu measures the software GPU: the device and hand-overs', { timeout: COMPILING_MS }, async () => {
  const env = { ...process.env, ...(await vulkanEnvironment('right')) };
  const words = ['--model', 'tiny', '--precision', 'int4-fp16', '--parts', 'device,handoff', '--minutes', '9'];
  const folders = ['--data', join(dir, 'data'), '--out', join(dir, 'out')];
  const command = [join(PACKAGE_ROOT, 'dist/services/cli.js'), 'bench', 'gpu', ...words, ...folders];
  await promisify(execFile)(process.execPath, command, { cwd: dir, env });
  const { result } = await readArtifact<GpuResult>(join(dir, 'out', 'gpu.json'));
  expect(result.provider).toBe('webgpu');
  expect(result.parts.map(({ part, status, reason }) => [part, status, reason])).toEqual([
    ['device', 'done', undefined],
    ['handoff', 'done', undefined],
  ]);
  const figures = result.parts.flatMap((part) => part.figures);
  const figureOf = (what: RegExp) => figures.find((figure) => what.test(figure.what))?.value;
  expect(figureOf(/^computed by$/)).toMatch(/^webgpu: WebGPU on llvmpipe /);
  expect(figureOf(/^KL of the self-check/)).toBeGreaterThan(0);
  expect(figureOf(/^bandwidth/)).toBeGreaterThan(0);
  expect(figures.filter(({ what }) => what === 'arithmetic')).toHaveLength(2); // in 32 and in 16 bits
  expect(figureOf(/packed as float16$/)).toBeGreaterThan(0);
  expect(figureOf(/as float16, put on the device$/)).toBeGreaterThan(0);
});
