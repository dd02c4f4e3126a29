/** A prefill worker whose KV is on disk: the tokens are those of one that computes everything. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import type { KvDisk } from '../../services/lib/kv/disk/kv-disk.ts';
import { BLOCK_TOKENS, chainOf, PrefixCache, sharedBlocks } from '../../services/lib/kv/prefix.ts';
import { GREEDY } from '../../services/lib/request/next-token.ts';
import { NO_SOFT_TOKENS, type TokenPrompt } from '../../services/lib/request/token-prompt.ts';
import { openKvDisk } from '../../services/prefill/kv-on-disk.ts';
import { LeaseTable } from '../../services/prefill/leases.ts';
import type { PrefillJob } from '../../services/prefill/prompt-computation.ts';
import { PromptQueue } from '../../services/prefill/prompt-queue.ts';
import { PrefillWorker, type QueuedJob } from '../../services/prefill/worker.ts';
import { FakeEngine, HIDDEN, nextToken, tokensOf } from '../support/fake-engine.ts';
import { openDisk, promptOf, SILENT, SLOW_ENGINE, saveAll, withFolder } from '../support/kv-on-disk.ts';

const NEVER = new AbortController().signal;
const CAPACITY = 700;

/** A worker that has just started: nothing is in its slots. */
function startWorker(disk: KvDisk, engine: FakeEngine, rate = SLOW_ENGINE) {
  const queue = new PromptQueue<QueuedJob>(10_000, 'fifo');
  queue.measured(1000, 1000 / rate);
  const prefixes = new PrefixCache(engine.pool);
  const leases = new LeaseTable(engine.pool, prefixes, 60_000);
  const options = {
    chunkTokens: () => 64,
    onIdle: () => engine.pool.assertConserved(leases.size),
    engineContended: () => false,
    disk,
  };
  const worker = new PrefillWorker(engine, queue, leases, prefixes, options, SILENT);
  const ask = async (prompt: TokenPrompt, change: Partial<PrefillJob> = {}) => {
    const job = {
      requestId: 'r',
      prompt,
      choices: [GREEDY],
      readers: 0,
      promptLogprobs: -1,
      promptLogprobsFrom: 0,
      cacheSalt: '',
      signal: NEVER,
    };
    const { tokens, cachedTokens } = await worker.submit({ ...job, ...change }).done;
    engine.pool.assertConserved(0);
    return { token: tokens[0]!.id, cachedTokens };
  };
  return { ask, queue, prefixes };
}

const withDisk = (use: (engine: FakeEngine, disk: KvDisk) => Promise<void>) =>
  withFolder(async (dir) => {
    const engine = new FakeEngine(3, CAPACITY);
    await use(engine, await openDisk(engine, dir));
  });

test('what was read from disk gives the same token as what is computed, and is not computed', async () => {
  const text = fc
    .tuple(fc.integer({ min: 2, max: 620 }), fc.nat(60), fc.nat(28))
    .map(([begin, rest, own]) => [
      ...Array.from({ length: begin }, (_, i) => (i * 3) % 29),
      ...new Array<number>(rest).fill(own),
    ]);
  const soft = fc.constantFrom(NO_SOFT_TOKENS, {
    positions: Int32Array.of(0, 1),
    vectors: Float32Array.from({ length: 2 * HIDDEN }, (_, i) => i + 1),
  });
  await fc.assert(
    fc.asyncProperty(
      text,
      soft,
      fc.array(fc.tuple(text, soft), { minLength: 1, maxLength: 4 }),
      (ids, vectors, asked) =>
        withDisk(async (engine, disk) => {
          const onDisk = promptOf(ids, vectors);
          await saveAll(engine, disk, onDisk);
          const { ask } = startWorker(disk, engine);
          const earlier: TokenPrompt[] = [];
          for (const [askedIds, askedSoft] of asked) {
            const prompt = promptOf(askedIds, askedSoft);
            const { token, cachedTokens } = await ask(prompt);
            expect(token).toBe(nextToken(tokensOf(prompt)));
            // At least what is on disk, and at most what anybody has had.
            const chain = chainOf(prompt, '');
            const cached = (others: readonly TokenPrompt[]) => {
              const blocks = others.map((other) => sharedBlocks(chain, chainOf(other, '')));
              return Math.max(0, Math.min(Math.max(...blocks) * BLOCK_TOKENS, askedIds.length - 2));
            };
            expect(cachedTokens).toBeGreaterThanOrEqual(cached([onDisk]));
            expect(cachedTokens).toBeLessThanOrEqual(cached([onDisk, ...earlier]));
            earlier.push(prompt);
          }
        }),
    ),
    { numRuns: 30, endOnFailure: true },
  );
});

