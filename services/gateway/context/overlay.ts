/**
 * The overlay of a request: texts of files that the editor holds, and that are newer than what is indexed. They are cut
 * into chunks as files of a repository are, and the best ones take their places among those of the index. The indexer
 * encodes them, each once; one that is not encoded in time stands in the prompt as text.
 *
 * Between two keystrokes an overlay mostly stays the same, and so must the prompt: its KV is reused as far as it does.
 * Therefore a chunk that stood in a prompt as text stays text for as long as the overlay does not change.
 */
import { createHash } from 'node:crypto';
import { startLateTimer } from '../../lib/async/late-timer.ts';
import { inTurns } from '../../lib/async/turns.ts';
import { ServingError } from '../../lib/process/errors.ts';
import type { Logger } from '../../lib/process/log.ts';
import type { TraceHeaders } from '../../lib/process/span.ts';
import { type Chunk, chunkSteps } from '../../lib/rag/chunk.ts';
import { TenantCache } from '../../lib/rag/store/tenant-cache.ts';
import { decodeHalves } from '../../lib/rag/store/vector-codec.ts';
import type { IndexerClient } from '../../lib/rpc/contract.ts';
import type { OverlayText } from '../request.ts';

/** Most files of an overlay, and most characters of all of them: as many as ten keystrokes a second can cost. */
export const MAX_OVERLAY_FILES = 256;
export const MAX_OVERLAY_CHARACTERS = 1_048_576;

/** The windows of an index by default. */
const CHUNKING = { chunkLines: 10, chunkStride: 5 };
/** Memory for the chunks of files, and as much for vectors of chunks, of all tenants, in bytes. */
const LIMIT_BYTES = 32 << 20;
const OVERHEAD_BYTES = 256;
/** Bytes that a chunk takes for each character of its text, with its identifiers. */
const BYTES_PER_CHARACTER = 6;
/** The largest text that the indexer encodes, in bytes; a larger one stands as text. */
const MOST_ENCODED_BYTES = 65_536;
/** Chunks of one call, and chunks of one tenant that may be on their way. */
const CALL_CHUNKS = 64;
const TENANT_CHUNKS = 256;
/** The indexer is not waited for any longer, also by nobody's request, in ms. */
const ENCODE_MS = 30_000;
/** Share of that memory for what stood as text. */
const AS_TEXT_SHARE = 1 / 8;

/** An overlay, cut into chunks. */
export interface Overlay {
  readonly chunks: readonly Chunk[];
  /** Paths of the files that are whole: what is indexed of them is older. */
  readonly replaced: readonly string[];
  /** Digest of all texts in their order. */
  readonly digest: string;
  /** Whether it was larger than what is searched, and its end was left out. */
  readonly cut: boolean;
}

export const NO_OVERLAY: Overlay = { chunks: [], replaced: [], digest: '', cut: false };

export interface OverlayOptions {
  /** undefined where no indexer was named: all chunks stand as text. */
  readonly indexer: Pick<IndexerClient, 'encode'> | undefined;
  /** Fingerprint of the served encoder and projector; undefined where there is none. */
  readonly contextFingerprint: string | undefined;
  /** Values of one soft token, and soft tokens of one chunk; 1 if not given. */
  readonly hidden: number;
  readonly softPerChunk?: number;
  /** Time that a request waits for vectors, in ms. */
  readonly overlayBudgetMs: number;
  readonly log: Pick<Logger, 'warn'>;
}

export class Overlays {
  readonly #options: OverlayOptions;
  readonly #files: TenantCache<readonly Chunk[]>;
  readonly #vectors: TenantCache<Float32Array>;
  /** Chunks that stood as text, by overlay. */
  readonly #asText: TenantCache<ReadonlySet<string>>;
  /** Vectors on their way, by key; of each tenant, how many. */
  readonly #pending = new Map<string, Promise<void>>();
  readonly #pendingOf = new Map<string, number>();

  /** @param limitBytes memory for chunks of files, and as much for vectors; each tenant has a share of it. */
  constructor(options: OverlayOptions, limitBytes = LIMIT_BYTES) {
    this.#options = options;
    this.#files = new TenantCache(limitBytes);
    this.#vectors = new TenantCache(limitBytes);
    this.#asText = new TenantCache(limitBytes * AS_TEXT_SHARE);
  }

  /** Cuts texts into chunks; a text that this tenant has sent before is not cut again. @throws the signal's reason. */
  async of(tenant: string, texts: readonly OverlayText[], signal: AbortSignal): Promise<Overlay> {
    const chunks: Chunk[] = [];
    const replaced: string[] = [];
    const digest = createHash('sha256');
    let characters = 0;
    let files = 0;
    for (const { path, text, isPart } of texts) {
      characters += text.length;
      if (files === MAX_OVERLAY_FILES || characters > MAX_OVERLAY_CHARACTERS) break;
      files++;
      const key = keyOf(tenant, path, text);
      digest.update(key);
      const known = this.#files.get(key) ?? (await inTurns(chunkSteps(path, text, CHUNKING), signal));
      this.#files.set(key, known, OVERHEAD_BYTES + BYTES_PER_CHARACTER * text.length);
      for (const chunk of known) chunks.push(chunk);
      if (!isPart) replaced.push(path);
    }
    return { chunks, replaced, digest: digest.digest('base64'), cut: files < texts.length };
  }

