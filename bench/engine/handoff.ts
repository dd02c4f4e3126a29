/**
 * `bench handoff`: a KV cache from one process to another by the product's own path: pack, CRC, gRPC on loopback, check,
 * scatter. No model: the sender's pool is filled once, the receiver's is overwritten by every pull.
 */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { KvReceiver } from '../../services/lib/kv/handoff.ts';
import { type KvLayout, positionBytes } from '../../services/lib/kv/layout.ts';
import { KvPool } from '../../services/lib/kv/pool.ts';
import type { WireType } from '../../services/lib/kv/wire.ts';
import { connectKv, type KvClient } from '../../services/lib/rpc/contract.ts';
import { median } from '../measure/statistics.ts';

const TIMEOUT_MS = 60_000;

export interface HandoffBenchOptions {
  readonly layout: KvLayout;
  readonly positions: number;
  readonly types: readonly WireType[];
  readonly repeats: number;
}

/** Medians over the repeats. */
export interface HandoffCell {
  readonly type: WireType;
  /** On the wire. */
  readonly bytes: number;
  /** From the request to the last checked byte. */
  readonly ms: number;
  /** Of the sender: packing with CRC; all its CPU time. */
  readonly packMs: number;
  readonly senderCpuMs: number;
  /** Of the receiver: CRC and scattering; all its CPU time. */
  readonly takeMs: number;
  readonly receiverCpuMs: number;
  /** Of float32 values, whatever they travelled as. */
  readonly gbPerSecond: number;
}

export interface HandoffResult {
  readonly cells: readonly HandoffCell[];
}

type Pull = Omit<HandoffCell, 'type' | 'gbPerSecond'>;

export async function measureHandoff(options: HandoffBenchOptions): Promise<HandoffCell[]> {
  const { layout, positions, types, repeats } = options;
  const child = fork(new URL('./handoff-child.js', import.meta.url), [JSON.stringify(layout), String(positions)]);
  const [{ address }] = (await once(child, 'message', { signal: AbortSignal.timeout(TIMEOUT_MS) })) as [
    { address: string },
  ];
  const client = connectKv(address);
  const pool = new KvPool(layout, 1, positions + 1);
  try {
    const pulls = types.map((): Pull[] => []);
    // Repeat -1 touches memory and lets code be compiled.
    for (let repeat = -1; repeat < repeats; repeat++) {
      for (const [i, type] of types.entries()) {
        const sender = once(child, 'message', { signal: AbortSignal.timeout(TIMEOUT_MS) });
        const receiver = await pullOnce(client, pool, type);
        const [{ packMs, cpuMs }] = (await sender) as [{ packMs: number; cpuMs: number }];
        if (repeat >= 0) pulls[i]!.push({ ...receiver, packMs, senderCpuMs: cpuMs });
      }
    }
    const values = positionBytes(layout) * positions;
    return types.map((type, i) => {
      const of = (name: keyof Pull) => median(pulls[i]!.map((pull) => pull[name]));
      const ms = of('ms');
      return {
        ...{ type, bytes: of('bytes'), ms, packMs: of('packMs'), senderCpuMs: of('senderCpuMs') },
        ...{ takeMs: of('takeMs'), receiverCpuMs: of('receiverCpuMs'), gbPerSecond: values / ms / 1e6 },
      };
    });
  } finally {
    client.close();
    child.disconnect();
  }
}

async function pullOnce(client: KvClient, pool: KvPool, type: WireType): Promise<Omit<Pull, 'packMs' | 'senderCpuMs'>> {
  const startMs = performance.now();
  const cpuBefore = process.cpuUsage();
  const receiver = new KvReceiver(pool, 0, '', type);
  let takeMs = 0;
  const request = { leaseId: '', fingerprint: '', dtype: type };
  for await (const frame of client.pull(request, AbortSignal.timeout(TIMEOUT_MS))) {
    if (frame.manifest?.layout) {
      receiver.manifest({ ...frame.manifest, layout: frame.manifest.layout, dtype: frame.manifest.layout.dtype });
    } else if (frame.rows) {
      const takenMs = performance.now();
      receiver.rows(frame.rows);
      takeMs += performance.now() - takenMs;
    } else if (frame.end) receiver.end(frame.end);
  }
  const { user, system } = process.cpuUsage(cpuBefore);
  const ms = performance.now() - startMs;
  return { bytes: receiver.bytes, ms, takeMs, receiverCpuMs: (user + system) / 1000 };
}
