/**
 * Engines that record their decode steps on the software GPU: they start within a limit, and continue like those that
 * do not record. The kernels of an engine that records are others, and are compiled apart.
 */
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { type EngineConfig, type EngineWork, loadEngine, type WorkerEngine } from '../../services/lib/engine/load.ts';
import { ENGINE_SETTINGS } from '../../services/lib/engine/settings.ts';
import { FileGuard } from '../../services/lib/model/bundle/integrity.ts';
import { NO_SOFT_TOKENS } from '../../services/lib/request/token-prompt.ts';
import { loadConfig } from '../../services/settings.ts';
import { keepingLog } from '../support/keeping-log.ts';
import { smallestBundle } from '../support/smallest-bundle.ts';
import { COMPILING_MS, useVulkan } from '../support/vulkan.ts';

let dir: string;
let model: string;
vi.setConfig({ testTimeout: COMPILING_MS });

beforeAll(async () => {
  await useVulkan('right');
  dir = await mkdtemp(join(tmpdir(), 'llavacode-capture-'));
  model = await smallestBundle(dir);
});
afterAll(() => rm(dir, { recursive: true, force: true }));

/** Loads an engine for as long as it is used. @returns what it logged. */
async function withEngine(
  asked: Partial<EngineConfig>,
  work: EngineWork,
  use: (engine: WorkerEngine) => Promise<unknown>,
): Promise<Record<string, unknown>[]> {
  const lines: Record<string, unknown>[] = [];
  const log = keepingLog(lines);
  const config = loadConfig(ENGINE_SETTINGS, { model, slots: '2', capacity: '64', threads: '2', prepacked: 'off' }, {});
  const engine = await loadEngine({ ...config, ...asked }, work, log, new FileGuard(log));
  try {
    await use(engine);
  } finally {
    await engine.dispose();
  }
  return lines;
}

/** Greedy tokens of two sequences after a prompt, some with both in a step and some of the second one alone. */
async function continued({ session }: WorkerEngine): Promise<number[]> {
  const ids = Int32Array.from({ length: 40 }, (_, i) => 1 + ((i * 37) % 50));
  const tokens: number[] = [];
  for (const slot of [0, 1]) {
    await session.chunk({ slot, past: 0, ids, soft: NO_SOFT_TOKENS, logitRows: [] });
    session.pool.claim(slot, ids.length + 8);
  }
  for (let at = ids.length; at < ids.length + 8; at++) {
    const first = at % 3 === 0 ? 1 : 0;
    const n = 2 - first;
    const newest = new Int32Array(n).fill(tokens.at(-1) ?? 7);
    const picked = await session.pick(newest, new Int32Array(n).fill(at), first);
    tokens.push(picked.at(-1)!);
  }
  return tokens;
}

test('an engine that records its steps starts, and gives the tokens of one that does not', async () => {
  const prepacked = join(dir, 'kept');
  const tokens: number[][] = [];
  const lines: Record<string, unknown>[] = [];
  for (const graphCapture of [true, false]) {
    const logged = await withEngine({ provider: 'webgpu', graphCapture, prepacked }, 'both', async (engine) => {
      expect(engine.session.recordsSteps).toBe(graphCapture);
      tokens.push(await continued(engine));
    });
    lines.push(...logged);
  }
  expect(tokens[0]).toEqual(tokens[1]);
  expect(new Set(tokens[0]).size).toBeGreaterThan(1);
  // What the CPU computed in the check of the first engine is kept, and the second one found it.
  const kept = lines.filter(({ message }) => /what the CPU computes .* is kept/.test(`${message}`));
  expect(kept).toMatchObject([{ reason: 'not there yet' }]);
  expect(await readdir(prepacked)).toEqual([expect.stringMatching(/^reference-/)]);
});

test.each([
  ['auto', 'decode', ' records none'],
  ['webgpu', 'prefill', 'a prefill worker computes no decode steps'],
] as const)('a worker says at start when it records no steps: %s, %s', async (provider, work, why) => {
  let records = false;
  const lines = await withEngine({ provider, graphCapture: true }, work, async ({ session }) => {
    records = session.recordsSteps;
  });
  const warnings = lines.filter(({ level, message }) => level === 'warn' && `${message}`.includes('--graph-capture'));
  expect(work === 'prefill' && records).toBe(false);
  // Where the machine has a GPU of its own, auto may take it.
  expect(warnings).toEqual(records ? [] : [expect.objectContaining({ why: expect.stringContaining(why) })]);
});
