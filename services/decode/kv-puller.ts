/** Pulls a staged KV cache from the prefill worker that holds it into a slot of ours. */
import { setTimeout as sleep } from 'node:timers/promises';
import { KvReceiver } from '../lib/kv/handoff.ts';
import type { KvPool, KvSlot } from '../lib/kv/pool.ts';
import type { WireType } from '../lib/kv/wire.ts';
import { ServingError } from '../lib/process/errors.ts';
import type { Logger } from '../lib/process/log.ts';
import { metrics } from '../lib/process/metrics.ts';
import { connectKv, type KvClient } from '../lib/rpc/contract.ts';
import { PLAINTEXT, type RpcSecurity } from '../lib/rpc/credentials.ts';
import type { KvHandle__Output } from '../lib/rpc/gen/llavacode/v1/KvHandle.ts';

export interface Received {
  /** Sampled by prefill, one per choice. */
  readonly firstTokenIds: readonly number[];
  readonly bytes: number;
  readonly seconds: number;
  /** Of `seconds`, those after prefill had finished computing: what the user waits for. */
  readonly exposedSeconds: number;
}

/** A damaged or broken-off copy is pulled once more, since the original is still there. */
const ATTEMPTS = 2;
/** For telling the holder that we have our copy; its lease runs out anyway. */
const RELEASE_TIMEOUT_MS = 5_000;
/** Heartbeats in the time of a lease: one may get lost. */
const HEARTBEATS = 3;
const FASTEST_HEARTBEAT_MS = 100;
/** Connections kept to holders that nobody reads from now. */
const MAX_IDLE = 64;

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
  /** By address; the one used last is last. */
  readonly #holders = new Map<string, Holder>();

  /** @param wire how values are asked to travel. */
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
    // What is computed in 16 bits travels as it is.
    this.#wire = pool.floats === 'float16' ? pool.floats : wire;
    this.#log = log;
  }

  /**
   * Fills `slot` and tells the holder that this reader is done, whether it came well or not.
   * @throws ServingError kv_digest_mismatch, kv_truncated, kv_layout_mismatch, fingerprint_mismatch,
   *   context_length_exceeded, lease_unknown, lease_expired; invalid_request for a handle that is not of
   *   this lease; the signal's reason.
   */
  pull(handle: KvHandle__Output, slot: KvSlot, signal: AbortSignal): Promise<Received> {
    return this.#with(handle.address, async (client) => {
      try {
        for (let attempt = 1; ; attempt++) {
          try {
            return await this.#pullOnce(client, handle, slot, signal);
          } catch (error) {
            const damaged = error instanceof ServingError && error.kind.grpc === 'DATA_LOSS';
            if (!damaged || attempt === ATTEMPTS || signal.aborted) throw asKvFailure(error);
            this.#log.warn({ err: error, lease: handle.leaseId }, 'pulling the KV cache once more');
          }
        }
      } finally {
        client.release(handle.leaseId, AbortSignal.timeout(RELEASE_TIMEOUT_MS)).catch((error: unknown) => {
          // Expected when the lease ended otherwise; it frees itself in any case.
          this.#log.debug({ err: error, lease: handle.leaseId }, 'KV lease was not released by us');
        });
      }
    });
  }

  /**
   * Keeps the lease alive until the signal: the heartbeat of a reader that waits for a slot.
   * @throws ServingError lease_unknown, lease_expired, kv_truncated where there is nothing left to wait for.
   */
  keep({ address, leaseId, leaseMs }: KvHandle__Output, signal: AbortSignal): Promise<void> {
    const everyMs = Math.max(Math.floor(leaseMs / HEARTBEATS), FASTEST_HEARTBEAT_MS);
    return this.#with(address, async (client) => {
      for (;;) {
        await sleep(everyMs, undefined, { signal }).catch(() => {});
        if (signal.aborted) return;
        const late = AbortSignal.timeout(everyMs);
        try {
          await client.renew(leaseId, AbortSignal.any([signal, late]));
        } catch (error) {
          if (signal.aborted) return;
          if (!late.aborted) throw asKvFailure(error);
        }
      }
    });
  }

  close(): void {
    for (const { client } of this.#holders.values()) client.close();
  }

  async #pullOnce(client: KvClient, handle: KvHandle__Output, slot: KvSlot, signal: AbortSignal): Promise<Received> {
    const started = performance.now();
    const receiver = new KvReceiver(this.#pool, slot.index, this.#fingerprint, this.#wire);
    const request = { leaseId: handle.leaseId, fingerprint: this.#fingerprint, dtype: this.#wire };
    for await (const frame of client.pull(request, signal)) {
      if (frame.manifest?.layout) {
        const { layout } = frame.manifest;
        receiver.manifest({ ...frame.manifest, layout, dtype: layout.dtype });
        assertPositions(handle, frame.manifest.positions);
      } else if (frame.rows) {
        receiver.rows(frame.rows);
      } else if (frame.end) {
        receiver.end(frame.end);
        const seconds = (performance.now() - started) / 1000;
        const exposedSeconds = Math.min(seconds, frame.end.afterPrefillUs / 1e6);
        metrics.handoffTime.observe(seconds);
        metrics.handoffExposed.observe(exposedSeconds);
        metrics.handoffBytes.inc(receiver.bytes);
        const { firstTokenIds } = frame.end;
        return { firstTokenIds, bytes: receiver.bytes, seconds, exposedSeconds };
      }
    }
    throw new ServingError('kv_truncated', `${handle.address} ended the KV stream after ${receiver.bytes} bytes`);
  }

  async #with<T>(address: string, use: (client: KvClient) => Promise<T>): Promise<T> {
    const holder = this.#holders.get(address) ?? { client: connectKv(address, this.#security), users: 0 };
    this.#holders.delete(address);
    this.#holders.set(address, holder);
    holder.users++;
    try {
      return await use(holder.client);
    } finally {
      holder.users--;
      this.#forgetOldest();
    }
  }

  /** Workers come and go, each at an address of its own. */
  #forgetOldest(): void {
    if (this.#holders.size <= MAX_IDLE) return;
    const idle = [...this.#holders].filter(([, { users }]) => users === 0);
    for (const [address, { client }] of idle.slice(0, Math.max(0, idle.length - MAX_IDLE))) {
      client.close();
      this.#holders.delete(address);
    }
  }
}

/** The sequence goes on from where the handle says; another place would be silently wrong output. */
function assertPositions(handle: KvHandle__Output, staged: number): void {
  if (handle.positions === staged) return;
  throw new ServingError(
    'invalid_request',
    `the handle of lease ${handle.leaseId} says ${handle.positions} positions, the KV cache has ${staged}`,
  );
}

/** To whoever asked us to decode, it is the KV that is lost: `worker_lost` would be us. */
function asKvFailure(error: unknown): unknown {
  const lost = error instanceof ServingError && error.code === 'worker_lost';
  return lost
    ? new ServingError('kv_truncated', `the holder of the KV is gone: ${error.message}`, { cause: error })
    : error;
}
