/** Real workers are killed and started again: what they had computed is read from disk, and no token changes. */
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { type CompletionBody, streamCompletion } from '../../services/client.ts';
import { positionBytes } from '../../services/lib/kv/layout.ts';
import { BLOCK_TOKENS } from '../../services/lib/kv/prefix.ts';
import type { ServingError } from '../../services/lib/process/errors.ts';
import { startTestSystem, type TestSystem, TINY_CODER } from '../support/system.ts';

const LENGTH = 600;
/** Long enough for a worker that starts on a machine with other work. */
const WAIT = { timeout: 120_000 };
const LIMIT_MS = 300_000;
const body = (seed: number): CompletionBody => ({
  prompt: Array.from({ length: LENGTH }, (_, i) => ((i + 1) * 7919 * seed) % 500),
  max_tokens: 8,
  temperature: 0,
  ignore_eos: true,
  return_token_ids: true,
  session: `session ${seed}`,
});

describe.each(['disaggregated', 'colocated'] as const)('a worker that keeps KV on disk, %s', (mode) => {
  let system: TestSystem;
  let dir: string;
  let seed = 0;
  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), 'llavacode-kv-'));
    const workers = { slots: 4, capacity: 1024, drainTimeoutMs: 20_000, kvDiskDir: join(dir, 'kv') };
    system = await startTestSystem(TINY_CODER, workers, { mode });
  });
  afterAll(async () => {
    await system?.close();
    await rm(dir, { recursive: true, force: true });
  });

  const worker = () => system.processes.find(({ name }) => /^(prefill|colocated)/.test(name))!;

  /** A figure of the worker; NaN while it is away. */
  async function figure(name: string): Promise<number> {
    const answer = await fetch(`http://${worker().metricsAddress}/metrics`).catch(() => undefined);
    const line = new RegExp(`^${name}(?:{[^}]*})? (\\S+)`, 'm').exec((await answer?.text()) ?? '');
    return line ? Number(line[1]) : NaN;
  }

  /** Asks until the gateway has found the worker again: it waits for 2 s before it refuses. */
  const complete = async (asked: CompletionBody) => {
    const ask = () => streamCompletion(system.url, asked, AbortSignal.timeout(WAIT.timeout));
    const answer = await vi.waitUntil(
      () =>
        ask().catch((error: ServingError) => {
          if (error.code === 'no_worker') return undefined;
          throw error;
        }),
      WAIT,
    );
    const { tokenIds, usage } = answer!;
    return { tokenIds, cached: usage.prompt_tokens_details?.cached_tokens ?? 0 };
  };

  /** Kills the worker, does something while it is away, and waits until it serves again. */
  async function killed(meanwhile: () => Promise<void> = async () => {}): Promise<void> {
    const { pid } = worker();
    process.kill(pid!, 'SIGKILL');
    await meanwhile();
    await expect.poll(() => worker().pid !== pid && figure('llavacode:kv_disk_bytes'), WAIT).toBeGreaterThan(0);
  }

  /** Asks for a new prompt, and waits until all its whole blocks are on disk. */
  async function saved() {
    const asked = body(++seed);
    const { layers, kvHeads, headDim } = system.bundle.manifest.llm.spec;
    const blocks = Math.floor(LENGTH / BLOCK_TOKENS) * BLOCK_TOKENS * positionBytes({ layers, kvHeads, headDim });
    const before = await figure('llavacode:kv_disk_bytes');
    const answer = await complete(asked);
    await expect.poll(() => figure('llavacode:kv_disk_bytes'), WAIT).toBeGreaterThanOrEqual(before + blocks);
    return { asked, answer };
  }

  test(
    'after kill and restart it reads the prompt instead of computing it, and goes on with the same tokens',
    async () => {
      // Reading has to be quicker than computing, which on a machine with other work it is not each time.
      await expect
        .poll(async () => {
          const { asked, answer } = await saved();
          await killed();
          const again = await complete(asked);
          expect(again.tokenIds).toEqual(answer.tokenIds);
          const restored = await figure('llavacode:kv_disk_restored_tokens_total');
          // The gateway's own trial may have been read too.
          expect(restored).toBeGreaterThanOrEqual(again.cached);
          return again.cached;
        }, WAIT)
        .toBe(Math.floor(LENGTH / BLOCK_TOKENS) * BLOCK_TOKENS);
    },
    LIMIT_MS,
  );

  test(
    'what it has computed last is on disk when it has drained',
    async () => {
      const asked = body(++seed);
      const before = await figure('llavacode:kv_disk_bytes');
      const answer = await complete(asked);
      await worker().restart();
      expect(await figure('llavacode:kv_disk_bytes')).toBeGreaterThan(before);
      expect((await complete(asked)).tokenIds).toEqual(answer.tokenIds);
    },
    LIMIT_MS,
  );

  test(
    'damaged files are deleted, and their prompts computed',
    async () => {
      const { asked, answer } = await saved();
      const folder = join(dir, 'kv');
      await killed(async () => {
        for (const name of await readdir(folder)) {
          if (!name.endsWith('.kv')) continue;
          const content = await readFile(join(folder, name));
          content[content.length - 1]! ^= 1;
          await writeFile(join(folder, name), content);
        }
      });
      expect(await complete(asked)).toEqual({ ...answer, cached: 0 });
    },
    LIMIT_MS,
  );
});
