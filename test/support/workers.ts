/** The real prefill and decode services on real ports, around a {@link FakeEngine}; cleaned up when the test ends. */
import { status } from '@grpc/grpc-js';
import { expect, onTestFinished } from 'vitest';
import { type ColocatedOptions, createColocatedService } from '../../services/colocated/service.ts';
import { KvPuller } from '../../services/decode/kv-puller.ts';
import { RemoteKv } from '../../services/decode/kv-source.ts';
import { createDecodeService, type DecodeOptions } from '../../services/decode/service.ts';
import { PrefixCache } from '../../services/lib/kv/prefix.ts';
import { ERRORS, type ErrorCode } from '../../services/lib/process/errors.ts';
import { createLogger, type Logger } from '../../services/lib/process/log.ts';
import { metrics } from '../../services/lib/process/metrics.ts';
import { GREEDY } from '../../services/lib/request/next-token.ts';
import {
  connectDecode,
  connectKv,
  connectPrefill,
  type DecodeClient,
  type PrefillClient,
} from '../../services/lib/rpc/contract.ts';
import type { DecodeEvent__Output } from '../../services/lib/rpc/gen/llavacode/v1/DecodeEvent.ts';
import type { DecodeRequest } from '../../services/lib/rpc/gen/llavacode/v1/DecodeRequest.ts';
import type { KvHandle__Output } from '../../services/lib/rpc/gen/llavacode/v1/KvHandle.ts';
import type { PrefillEvent__Output } from '../../services/lib/rpc/gen/llavacode/v1/PrefillEvent.ts';
import type { PrefillRequest } from '../../services/lib/rpc/gen/llavacode/v1/PrefillRequest.ts';
import { samplingMessage } from '../../services/lib/rpc/messages.ts';
import { serveRpc } from '../../services/lib/rpc/server.ts';
import { LeaseTable } from '../../services/prefill/leases.ts';
import { createPrefillService, type PrefillOptions } from '../../services/prefill/service.ts';
import { FakeEngine, until } from './fake-engine.ts';

export const FINGERPRINT = 'f'.repeat(64);
export const NEVER = new AbortController().signal;
const CUT = AbortSignal.abort();
const SILENT = createLogger('test', 'silent');

/** Matches an error of this code that came over gRPC with the status of the error table. */
export const refusal = (code: ErrorCode, message = '') =>
  expect.objectContaining({
    code,
    message: expect.stringContaining(message),
    cause: expect.objectContaining({ code: status[ERRORS[code].grpc as keyof typeof status] }),
  });

export const stagedBytes = async () => (await metrics.stagedBytes.get()).values[0]?.value;

export async function startPrefill(
  {
    kvLeaseMs = 60_000,
    log = SILENT,
    ...change
  }: Partial<PrefillOptions> & { readonly kvLeaseMs?: number; readonly log?: Logger } = {},
  engine = new FakeEngine(),
) {
  const options: PrefillOptions = {
    model: 'fake',
    fingerprint: FINGERPRINT,
    device: 'cpu',
    chunkTokens: () => 4,
    queueTokens: 1000,
    queueOrder: 'fifo',
    draining: NEVER,
    address: () => server.address,
    ...change,
  };
  const prefixes = new PrefixCache(engine.pool);
  const leases = new LeaseTable(engine.pool, prefixes, kvLeaseMs);
  const service = createPrefillService({ engine, prefixes, leases, log }, options);
  const server = await serveRpc('127.0.0.1', 0, service.mounts);
  const client = connectPrefill(server.address);
  const kv = connectKv(server.address);
  onTestFinished(async ({ task }) => {
    // After every test nothing is left behind, without any help from the shutdown.
    if (task.result?.state === 'pass')
      await until(async () => engine.pool.reserved === 0 && (await stagedBytes()) === 0);
    client.close();
    kv.close();
    await server.close(CUT);
  });
  return { engine, client, kv, server, warmUp: service.warmUp };
}

