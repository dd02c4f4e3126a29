/** Pulls a staged KV cache into a slot of this worker, from the prefill worker that holds it. */
import { setTimeout as sleep } from 'node:timers/promises';
import { LRUCache } from 'lru-cache';
import { repeatUntilAborted } from '../lib/async/repeat.ts';
import { KvReceiver } from '../lib/kv/handoff.ts';
import type { KvPool, KvSlot } from '../lib/kv/pool.ts';
import type { WireType } from '../lib/kv/wire.ts';
import { ServingError } from '../lib/process/errors.ts';
import type { Logger } from '../lib/process/log.ts';
import { metrics } from '../lib/process/metrics.ts';
import type { TraceHeaders } from '../lib/process/span.ts';
import { connectKv, type KvClient } from '../lib/rpc/contract.ts';
import { PLAINTEXT, type RpcSecurity } from '../lib/rpc/credentials.ts';
import type { KvHandle__Output } from '../lib/rpc/gen/llavacode/v1/KvHandle.ts';
import { assertSealed } from '../lib/rpc/kv-handle.ts';

export interface PulledKv {
  /** Sampled by prefill, one per choice. */
  readonly firstTokenIds: readonly number[];
  readonly bytes: number;
  readonly seconds: number;
  /** The part of `seconds` after prefill had finished computing: the part that the user waits for. */
  readonly exposedSeconds: number;
}

/** A damaged or incomplete copy is pulled once more, since the original is still there. */
const ATTEMPTS = 2;
/** Time limit for telling the holder that we have our copy. Its lease expires in any case. */
const RELEASE_TIMEOUT_MS = 5_000;
/** Heartbeats sent within the time of a lease: one may get lost. */
const HEARTBEATS = 3;
const FASTEST_HEARTBEAT_MS = 100;
/** Connections kept to holders from which nothing is read now. */
const MAX_IDLE = 64;

/** A prefill worker from which KV is read now. */
interface Holder {
  readonly client: KvClient;
  users: number;
}

