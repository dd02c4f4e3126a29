/**
 * The Kv service of a prefill worker: decoders pull the KV caches that are staged here, renew their leases, release
 * them.
 */
import { serializeFrame } from '../lib/kv/frame-buffer.ts';
import { KvSender } from '../lib/kv/handoff.ts';
import type { KvPool } from '../lib/kv/pool.ts';
import { readWireType, type WireType } from '../lib/kv/wire.ts';
import { ServingError } from '../lib/process/errors.ts';
import type { Span, TraceHeaders } from '../lib/process/span.ts';
import { beginTrace, tracedStream } from '../lib/process/tracing.ts';
import type { KvFrame } from '../lib/rpc/gen/llavacode/v1/KvFrame.ts';
import type { PullRequest__Output } from '../lib/rpc/gen/llavacode/v1/PullRequest.ts';
import type { ReleaseRequest__Output } from '../lib/rpc/gen/llavacode/v1/ReleaseRequest.ts';
import type { RenewRequest__Output } from '../lib/rpc/gen/llavacode/v1/RenewRequest.ts';
import { mount, streaming, unary } from '../lib/rpc/server.ts';
import type { LeaseTable } from './leases.ts';

/** @param fingerprint of the model bundle that computes the KV. */
export function mountKv(pool: KvPool, leases: LeaseTable, fingerprint: string) {
  const pull = (request: PullRequest__Output, signal: AbortSignal, caller: TraceHeaders) => {
    const span = beginTrace('kv pull', caller, { kind: 'server', atMs: performance.now() });
    return tracedStream(span, frames(request, signal, span));
  };

  async function* frames(
    request: PullRequest__Output,
    signal: AbortSignal,
    span: Span | undefined,
  ): AsyncGenerator<KvFrame> {
    const lease = leases.get(request.leaseId);
    if (request.fingerprint !== fingerprint) {
      throw new ServingError(
        'fingerprint_mismatch',
        `the puller serves model ${request.fingerprint}, this KV cache is of ${fingerprint}`,
      );
    }
    const dtype = wireTypeOf(pool, request.dtype);
    const { layers, kvHeads, headDim } = pool.layout;
    yield { manifest: { fingerprint, layout: { layers, kvHeads, headDim, dtype }, positions: lease.positions } };
    const sender = new KvSender(pool.store, lease.slot.index, dtype);
    for (let sent = 0; sent < lease.positions; ) {
      const ready = await lease.beyond(sent, signal);
      for await (const frame of sender.pack(sent, ready)) {
        lease.assertLive(); // it may have ended while the frame was read: its slot may have been exchanged meanwhile
        yield { rows: frame };
        span?.event('frame', performance.now(), { 'llavacode.positions': ready });
        leases.touch(lease);
        lease.assertLive(); // it may have ended while the frame was sent
      }
      sent = ready;
    }
    await lease.completed(signal);
    yield { end: { ...sender.end(lease.firstTokenIds), afterPrefillUs: lease.sinceComputedUs } };
  }

  const release = async (request: ReleaseRequest__Output) => ({ readersLeft: leases.release(request.leaseId) });

  const renew = async (request: RenewRequest__Output) => {
    leases.touch(leases.get(request.leaseId));
    return {};
  };

  return mount.kv({ Pull: streaming(pull), Release: unary(release), Renew: unary(renew) }, serializeFrame);
}

/**
 * The form in which the cache travels. Values that are not float32 are always sent as they are.
 * @param requested '' leaves the choice to this side.
 */
function wireTypeOf({ type }: KvPool, requested: string): WireType {
  const dtype = requested === '' ? type : readWireType(requested);
  if (type === 'float32' || dtype === type) return dtype;
  throw new ServingError('kv_layout_mismatch', `this KV cache is of ${type} and travels as ${type}, not as ${dtype}`);
}
