/**
 * The real indexer service on a real port, over LMDB in a folder of its own, with an encoder that records its calls.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';
import { createIndexerService, type IndexerOptions } from '../../services/indexer/service.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { createLogger } from '../../services/lib/process/log.ts';
import type { ContextEncoder, EncodedChunk } from '../../services/lib/rag/encode/encode.ts';
import type { EncoderInput } from '../../services/lib/rag/encode/encoder-input.ts';
import { openStore } from '../../services/lib/rag/store/open-store.ts';
import type { Store } from '../../services/lib/rag/store/store.ts';
import { connectIndexer, type IndexerClient } from '../../services/lib/rpc/contract.ts';
import { serveRpc } from '../../services/lib/rpc/server.ts';

export const LIMITS = {
  chunkLines: 10,
  chunkStride: 5,
  maxFileBytes: 100_000,
  maxUploadBytes: 10_000_000,
  maxRepoBytes: 50_000_000,
  maxRepoFiles: 1_000,
  retriever: 'jaccard',
  reembedShare: 100,
} as const;

export class RememberingEncoder implements ContextEncoder {
  readonly fingerprint: string;
  readonly hidden = 2;
  readonly softPerChunk = 1;
  readonly texts: string[] = [];
  /** Runs before every batch. */
  before: (signal?: AbortSignal) => Promise<void> = async () => {};

  constructor(fingerprint = 'context') {
    this.fingerprint = fingerprint;
  }

  async encode(chunks: readonly EncoderInput[], signal?: AbortSignal): Promise<EncodedChunk[]> {
    await this.before(signal);
    this.texts.push(...chunks.map(({ text }) => text));
    return chunks.map(({ text }) => {
      return { vector: Float32Array.of(text.length, 1), encoding: Float32Array.of(text.length, 2), fellBack: false };
    });
  }

  async project(encodings: readonly Float32Array[]): Promise<Float32Array[]> {
    return encodings.map((encoding) => encoding.slice());
  }
}

export interface FakeIndexer {
  readonly store: Store;
  readonly encoder: RememberingEncoder;
  readonly client: IndexerClient;
  /** Drains as a process does, and gives up its port. Runs in progress are cut when `deadline` aborts. */
  stop(deadline?: AbortSignal): Promise<void>;
  /** Starts another one at the same port. */
  restart(): Promise<void>;
}

/** @param url of another store than the LMDB. */
export async function fakeIndexer(change: Partial<IndexerOptions> = {}, url?: string): Promise<FakeIndexer> {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-indexer-'));
  const store = await openStore(url ?? `lmdb:${dir}`, 'indexing');
  const encoder = new RememberingEncoder();
  const open = async (port: number) => {
    const draining = new AbortController();
    const options = { ...LIMITS, draining: draining.signal, ...change };
    const { mounts } = createIndexerService(store, encoder, options, createLogger('test', 'silent'));
    return { draining, server: await serveRpc('127.0.0.1', port, mounts) };
  };
  let { server, draining } = await open(0);
  const port = Number(server.address.split(':').at(-1));
  const stop = (deadline = AbortSignal.timeout(60_000)) => {
    draining.abort(new ServingError('draining', 'shutting down'));
    return server.close(deadline);
  };
  const restart = async () => {
    ({ server, draining } = await open(port));
  };
  const client = connectIndexer(server.address);
  onTestFinished(async () => {
    client.close();
    await stop();
    await store.close();
    await rm(dir, { recursive: true, force: true });
  });
  return { store, encoder, client, stop, restart };
}

export const python = (name: string, lines: number) =>
  Array.from({ length: lines }, (_, i) => `${name}_${i} = compute_${name}(${i})`).join('\n');
