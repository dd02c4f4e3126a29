/**
 * `bench handoff` moves a KV cache from one process to another on the product's own path: pack, CRC, gRPC on loopback,
 * check, scatter. There is no model: the sender's pools are filled once, and every pull overwrites the receiver's. Int8
 * values with scales of the bundle travel as they lie, from pools of their own; all other types are made of float32.
 */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { CpuKvStore } from '../../services/lib/kv/cpu-store.ts';
import { KvReceiver } from '../../services/lib/kv/handoff.ts';
import { type KvLayout, positionBytes } from '../../services/lib/kv/layout.ts';
import type { WireType } from '../../services/lib/kv/wire.ts';
import { connectKv, type KvClient } from '../../services/lib/rpc/contract.ts';
import { median } from '../measure/statistics.ts';
import type { HandoffOptions } from './command.ts';

const TIMEOUT_MS = 60_000;

/** Medians over the repeats of one wire type. */
interface HandoffCell {
  readonly type: WireType;
  /** Bytes on the wire. */
  readonly bytes: number;
  /** Time from the request to the last checked byte. */
  readonly ms: number;
  /** The sender's time for packing with CRC, and the CPU time of all its threads. */
  readonly packMs: number;
  readonly senderCpuMs: number;
  /** The receiver's time for CRC and scattering, and the CPU time of all its threads. */
  readonly takeMs: number;
  readonly receiverCpuMs: number;
  /** Gigabytes per second, counted as float32 values whatever type they travel as. */
  readonly gbPerSecond: number;
}

export interface HandoffResult {
  readonly cells: readonly HandoffCell[];
}

type PullFigures = Omit<HandoffCell, 'type' | 'gbPerSecond'>;

export async function measureHandoff(
  { layers, kvHeads, headDim, positions, repeats }: HandoffOptions,
  types: readonly WireType[],
): Promise<HandoffCell[]> {
  const layout: KvLayout = { layers, kvHeads, headDim };
  const child = fork(new URL('./handoff-child.js', import.meta.url), [JSON.stringify(layout), String(positions)]);
  const [{ address }] = (await once(child, 'message', { signal: AbortSignal.timeout(TIMEOUT_MS) })) as [
    { address: string },
  ];
  const client = connectKv(address);
  const store = new CpuKvStore(layout, 1, positions + 1);
  const levels = new CpuKvStore({ ...layout, type: 'int8-channel' }, 1, positions + 1);
  try {
    const pulls = types.map((): PullFigures[] => []);
    // Repeat -1 is not counted: it touches memory, and code is compiled.
    for (let repeat = -1; repeat < repeats; repeat++) {
      for (const [i, type] of types.entries()) {
        const sender = once(child, 'message', { signal: AbortSignal.timeout(TIMEOUT_MS) });
        const receiver = await pullOnce(client, type === 'int8-channel' ? levels : store, type);
        const [{ packMs, cpuMs }] = (await sender) as [{ packMs: number; cpuMs: number }];
        if (repeat >= 0) pulls[i]!.push({ ...receiver, packMs, senderCpuMs: cpuMs });
      }
    }
    const values = positionBytes(layout) * positions;
    return types.map((type, i) => {
      const of = (name: keyof PullFigures) => median(pulls[i]!.map((pull) => pull[name]));
      const ms = of('ms');
      return {
        type,
        bytes: of('bytes'),
        ms,
        packMs: of('packMs'),
        senderCpuMs: of('senderCpuMs'),
        takeMs: of('takeMs'),
        receiverCpuMs: of('receiverCpuMs'),
        gbPerSecond: values / ms / 1e6,
      };
    });
  } finally {
    client.close();
    child.disconnect();
  }
}

async function pullOnce(
  client: KvClient,
  store: CpuKvStore,
  type: WireType,
): Promise<Omit<PullFigures, 'packMs' | 'senderCpuMs'>> {
  const startMs = performance.now();
  const cpuBefore = process.cpuUsage();
  const receiver = new KvReceiver(store, 0, '', type);
  let takeMs = 0;
  const request = { leaseId: '', fingerprint: '', dtype: type };
  for await (const frame of client.pull(request, AbortSignal.timeout(TIMEOUT_MS))) {
    if (frame.manifest?.layout) {
      receiver.manifest({ ...frame.manifest, layout: frame.manifest.layout, dtype: frame.manifest.layout.dtype });
    } else if (frame.rows) {
      const takenMs = performance.now();
      const written = receiver.rows(frame.rows);
      if (written) await written;
      takeMs += performance.now() - takenMs;
    } else if (frame.end) receiver.end(frame.end);
  }
  const { user, system } = process.cpuUsage(cpuBefore);
  const ms = performance.now() - startMs;
  return { bytes: receiver.bytes, ms, takeMs, receiverCpuMs: (user + system) / 1000 };
}
