/**
 * The sending process of `bench handoff`: like a prefill worker without a model, it holds a KV cache that can be
 * pulled.
 */
import { CpuKvStore } from '../../services/lib/kv/cpu-store.ts';
import { KvSender } from '../../services/lib/kv/handoff.ts';
import type { KvLayout } from '../../services/lib/kv/layout.ts';
import { readWireType } from '../../services/lib/kv/wire.ts';
import type { KvFrame } from '../../services/lib/rpc/gen/llavacode/v1/KvFrame.ts';
import type { PullRequest__Output } from '../../services/lib/rpc/gen/llavacode/v1/PullRequest.ts';
import { mount, serveRpc, streaming, unary } from '../../services/lib/rpc/server.ts';

const [layoutText = '', positionsText = ''] = process.argv.slice(2);
const layout = JSON.parse(layoutText) as KvLayout;
const positions = Number(positionsText);
const store = new CpuKvStore(layout, 1, positions + 1);
const levels = new CpuKvStore({ ...layout, type: 'int8-channel' }, 1, positions + 1);
for (const [pool, most] of [
  [store, 4],
  [levels, 127],
] as const) {
  for (const { key, value } of pool.layers) {
    for (const tensor of [key, value]) for (let i = 0; i < tensor.length; i++) tensor[i] = Math.sin(i) * most;
  }
}

async function* pull(request: PullRequest__Output): AsyncGenerator<KvFrame> {
  const dtype = readWireType(request.dtype);
  yield { manifest: { fingerprint: request.fingerprint, layout: { ...layout, dtype }, positions } };
  const sender = new KvSender(dtype === 'int8-channel' ? levels : store, 0, dtype);
  const cpuBefore = process.cpuUsage();
  let packMs = 0;
  const frames = sender.pack(0, positions);
  for (;;) {
    const startMs = performance.now();
    const next = await frames.next();
    packMs += performance.now() - startMs;
    if (next.done) break;
    yield { rows: next.value };
  }
  const { user, system } = process.cpuUsage(cpuBefore);
  process.send?.({ packMs, cpuMs: (user + system) / 1000 });
  yield { end: { ...sender.end([0]), afterPrefillUs: 0 } };
}

const server = await serveRpc('127.0.0.1', 0, [
  mount.kv({ Pull: streaming(pull), Renew: unary(async () => ({})), Release: unary(async () => ({ readersLeft: 0 })) }),
]);
process.send?.({ address: server.address });
process.on('disconnect', () => process.exit(0));
