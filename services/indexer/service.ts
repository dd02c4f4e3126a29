/**
 * The indexer as a gRPC service: it takes uploads and answers with progress and reports. All runs share one encoder.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { Paced } from '../lib/async/paced.ts';
import { ServingError } from '../lib/process/errors.ts';
import type { Logger } from '../lib/process/log.ts';
import type { TraceHeaders } from '../lib/process/span.ts';
import { beginTrace, tracedStream } from '../lib/process/tracing.ts';
import type { ContextEncoder } from '../lib/rag/encode/encode.ts';
import { mainKey, repoKey } from '../lib/rag/store/repo-key.ts';
import type { Store } from '../lib/rag/store/store.ts';
import type { DeleteRequest__Output } from '../lib/rpc/gen/llavacode/v1/DeleteRequest.ts';
import type { IndexEvent } from '../lib/rpc/gen/llavacode/v1/IndexEvent.ts';
import type { IndexerDescription } from '../lib/rpc/gen/llavacode/v1/IndexerDescription.ts';
import type { IndexRequest__Output } from '../lib/rpc/gen/llavacode/v1/IndexRequest.ts';
import type { ReembedRequest__Output } from '../lib/rpc/gen/llavacode/v1/ReembedRequest.ts';
import { duplex, mount, unary } from '../lib/rpc/server.ts';
import { readUpload, UPLOAD_FORMATS, type UploadFormat } from './archive.ts';
import { encodeCall } from './encode-call.ts';
import { type IndexReport, indexSources } from './index-run.ts';
import { reembed } from './reembed.ts';
import type { Selecting } from './selection.ts';
import type { UploadLimits } from './upload.ts';
import type { IndexJob, IndexOptions, IndexProgress } from './version-builder.ts';

export interface IndexerOptions extends Omit<IndexOptions, keyof Selecting>, UploadLimits {
  /**
   * Once it is aborted, Describe, with which a gateway asks before it sends an upload, is refused. Runs and uploads
   * that have begun go on to their end, or are cut by the server: the next run finds what was stored.
   */
  readonly draining: AbortSignal;
  /** Share of the time, in percent, in which chunks are encoded for side indexes. */
  readonly reembedShare: number;
}

/** The most runs at a time. They share the encoder, so each one more costs disk and memory alone. */
const MAX_RUNS = 4;
/**
 * The most uploads of one tenant at a time, each until its run ends, so that one tenant alone cannot shut out others.
 */
const MAX_OF_TENANT = MAX_RUNS - 1;
/** How long a removal keeps others out if it dies, in ms. */
const DELETE_LOCK_MS = 15_000;
/** How long a removal waits for who makes a side index of the repository, in ms. */
const SIDE_PATIENCE_MS = 1_000;

export function createIndexerService(store: Store, encoder: ContextEncoder, options: IndexerOptions, log: Logger) {
  let running = 0;
  const ofTenant = new Map<string, number>();
  const paced = new Paced(options.reembedShare / 100);

  const index = (requests: AsyncIterable<IndexRequest__Output>, signal: AbortSignal, caller: TraceHeaders) =>
    tracedStream(beginTrace('index', caller, { kind: 'server', atMs: performance.now() }), indexed(requests, signal));

  async function* indexed(
    requests: AsyncIterable<IndexRequest__Output>,
    signal: AbortSignal,
  ): AsyncGenerator<IndexEvent> {
    const { start, bytes } = await opened(requests);
    const { tenant } = start;
    const own = ofTenant.get(tenant) ?? 0;
    if (own >= MAX_OF_TENANT)
      throw saturated(`this tenant is sending or indexing ${own} repositories already: wait for one to end`);
    // Check before the upload, so that it is not sent in vain, and again after it: an upload on its way takes no run.
    assertRuns();
    ofTenant.set(tenant, own + 1);
    try {
      const body = { format: formatOf(start.format), strip: start.stripComponents, bytes };
      const repo = repoKey(tenant, start.repo);
      const sources = await readUpload(body, options, signal);
      try {
        yield* run({ repo, sources, signal, remoteUrl: start.remoteUrl || undefined }, start.requestId);
      } finally {
        await sources.close();
      }
    } finally {
      const left = (ofTenant.get(tenant) as number) - 1;
      if (left > 0) ofTenant.set(tenant, left);
      else ofTenant.delete(tenant);
    }
  }

  async function* run(job: Pick<IndexJob, 'repo' | 'sources' | 'signal' | 'remoteUrl'>, requestId: string) {
    assertRuns();
    running++;
    try {
      yield* events(async (onProgress) => {
        const report = await indexSources({ ...job, store, encoder, options, onProgress });
        log.info({ request_id: requestId, ...report }, 'indexed');
        return report;
      });
    } finally {
      running--;
    }
  }

  function assertRuns() {
    if (running >= MAX_RUNS) throw saturated(`${running} repositories are being indexed already: wait for one to end`);
  }

  async function remove({ tenant, repo: name }: DeleteRequest__Output) {
    const repo = repoKey(tenant, name);
    const existed = await removed(store, repo);
    // Whatever lies beside it goes with it: nobody asks for that any more.
    for (const side of await store.repositories(tenant, 'sides'))
      if (mainKey(side) === repo && !(await removedSoon(store, side)))
        log.info({ repo: side }, 'a side index is being made: who makes it removes it');
    if (!existed) throw new ServingError('repo_not_found', `there is no index of ${name}`, { param: 'repo' });
    log.info({ repo }, 'removed');
    return {};
  }

  async function reembedOne({ tenant, repo: name }: ReembedRequest__Output, signal: AbortSignal) {
    options.draining.throwIfAborted();
    return { ...(await reembed({ repo: repoKey(tenant, name), store, encoder, paced, signal })) };
  }

  async function describe(): Promise<IndexerDescription> {
    options.draining.throwIfAborted();
    return { fingerprint: encoder.fingerprint, hidden: encoder.hidden, running, limit: MAX_RUNS };
  }

  const methods = {
    Delete: unary(remove),
    Reembed: unary((request: ReembedRequest__Output) => reembedOne(request, options.draining)),
    Encode: unary(encodeCall(encoder, options.draining)),
    Describe: unary(describe),
  };
  return { mounts: [mount.indexer({ Index: duplex(index), ...methods })] };
}

