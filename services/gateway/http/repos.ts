/**
 * `/v1/repos`: the repositories that are indexed, and indexing. An upload is passed to the indexer as it comes. Only
 * the indexer unpacks it, so that an upload cannot slow down completions.
 */
import type { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { ServingError } from '../../lib/process/errors.ts';
import type { TraceHeaders } from '../../lib/process/span.ts';
import { beginTrace, traced } from '../../lib/process/tracing.ts';
import { nameOf } from '../../lib/rag/store/repo-key.ts';
import { contextFingerprint, holdsEmbeddings } from '../../lib/rag/store/row.ts';
import type { IndexHead, Store } from '../../lib/rag/store/store.ts';
import type { IndexerClient } from '../../lib/rpc/contract.ts';
import type { IndexReport__Output } from '../../lib/rpc/gen/llavacode/v1/IndexReport.ts';
import type { IndexRequest } from '../../lib/rpc/gen/llavacode/v1/IndexRequest.ts';
import type { InflightRequests } from '../admission/inflight.ts';
import type { AdmissionConfig } from '../admission/settings.ts';
import { storeKey } from '../tenants/api-keys.ts';
import type { WorkerPoolConfig } from '../workers/settings.ts';
import { noteFailure } from './audit.ts';
import { asServingError, clientGone, errorBody } from './errors.ts';
import type { HttpConfig } from './settings.ts';
import { EventStream } from './sse.ts';

export interface RepoParts
  extends Pick<HttpConfig, 'maxUploadBytes' | 'uploadTimeoutMs' | 'slowReaderMs'>,
    Pick<AdmissionConfig, 'requestTimeoutMs'>,
    Pick<WorkerPoolConfig, 'connectTimeoutMs'> {
  /** undefined where the gateway has no store. */
  readonly store: Store | undefined;
  /** undefined where no indexer was named. */
  readonly indexer: IndexerClient | undefined;
  /** Fingerprint of the served encoder and projector; undefined where the bundle has none. */
  readonly contextFingerprint: string | undefined;
  readonly inflight: InflightRequests;
}

const FORMATS: Record<string, string> = {
  'application/json': 'json',
  'application/x-tar': 'tar',
  'application/tar': 'tar',
  'application/gzip': 'tar.gz',
  'application/x-gzip': 'tar.gz',
  'application/x-gtar': 'tar.gz',
  'application/x-tgz': 'tar.gz',
  'application/zip': 'zip',
  'application/x-zip-compressed': 'zip',
};

/** Pause between two questions to an indexer that drains, whether another one has taken its place, in ms. */
const DRAIN_POLL_MS = 100;

/** Heads that a list reads at once. */
const HEADS_AT_ONCE = 16;

/** The last list of each tenant that has any under way. */
type Lines = Map<string, Promise<unknown>>;

type RepoCall = FastifyRequest<{ Params: { '*': string }; Querystring: Record<string, string | string[]> }>;

/** Names of repositories contain slashes, as they are or as %2F. */
const REPO_URL = '/v1/repos/*';

/** Remote URL of the checkout that is uploaded. It is a header, so that gateways that do not know it go on. */
const REMOTE_HEADER = 'x-llavacode-remote-url';

export function addRepoRoutes(app: FastifyInstance, parts: RepoParts): void {
  const lines: Lines = new Map();
  app.register(async (scope) => {
    const tags = ['repositories'];
    scope.removeAllContentTypeParsers();
    // Uploads are passed on as they come.
    scope.addContentTypeParser(Object.keys(FORMATS), (_, payload, done) => done(null, payload));
    scope.get('/v1/repos', { schema: { summary: 'the repositories that have an index', tags } }, (request, reply) =>
      list(request, reply, parts, lines),
    );
    scope.get(REPO_URL, { schema: { summary: 'the index of a repository', tags } }, (request: RepoCall) =>
      describe(request, parts),
    );
    scope.put(
      REPO_URL,
      { config: { takesUploads: true }, schema: { summary: 'indexes files or an archive', tags } },
      (request: RepoCall, reply) => index(request, reply, parts),
    );
    scope.delete(REPO_URL, { schema: { summary: 'removes an index', tags } }, (request: RepoCall) =>
      remove(request, parts),
    );
  });
}

/**
 * Lists of one tenant are made one after the other, and each reads a few heads at a time: the heads that retrievals of
 * other tenants need come over the same connection.
 */
async function list(request: FastifyRequest, reply: FastifyReply, parts: RepoParts, lines: Lines): Promise<unknown> {
  const { tenant } = request.identity;
  const { signal, abort, release } = parts.inflight.track();
  reply.raw.once('close', () => abort(clientGone()));
  const before = lines.get(tenant);
  const mine = Promise.resolve(before?.catch(() => {})).then(() => listNow(request, parts, signal));
  lines.set(tenant, mine);
  try {
    return { object: 'list', data: await mine };
  } finally {
    if (lines.get(tenant) === mine) lines.delete(tenant);
    release();
  }
}

async function listNow({ identity, id, server }: FastifyRequest, parts: RepoParts, signal: AbortSignal) {
  signal.throwIfAborted();
  const store = storeOf(parts.store);
  const keys = (await store.repositories(identity.tenant)).filter((key) => identity.mayUse(nameOf(key)));
  const entry = async (key: string) => {
    try {
      const head = await store.head(key, { isListed: true });
      return head ? [repoBody(nameOf(key), head, parts.contextFingerprint)] : [];
    } catch (error) {
      const failure = ServingError.from(error);
      if (failure.code !== 'store_invalid') throw error;
      const { code, message } = errorBody(failure, id, server.tellsInside).error;
      return [{ object: 'repo', repo: nameOf(key), error: { code, message } }];
    }
  };
  const data: object[] = [];
  for (let start = 0; start < keys.length; start += HEADS_AT_ONCE) {
    signal.throwIfAborted();
    data.push(...(await Promise.all(keys.slice(start, start + HEADS_AT_ONCE).map(entry))).flat());
  }
  return data;
}

async function describe(
  { identity, params }: RepoCall,
  { store, contextFingerprint: served }: RepoParts,
): Promise<unknown> {
  const name = params['*'];
  const key = storeKey(identity, name, 'repo');
  const head = await storeOf(store).head(key);
  if (!head) throw new ServingError('repo_not_found', `there is no index of ${name}`, { param: 'repo' });
  return repoBody(name, head, served);
}

/** What is told of an index. @param served fingerprint of the served encoder and projector. */
export function repoBody(repo: string, head: IndexHead, served: string | undefined) {
  const fits = contextFingerprint(head.fingerprint) === served;
  return {
    object: 'repo',
    repo,
    version: head.version,
    fingerprint: head.fingerprint,
    /**
     * Whether compressed context goes without it until it is indexed again: it has no vectors of the served encoder and
     * projector. A bundle without them could not use any, so nothing is stale for it.
     */
    stale: served !== undefined && !fits,
    /** The values of rag.mode and rag.retriever that this index can serve with the served model. */
    modes: fits ? ['compressed', 'mixed', 'text'] : ['text'],
    retrievers: fits && holdsEmbeddings(head.fingerprint) ? ['jaccard', 'bm25', 'dense', 'fused'] : ['jaccard', 'bm25'],
    chunks: head.chunks,
    /** Soft tokens that a chunk takes in a prompt, and files that have a vector of their own (rag.file_tokens). */
    soft_per_chunk: head.softPerChunk ?? 1,
    file_vectors: head.fileRows ?? 0,
    files: head.files,
    languages: head.languages,
    remote: head.remote ?? null,
    updated_at: head.indexedAt,
  };
}

async function index(request: RepoCall, reply: FastifyReply, parts: RepoParts): Promise<unknown> {
  const repo = request.params['*'];
  storeKey(request.identity, repo, 'repo');
  indexerOf(parts); // without one nothing begins
  const start = {
    requestId: request.id,
    tenant: request.identity.tenant,
    repo,
    format: FORMATS[(request.headers['content-type'] ?? '').split(';')[0]!.trim().toLowerCase()] ?? '',
    stripComponents: stripOf(request.query),
    remoteUrl: String(request.headers[REMOTE_HEADER] ?? ''),
  };
  const trace = beginTrace('index', request.headers, {
    kind: 'server',
    atMs: performance.now(),
    attributes: { 'http.request.method': 'PUT', 'http.route': request.routeOptions.url },
  });
  return traced(trace, send(request, reply, parts, start, trace?.headers));
}

/** Sends the upload to the indexer, and answers with what comes of it. */
async function send(
  request: RepoCall,
  reply: FastifyReply,
  parts: RepoParts,
  start: NonNullable<IndexRequest['start']> & { readonly repo: string },
  trace: TraceHeaders | undefined,
): Promise<unknown> {
  const indexer = indexerOf(parts);
  const { repo } = start;
  const body = request.body as Readable | undefined;
  if (!body) throw new ServingError('unsupported_media_type', 'the request has no content-type or no body');
  const { signal, abort, release } = parts.inflight.track();
  reply.raw.once('close', () => abort(clientGone()));
  const { uploadTimeoutMs } = parts;
  const silence = setTimeout(() => {
    const message = `the indexer said nothing for ${uploadTimeoutMs} ms (--upload-timeout-ms)`;
    abort(new ServingError('worker_stalled', message));
  }, uploadTimeoutMs);
  const wantsEvents = request.headers.accept?.includes('text/event-stream');
  const stream = wantsEvents ? new EventStream(reply, signal, parts.slowReaderMs) : undefined;
  try {
    await reach(indexer, parts, signal);
    const upload = uploadOf(start, body, parts.maxUploadBytes, () => silence.refresh());
    for await (const { progress, report } of indexer.index(upload, signal, trace)) {
      if (report) {
        const answer = reportBody(repo, report);
        return stream ? stream.end(answer) : answer;
      }
      silence.refresh();
      if (progress) {
        const { files, filesRead, chunks, embedded } = progress;
        await stream?.send({ object: 'repo.progress', files, files_read: filesRead, chunks, embedded });
      }
    }
    throw new ServingError('worker_lost', 'the indexer ended without a report');
  } catch (error) {
    if (!stream?.open) throw error;
    const failure = asServingError(error);
    noteFailure(request, failure.code);
    if (failure.publicMessage === undefined) request.log.error({ err: failure }, 'request failed');
    return stream.end(errorBody(failure, request.id, request.server.tellsInside));
  } finally {
    clearTimeout(silence);
    release();
    // The rest of the upload is read and dropped: a client that still sends gets its answer, and the connection stays
    // usable. (What undoes a content-encoding stops with the answer.)
    body.resume();
  }
}

const reportBody = (repo: string, report: IndexReport__Output) => ({ object: 'repo.index', repo, ...report });

/** @throws ServingError payload_too_large, client_gone. */
async function* uploadOf(
  start: NonNullable<IndexRequest['start']>,
  body: Readable,
  limit: number,
  onData: () => void,
): AsyncGenerator<IndexRequest> {
  yield { start };
  let received = 0;
  try {
    for await (const data of body.iterator({ destroyOnReturn: false })) {
      onData();
      received += (data as Buffer).length;
      if (received > limit) {
        throw new ServingError('payload_too_large', `the upload is larger than ${limit} bytes (--max-upload-bytes)`);
      }
      yield { data: data as Buffer };
    }
  } catch (cause) {
    if (cause instanceof ServingError) throw cause;
    throw new ServingError('client_gone', `the upload broke off: ${(cause as Error).message}`, { cause });
  }
}

function stripOf(query: Record<string, string | string[]>): number {
  const { strip_components: strip = '0', ...rest } = query;
  const [unknown] = Object.keys(rest);
  if (unknown !== undefined) {
    throw new ServingError('invalid_request', `${unknown}: is not a parameter of this request`, { param: unknown });
  }
  if (typeof strip !== 'string' || !/^\d{1,2}$/.test(strip)) {
    throw new ServingError('invalid_request', `strip_components: ${JSON.stringify(strip)} must be from 0 to 99`, {
      param: 'strip_components',
    });
  }
  return Number(strip);
}

async function remove({ identity, params }: RepoCall, parts: RepoParts): Promise<unknown> {
  const repo = params['*'];
  storeKey(identity, repo, 'repo');
  const indexer = indexerOf(parts);
  const work = parts.inflight.track();
  const deadline = AbortSignal.timeout(parts.requestTimeoutMs);
  const signal = AbortSignal.any([work.signal, deadline]);
  try {
    await reach(indexer, parts, signal);
    await indexer.delete({ tenant: identity.tenant, repo }, signal);
  } catch (error) {
    if (!deadline.aborted) throw error;
    throw new ServingError(
      'deadline_exceeded',
      `removing ${repo} took longer than ${parts.requestTimeoutMs} ms (--request-timeout-ms)`,
    );
  } finally {
    work.release();
  }
  return { object: 'repo.deleted', repo, deleted: true };
}

/**
 * Waits for an indexer that restarts, before anything is sent to it: as long as it drains, and then until there is one.
 * @throws ServingError worker_lost when none comes within the connect timeout; the signal's reason.
 */
async function reach(indexer: IndexerClient, { connectTimeoutMs }: RepoParts, signal: AbortSignal): Promise<void> {
  for (;;) {
    const late = AbortSignal.timeout(connectTimeoutMs);
    try {
      await indexer.describe(AbortSignal.any([signal, late]));
      return;
    } catch (error) {
      signal.throwIfAborted();
      if (late.aborted) {
        throw new ServingError(
          'worker_lost',
          `the indexer was not reached within ${connectTimeoutMs} ms (--connect-timeout-ms): it does not run, or ` +
            'has another --rpc-secret-file than this gateway',
        );
      }
      if (ServingError.from(error).code !== 'draining') throw error;
    }
    await sleep(DRAIN_POLL_MS, undefined, { signal }).catch(() => {});
  }
}

function indexerOf({ indexer }: RepoParts): IndexerClient {
  if (!indexer) throw new ServingError('no_indexer', 'this gateway has no indexer');
  return indexer;
}

/** @throws ServingError store_unavailable where the gateway has no store. */
export function storeOf(store: Store | undefined): Store {
  if (!store) throw new ServingError('store_unavailable', 'this gateway has no store');
  return store;
}