  /**
   * The vectors of chunks, in their order; undefined for one that stands as text.
   * @throws the signal's reason.
   */
  async vectorsOf(
    tenant: string,
    { digest }: Pick<Overlay, 'digest'>,
    chunks: readonly Pick<Chunk, 'path' | 'text'>[],
    signal: AbortSignal,
    trace?: TraceHeaders,
  ): Promise<(Float32Array | undefined)[]> {
    const keys = chunks.map(({ path, text }) => keyOf(tenant, path, text));
    const form = `${tenant}:${digest}`;
    const asText = this.#asText.get(form) ?? new Set<string>();
    const lacking = chunks.filter((_, i) => !asText.has(keys[i]!) && this.#vectors.get(keys[i]!) === undefined);
    if (lacking.length > 0) await this.#wait(this.#encode(tenant, lacking, trace), signal);
    const vectors = keys.map((key) => (asText.has(key) ? undefined : this.#vectors.get(key)));
    const more = keys.filter((key, i) => vectors[i] === undefined && !asText.has(key));
    if (more.length > 0) {
      const all = new Set([...asText, ...more]);
      this.#asText.set(form, all, OVERHEAD_BYTES * (1 + all.size));
    }
    return vectors;
  }

  /** Has chunks encoded for requests to come. Nobody waits for them. */
  encodeAhead(tenant: string, { chunks }: Pick<Overlay, 'chunks'>, trace?: TraceHeaders): void {
    void this.#encode(
      tenant,
      chunks.filter(({ path, text }) => this.#vectors.get(keyOf(tenant, path, text)) === undefined),
      trace,
    );
  }

  /** Waits for vectors as long as a request may. What comes later is there for the next one. */
  async #wait(work: Promise<unknown>, signal: AbortSignal): Promise<void> {
    const over = new AbortController();
    const stopTimer = startLateTimer(this.#options.overlayBudgetMs, () => over.abort());
    const live = AbortSignal.any([signal, over.signal]);
    const ended = new Promise<void>((resolve) => live.addEventListener('abort', () => resolve(), { once: true }));
    await Promise.race([work, ended]);
    stopTimer();
    signal.throwIfAborted();
  }

  /** Has chunks encoded that are not on their way already. Never rejects: those that fail have no vector. */
  async #encode(tenant: string, chunks: readonly Pick<Chunk, 'path' | 'text'>[], trace?: TraceHeaders): Promise<void> {
    const { indexer, contextFingerprint } = this.#options;
    if (indexer === undefined || contextFingerprint === undefined) return;
    const waits: Promise<void>[] = [];
    const fresh = new Map<string, Pick<Chunk, 'path' | 'text'>>();
    for (const chunk of chunks) {
      const key = keyOf(tenant, chunk.path, chunk.text);
      const pending = this.#pending.get(key);
      if (pending) waits.push(pending);
      else if (Buffer.byteLength(chunk.text) <= MOST_ENCODED_BYTES) fresh.set(key, chunk);
    }
    const free = TENANT_CHUNKS - (this.#pendingOf.get(tenant) ?? 0);
    const some = [...fresh].slice(0, Math.max(free, 0));
    for (let start = 0; start < some.length; start += CALL_CHUNKS) {
      const call = some.slice(start, start + CALL_CHUNKS);
      const done = this.#call(tenant, call, indexer, trace).finally(() => {
        for (const [key] of call) this.#pending.delete(key);
        const left = (this.#pendingOf.get(tenant) ?? 0) - call.length;
        if (left > 0) this.#pendingOf.set(tenant, left);
        else this.#pendingOf.delete(tenant);
      });
      for (const [key] of call) this.#pending.set(key, done);
      this.#pendingOf.set(tenant, (this.#pendingOf.get(tenant) ?? 0) + call.length);
      waits.push(done);
    }
    await Promise.all(waits);
  }

  async #call(
    tenant: string,
    chunks: readonly (readonly [key: string, chunk: Pick<Chunk, 'path' | 'text'>])[],
    indexer: Pick<IndexerClient, 'encode'>,
    trace: TraceHeaders | undefined,
  ): Promise<void> {
    const { contextFingerprint, hidden, softPerChunk = 1, log } = this.#options;
    const size = hidden * softPerChunk;
    try {
      const texts = chunks.map(([, { path, text }]) => ({ path, text }));
      const answer = await indexer.encode({ chunks: texts }, AbortSignal.timeout(ENCODE_MS), trace);
      const values = decodeHalves(answer.vectors);
      // Vectors of another encoder are noise to this model, and workers refuse what is not a number.
      if (answer.fingerprint !== contextFingerprint || values.length !== size * chunks.length) return;
      for (const [i, [key]] of chunks.entries()) {
        const vector = values.slice(i * size, (i + 1) * size);
        if (vector.every(Number.isFinite)) this.#vectors.set(key, vector, OVERHEAD_BYTES + vector.byteLength);
      }
    } catch (error) {
      log.warn({ err: ServingError.from(error), tenant }, 'chunks of an overlay were not encoded: they stand as text');
    }
  }
}

/** A key that begins with its tenant: what one tenant has sent is never found by another. */
const keyOf = (tenant: string, path: string, text: string) =>
  `${tenant}:${createHash('sha256').update(`${path}\0`).update(text).digest('base64')}`;