/** @returns whether there was an index under the key. */
async function removed(store: Store, key: string): Promise<boolean> {
  const writer = await store.lock(key, DELETE_LOCK_MS);
  try {
    return await writer.remove();
  } finally {
    await writer.release().catch(() => {});
  }
}

/**
 * Removes a side index. Who is at work on it finds out itself that its repository is gone (reembed.ts), and removes it;
 * the lock of one that is just about to end is waited for.
 * @returns whether it is gone.
 */
async function removedSoon(store: Store, key: string): Promise<boolean> {
  const untilMs = performance.now() + SIDE_PATIENCE_MS;
  for (;;) {
    try {
      await removed(store, key);
      return true;
    } catch (error) {
      if (ServingError.from(error).code !== 'index_locked') throw error;
      if (performance.now() >= untilMs) return false;
    }
    await sleep(SIDE_PATIENCE_MS / 10);
  }
}

const saturated = (message: string) => new ServingError('saturated', message, { retryAfterSeconds: 10 });

/** Splits the messages into the first one and the upload that follows it. */
async function opened(requests: AsyncIterable<IndexRequest__Output>) {
  const messages = requests[Symbol.asyncIterator]();
  const { start } = (await messages.next()).value ?? {};
  if (!start) throw new ServingError('invalid_request', 'the first message of Index must be start');
  async function* bytes() {
    for (let next = await messages.next(); !next.done; next = await messages.next()) {
      if (!next.value.data)
        throw new ServingError('invalid_request', 'every message of Index after the first must be data');
      yield next.value.data;
    }
  }
  return { start, bytes: bytes() };
}

function formatOf(format: string): UploadFormat {
  const known = UPLOAD_FORMATS.find((name) => name === format);
  if (!known)
    throw new ServingError(
      'invalid_request',
      `format ${JSON.stringify(format)} is not one of ${UPLOAD_FORMATS.join(', ')}`,
    );
  return known;
}

/** Yields progress while the run goes on, always the latest since the reader last asked, and at the end the report. */
async function* events(
  run: (onProgress: (progress: IndexProgress) => void) => Promise<IndexReport>,
): AsyncGenerator<IndexEvent> {
  let latest: IndexProgress | undefined;
  let wake = () => {};
  const report = run((progress) => {
    latest = progress;
    wake();
  });
  let done = false;
  const settled = report
    .catch(() => {})
    .then(() => {
      done = true;
      wake();
    });
  try {
    while (!done || latest) {
      if (latest) {
        const progress = latest;
        latest = undefined;
        yield { progress };
      } else {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
    }
  } finally {
    await settled; // if the caller has gone, its signal ends the run
  }
  const { repo: _, ...figures } = await report;
  yield { report: { ...figures, skipped: { ...figures.skipped } } };
}
