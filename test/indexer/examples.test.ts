/** The sample repository is large enough to search, and its files explain each other. */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { createRetrieval } from '../../services/lib/rag/search/retrieval.ts';
import { openStore } from '../../services/lib/rag/store/open-store.ts';
import { indexTree } from '../support/index-tree.ts';

const SHOP = join(PACKAGE_ROOT, 'examples', 'shop');

test('the chunks around a cursor in examples/shop define what is used there', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-examples-'));
  const store = await openStore(`lmdb:${dir}`);
  const encoder = {
    fingerprint: 'f',
    hidden: 1,
    softPerChunk: 1 as const,
    project: async () => [],
    encode: async (chunks: readonly unknown[]) => chunks.map(() => ({ vector: Float32Array.of(0), fellBack: false })),
  };
  const options = { chunkLines: 10, chunkStride: 5, maxFileBytes: 524_288 };
  const report = await indexTree({ repo: 'shop', dir: SHOP, store, encoder, options });
  expect(report.chunks).toBeGreaterThan(100);

  const path = 'shop/reports.py';
  const text = await readFile(join(SHOP, path), 'utf8');
  const before = text.slice(
    0,
    text.indexOf('discounts=Money.sum(order.quote.') + 'discounts=Money.sum(order.quote.'.length,
  );
  const after = text.slice(text.indexOf('\n', before.length));
  const retrieval = createRetrieval(store, { queryLines: 10 });
  const { chunks } = await retrieval.retrieve(
    { repo: 'shop', path, before, after, topK: 10 },
    new AbortController().signal,
  );
  expect(chunks).toHaveLength(10);
  expect(chunks.map((chunk) => chunk.path)).not.toContain(path);
  expect(chunks.some((chunk) => chunk.text.includes('def discount_total(self) -> Money'))).toBe(true);
  await store.close();
  await rm(dir, { recursive: true, force: true });
});