test('what takes longer to read than to compute is computed', () =>
  withDisk(async (engine, disk) => {
    const prompt = promptOf(new Array(600).fill(5));
    await saveAll(engine, disk, prompt);
    const { ask } = startWorker(disk, engine, 1e9);
    expect(await ask(prompt)).toEqual({ token: nextToken(tokensOf(prompt)), cachedTokens: 0 });
  }));

test('the queue counts what is on disk as done, and a prompt whose logprobs are wanted is computed whole', () =>
  withDisk(async (engine, disk) => {
    const prompt = promptOf(new Array(600).fill(5));
    await saveAll(engine, disk, prompt);
    const { ask, queue } = startWorker(disk, engine);
    const first = ask(promptOf([1, 2, 3]));
    const second = ask(prompt);
    expect(queue.tokens).toBe(600 - 592);
    await Promise.all([first, second]);
    expect(await ask(prompt, { promptLogprobs: 0 })).toMatchObject({ cachedTokens: 0 });
  }));

test('a caller that hangs up while its prompt is read leaves what was read to the next one', () =>
  withDisk(async (engine, disk) => {
    const prompt = promptOf(new Array(600).fill(5));
    await saveAll(engine, disk, prompt);
    const { ask, prefixes } = startWorker(disk, engine);
    const hangUp = new AbortController();
    const restore = disk.restore.bind(disk);
    disk.restore = async (...given) => {
      const blocks = await restore(...given);
      hangUp.abort(new Error('hung up'));
      return blocks;
    };
    await expect(ask(prompt, { signal: hangUp.signal })).rejects.toThrow('hung up');
    expect(prefixes.matchedTokens(chainOf(prompt, ''), 600)).toBe(592);
    engine.pool.assertConserved(0);
    expect(engine.chunks).toHaveLength(0);
  }));

test('a prompt that could be copied from a slot is read where the disk has more of it', () =>
  withDisk(async (engine, disk) => {
    const long = promptOf(new Array(600).fill(5));
    await saveAll(engine, disk, long);
    const { ask } = startWorker(disk, engine);
    // Shares two blocks with the long one, and most of what its slot holds it does not: it would be copied.
    const other = promptOf([...new Array<number>(32).fill(5), ...new Array<number>(400).fill(9)]);
    await ask(other);
    expect(await ask(long)).toEqual({ token: nextToken(tokensOf(long)), cachedTokens: 592 });
    expect(await ask(other)).toEqual({ token: nextToken(tokensOf(other)), cachedTokens: 430 });
  }));

test('KV that is kept in fewer bits is so only where the engine computes in 32', () =>
  withFolder(async (dir) => {
    const config = { kvDiskDir: dir, kvDiskBytes: 1 << 30, kvDiskPrecision: 'int8' } as const;
    const origin = { fingerprint: 'f', computedBy: 'a test' };
    expect(await openKvDisk({ ...config, kvDiskDir: '' }, origin, new FakeEngine().pool, SILENT)).toBeUndefined();
    const engine = new FakeEngine(2, CAPACITY, { layers: 2, kvHeads: 2, headDim: 4 });
    const disk = (await openKvDisk(config, origin, engine.pool, SILENT))!;
    const chain = chainOf(promptOf(new Array(64).fill(1)), '');
    engine.write(0, 0, new Array(64).fill(1));
    await disk.save({ slot: 0, chain, tenant: '' }, 0, 4, () => true);
    expect(await disk.restore(1, 0, disk.restorable(chain, 0, 4, SLOW_ENGINE)!, NEVER)).toBe(4);
    for (let row = 0; row < 8; row++) {
      const [mine, theirs] = [engine.row(0, row, 0, 64), engine.row(1, row, 0, 64)];
      for (let i = 0; i < mine.length; i++)
        expect(Math.abs(mine[i]! - theirs[i]!)).toBeLessThanOrEqual(127 / 254 + 1e-3);
    }
    expect(engine.row(1, 0, 0, 64)).not.toEqual(engine.row(0, 0, 0, 64)); // so exact is the default
  }));