export async function startDecode(
  { queueSequences = 100, ...change }: Partial<DecodeOptions> & { readonly queueSequences?: number } = {},
  engine = new FakeEngine(),
) {
  const puller = new KvPuller(engine.pool, FINGERPRINT, SILENT);
  const source = new RemoteKv(engine.pool, puller, queueSequences);
  const options = {
    model: 'fake',
    fingerprint: FINGERPRINT,
    device: 'cpu',
    source,
    draining: NEVER,
    log: SILENT,
    ...change,
  };
  const service = createDecodeService(engine, options);
  const server = await serveRpc('127.0.0.1', 0, service.mounts);
  const client = connectDecode(server.address);
  const stop = async () => {
    client.close();
    puller.close();
    await server.close(CUT);
  };
  onTestFinished(async ({ task }) => {
    if (task.result?.state === 'pass') await until(() => engine.pool.reserved === 0);
    await stop();
  });
  /** `stop` is for tests that start many workers. */
  return { engine, client, server, stop };
}

/** Both services around one engine, at one address. */
export async function startColocated(change: Partial<ColocatedOptions> = {}, engine = new FakeEngine()) {
  const puller = new KvPuller(engine.pool, FINGERPRINT, SILENT);
  const options: ColocatedOptions = {
    model: 'fake',
    fingerprint: FINGERPRINT,
    device: 'cpu',
    prefillChunkTokens: 8,
    sharedChunkTokens: 4,
    queueTokens: 1000,
    queueOrder: 'fifo',
    queueSequences: 100,
    kvLeaseMs: 60_000,
    draining: NEVER,
    address: () => server.address,
    ...change,
  };
  const service = createColocatedService({ session: engine, puller, log: SILENT }, options);
  const server = await serveRpc('127.0.0.1', 0, service.mounts);
  const client = connectPrefill(server.address);
  const decoder = connectDecode(server.address);
  const kv = connectKv(server.address);
  const stop = async () => {
    client.close();
    decoder.close();
    kv.close();
    puller.close();
    await server.close(CUT);
  };
  onTestFinished(async ({ task }) => {
    if (task.result?.state === 'pass')
      await until(async () => engine.pool.reserved === 0 && (await stagedBytes()) === 0);
    await stop();
  });
  /** `stop` is for tests that start many workers. */
  return { engine, client, decoder, kv, server, stop };
}

export const prefillRequest = (tokenIds: readonly number[], change: PrefillRequest = {}): PrefillRequest => ({
  requestId: 'r',
  fingerprint: FINGERPRINT,
  tokenIds: [...tokenIds],
  choices: [samplingMessage(GREEDY)],
  readers: 1,
  promptLogprobs: -1,
  ...change,
});

/** Begins a prompt. Resolves when it has its slot. */
export async function begin(client: PrefillClient, request: PrefillRequest, signal = new AbortController().signal) {
  const events = client.prefill(request, signal)[Symbol.asyncIterator]();
  const next = async (): Promise<PrefillEvent__Output | undefined> => (await events.next()).value;
  const kv = (await next())?.accepted?.kv as KvHandle__Output;
  const firstEvent = async () => (await next())?.first;
  return {
    kv,
    firstEvent,
    /** The prompt's first tokens, one per choice. */
    first: async () => (await firstEvent())?.tokens.map(({ id }) => id) ?? [],
    /** Resolves when the KV has been handed over. */
    released: async () => {
      expect((await next())?.released).toEqual({});
      expect(await next()).toBeUndefined();
    },
  };
}

export const decodeRequest = (kv: KvHandle__Output, maxTokens: number, change: DecodeRequest = {}): DecodeRequest => ({
  requestId: 'r',
  kv,
  choice: 0,
  sampling: samplingMessage(GREEDY),
  maxTokens,
  ...change,
});

/** Decodes to the end. */
export async function decode(client: DecodeClient, request: DecodeRequest, signal = new AbortController().signal) {
  let joined: DecodeEvent__Output['joined'] = null;
  const tokens: number[] = [];
  const finishReasons: string[] = [];
  for await (const event of client.decode(request, signal)) {
    joined ??= event.joined ?? null;
    if (!event.step) continue;
    tokens.push(...event.step.tokens.map(({ id }) => id));
    finishReasons.push(event.step.finishReason);
  }
  // Only the last step has a reason to finish.
  expect(finishReasons.slice(0, -1).every((reason) => reason === '')).toBe(true);
  return { joined, tokens, finishReason: finishReasons.at(-1) };
}
