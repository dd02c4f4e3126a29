/**
 * What a model computes from KV that was on disk, beside what it computes from KV that stayed in memory: exact KV gives
 * the same logits, bit for bit; KV in 8 bits does not, which is why it is not the default.
 */

import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { sampleKvScales } from '../../services/export.ts';
import { openCpuKv } from '../../services/lib/engine/bundle-kv.ts';
import { DecoderSession } from '../../services/lib/engine/session.ts';
import { formOf } from '../../services/lib/kv/disk/extent.ts';
import { KvDisk } from '../../services/lib/kv/disk/kv-disk.ts';
import { KvFolder } from '../../services/lib/kv/disk/kv-folder.ts';
import { KvPool } from '../../services/lib/kv/pool.ts';
import { BLOCK_TOKENS, chainOf } from '../../services/lib/kv/prefix.ts';
import type { WireType } from '../../services/lib/kv/wire.ts';
import { openBundle } from '../../services/lib/model/bundle/bundle.ts';
import type { KvForm } from '../../services/lib/model/bundle/choices.ts';
import { exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { NO_SOFT_TOKENS } from '../../services/lib/request/token-prompt.ts';
import { loadTokenizer } from '../../services/lib/text/tokenizer.ts';
import { SILENT, SLOW_ENGINE, withFolder } from '../support/kv-on-disk.ts';
import { TINY_CODER, temporaryFolder } from '../support/models.ts';

const dir = await temporaryFolder();
const BEGIN = 37 * BLOCK_TOKENS;
const REST = 64;

/** Kullback-Leibler divergence of two rows of logits in nats, and whether their largest is the same. */
function compare(exact: Float32Array, other: Float32Array): { kl: number; isSame: boolean } {
  const logSum = (row: Float32Array) => {
    const most = row.reduce((a, b) => Math.max(a, b));
    return most + Math.log(row.reduce((sum, x) => sum + Math.exp(x - most), 0));
  };
  const largest = (row: Float32Array) => row.indexOf(row.reduce((a, b) => Math.max(a, b)));
  const [a, b] = [logSum(exact), logSum(other)];
  const kl = exact.reduce((sum, x, i) => sum + Math.exp(x - a) * (x - a - (other[i]! - b)), 0);
  return { kl, isSame: largest(exact) === largest(other) };
}

/** The model that ships with a prompt in slot 0, by how its KV lies. */
async function opened(kv: KvForm) {
  const to = join(dir, kv);
  await exportBundle({ llm: TINY_CODER, to, precision: 'fp32', ...(kv === 'int8' && { kvScales: sampleKvScales }) });
  const bundle = await openBundle(to);
  const { spec } = bundle.manifest.llm;
  const pool = new KvPool(await openCpuKv(bundle, 2, 1024));
  const shape = { vocabSize: spec.vocab, hiddenSize: spec.hidden };
  const session = await DecoderSession.load(bundle.llm, shape, pool, { threads: 1 });
  onTestFinished(() => session.dispose());
  const tokenizer = await loadTokenizer(bundle.tokenizerDir);
  const text = await readFile(import.meta.filename, 'utf8');
  const ids = Int32Array.from(tokenizer.encode(text)).subarray(0, BEGIN + REST);
  expect(ids).toHaveLength(BEGIN + REST);
  const logitRows = Array.from({ length: REST }, (_, i) => i);
  const rest = async (slot: number) =>
    (await session.chunk({ slot, past: BEGIN, ids: ids.subarray(BEGIN), soft: NO_SOFT_TOKENS, logitRows })).slice();
  await session.chunk({ slot: 0, past: 0, ids: ids.subarray(0, BEGIN), soft: NO_SOFT_TOKENS, logitRows: [] });
  const inMemory = await rest(0);
  const chain = chainOf({ ids: ids.subarray(0, BEGIN), soft: NO_SOFT_TOKENS }, '');
  /** The same logits from KV that was on disk. */
  const onDisk = (type: WireType) =>
    withFolder(async (folder) => {
      const form = formOf({ fingerprint: bundle.manifest.fingerprint, computedBy: 'a test' }, pool.layout, type);
      const disk = new KvDisk(pool, await KvFolder.open(folder, form, 1 << 30, SILENT), SILENT);
      for (let done = 0; done < chain.length; ) {
        const saved = await disk.save({ slot: 0, chain, tenant: '' }, done, chain.length, () => true);
        expect(saved.blocks).toBeGreaterThan(done);
        done = saved.blocks;
      }
      const found = disk.restorable(chain, 0, chain.length, SLOW_ENGINE)!;
      expect(await disk.restore(1, 0, found, new AbortController().signal)).toBe(chain.length);
      return rest(1);
    });
  return { inMemory, onDisk, vocab: spec.vocab };
}

test('KV from disk gives the logits of KV in memory: bit for bit if exact, nearly if in 8 bits', async () => {
  const { inMemory, onDisk, vocab } = await opened('floats');
  expect(await onDisk('float32')).toEqual(inMemory);
  const int8 = await onDisk('int8');
  expect(int8).not.toEqual(inMemory);
  const rows = Array.from({ length: REST }, (_, i) => i * vocab);
  const row = (logits: Float32Array, at: number) => logits.subarray(at, at + vocab);
  const compared = rows.map((at) => compare(row(inMemory, at), row(int8, at)));
  const kl = compared.reduce((sum, each) => sum + each.kl, 0) / REST;
  const same = compared.filter(({ isSame }) => isSame).length;
  console.info(
    `int8: KL ${kl.toExponential(2)} nats, worst ${Math.max(...compared.map((c) => c.kl)).toExponential(2)}, same token ${same} of ${REST}`,
  );
  expect(kl).toBeGreaterThan(0);
  expect(kl).toBeLessThan(0.01);
  expect(same).toBeGreaterThan(REST * 0.9);
});

test('int8 KV goes to disk as it is, and gives the logits of KV in memory, bit for bit', async () => {
  const { inMemory, onDisk } = await opened('int8');
  expect(await onDisk('int8-channel')).toEqual(inMemory);
});