export class KvPuller {
  readonly #pool: KvPool;
  readonly #fingerprint: string;
  readonly #wire: WireType;
  readonly #log: Logger;
  readonly #security: RpcSecurity;
  /** By address. */
  readonly #busy = new Map<string, Holder>();
  /** By address. Workers come and go, each at its own address, so the connections used least recently are closed. */
  readonly #idle = new LRUCache<string, KvClient>({
    max: MAX_IDLE,
    dispose: (client, _address, reason) => {
      if (reason === 'evict') client.close();
    },
  });

  /** @param wire the form in which the holder is asked to send values. */
  constructor(
    pool: KvPool,
    fingerprint: string,
    log: Logger,
    wire: WireType = 'float32',
    security: RpcSecurity = PLAINTEXT,
  ) {
    this.#security = security;
    this.#pool = pool;
    this.#fingerprint = fingerprint;
    // Values that are not float32 are always sent as they are.
    this.#wire = pool.type === 'float32' ? wire : pool.type;
    this.#log = log;
  }

  /**
   * The address in a handle is not believed: this worker connects only where a prefill worker of its system listens.
   * @throws ServingError kv_handle_untrusted
   */
  assertTrusted(handle: KvHandle__Output): void {
    assertSealed(handle, this.#security.secret);
  }

  /**
   * Fills `slot`, then tells the holder that this reader is done, whether it got its copy or not.
   * @throws ServingError kv_digest_mismatch, kv_truncated, kv_layout_mismatch, fingerprint_mismatch,
   *   context_length_exceeded, lease_unknown, lease_expired; invalid_request for a handle that does not belong to its
   *   lease; the signal's reason.
   */
  pull(handle: KvHandle__Output, slot: KvSlot, signal: AbortSignal, trace?: TraceHeaders): Promise<PulledKv> {
    return this.#withClient(handle.address, async (client) => {
      try {
        for (let attempt = 1; ; attempt++) {
          try {
            return await this.#pullOnce(client, handle, slot, signal, trace);
          } catch (error) {
            const damaged = error instanceof ServingError && error.kind.grpc === 'DATA_LOSS';
            const failed = damaged && error.cause !== undefined; // the holder itself; it would fail again
            if (!damaged || failed || attempt === ATTEMPTS || signal.aborted) throw asKvFailure(error);
            this.#log.warn({ err: error, lease: handle.leaseId }, 'the KV cache came damaged: pulling it once more');
          }
        }
      } finally {
        client.release(handle.leaseId, AbortSignal.timeout(RELEASE_TIMEOUT_MS)).catch((error: unknown) => {
          // Expected when the lease has ended for another reason. If it has not, it expires.
          this.#log.debug({ err: error, lease: handle.leaseId }, 'the KV lease could not be released');
        });
      }
    });
  }

  /**
   * Renews the lease until the signal aborts: the heartbeat of a reader that waits for a slot.
   * @throws ServingError lease_unknown, lease_expired, kv_truncated when the cache is lost.
   */
  keepLease({ address, leaseId, leaseMs }: KvHandle__Output, signal: AbortSignal): Promise<void> {
    const everyMs = Math.max(Math.floor(leaseMs / HEARTBEATS), FASTEST_HEARTBEAT_MS);
    return this.#withClient(address, async (client) => {
      await sleep(everyMs, undefined, { signal }).catch(() => {});
      await repeatUntilAborted(signal, async () => {
        const late = AbortSignal.timeout(everyMs);
        try {
          await client.renew(leaseId, AbortSignal.any([signal, late]));
        } catch (error) {
          if (!signal.aborted && !late.aborted) throw asKvFailure(error);
        }
        return everyMs;
      });
    });
  }

  close(): void {
    for (const { client } of this.#busy.values()) client.close();
    for (const client of this.#idle.values()) client.close();
  }

  async #pullOnce(
    client: KvClient,
    handle: KvHandle__Output,
    slot: KvSlot,
    signal: AbortSignal,
    trace: TraceHeaders | undefined,
  ): Promise<PulledKv> {
    const startedMs = performance.now();
    const receiver = new KvReceiver(this.#pool.store, slot.index, this.#fingerprint, this.#wire);
    const request = { leaseId: handle.leaseId, fingerprint: this.#fingerprint, dtype: this.#wire };
    for await (const frame of fromHolder(client.pull(request, signal, trace))) {
      if (frame.manifest?.layout) {
        const { layout } = frame.manifest;
        receiver.manifest({ ...frame.manifest, layout, dtype: layout.dtype });
        assertPositions(handle, frame.manifest.positions);
      } else if (frame.rows) {
        const written = receiver.rows(frame.rows);
        if (written) await written;
      } else if (frame.end) {
        receiver.end(frame.end);
        const seconds = (performance.now() - startedMs) / 1000;
        const exposedSeconds = Math.min(seconds, frame.end.afterPrefillUs / 1e6);
        metrics.handoffTime.observe(seconds);
        metrics.handoffExposed.observe(exposedSeconds);
        metrics.handoffBytes.inc(receiver.bytes);
        return { firstTokenIds: frame.end.firstTokenIds, bytes: receiver.bytes, seconds, exposedSeconds };
      }
    }
    throw new ServingError('kv_truncated', `${handle.address} ended the KV stream after ${receiver.bytes} bytes`);
  }

  async #withClient<T>(address: string, use: (client: KvClient) => Promise<T>): Promise<T> {
    const holder = this.#busy.get(address) ?? { client: this.#idleClient(address), users: 0 };
    this.#busy.set(address, holder);
    holder.users++;
    try {
      return await use(holder.client);
    } finally {
      holder.users--;
      if (holder.users === 0) {
        this.#busy.delete(address);
        this.#idle.set(address, holder.client);
      }
    }
  }

  /** The idle client of this address, which is no longer idle, or a new one. */
  #idleClient(address: string): KvClient {
    const client = this.#idle.get(address) ?? connectKv(address, this.#security);
    this.#idle.delete(address);
    return client;
  }
}

/**
 * The sequence goes on from the handle's position. Going on from another one would give wrong output without an error.
 */
function assertPositions(handle: KvHandle__Output, staged: number): void {
  if (handle.positions === staged) return;
  throw new ServingError(
    'invalid_request',
    `the handle of lease ${handle.leaseId} says ${handle.positions} positions, the KV cache has ${staged}`,
  );
}

/** Failures of the holder's engine or process, which the caller of Decode would take for this worker's. */
const OF_HOLDER: ReadonlySet<string> = new Set(['runtime_failed', 'draining', 'internal']);

/** Frames of the holder, whose failures mean that the KV is lost; those of whoever reads them stay as they are. */
async function* fromHolder<F>(frames: AsyncIterable<F>): AsyncGenerator<F> {
  try {
    yield* frames;
  } catch (error) {
    if (!(error instanceof ServingError) || !OF_HOLDER.has(error.code)) throw error;
    const message = `the worker that held the KV failed: ${error.message}`;
    throw new ServingError('kv_truncated', message, { cause: error });
  }
}

/** For the caller of Decode the KV is lost. These codes would tell it that this decode worker is lost. */
function asKvFailure(error: unknown): unknown {
  const lost = error instanceof ServingError && (error.code === 'worker_lost' || error.code === 'not_a_member');
  return lost
    ? new ServingError('kv_truncated', `the worker that held the KV is lost: ${error.message}`, { cause: error })
    : error;
}
