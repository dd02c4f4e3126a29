/**
 * The services of protos/llavacode/v1 as a caller sees them: async iterables and promises, each with an AbortSignal.
 * Every failure is a ServingError. `npm run build:rpc` generates the types of the messages.
 */
import { once } from 'node:events';
import { join } from 'node:path';
import {
  type ChannelOptions,
  type Client,
  type ClientDuplexStream,
  type ClientReadableStream,
  loadPackageDefinition,
  Metadata,
  type MetadataOptions,
} from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { PACKAGE_ROOT } from '../process/package-root.ts';
import type { TraceHeaders } from '../process/span.ts';
import { Connections } from './connections.ts';
import { PLAINTEXT, type RpcSecurity } from './credentials.ts';
import type { ProtoGrpcType as DecodeProto } from './gen/decode.ts';
import type { ProtoGrpcType as IndexerProto } from './gen/indexer.ts';
import type { DecodeEvent__Output } from './gen/llavacode/v1/DecodeEvent.ts';
import type { DecodeRequest } from './gen/llavacode/v1/DecodeRequest.ts';
import type { DeleteRequest } from './gen/llavacode/v1/DeleteRequest.ts';
import type { EncodeRequest } from './gen/llavacode/v1/EncodeRequest.ts';
import type { EncodeResponse__Output } from './gen/llavacode/v1/EncodeResponse.ts';
import type { IndexEvent__Output } from './gen/llavacode/v1/IndexEvent.ts';
import type { IndexerDescription__Output } from './gen/llavacode/v1/IndexerDescription.ts';
import type { IndexRequest } from './gen/llavacode/v1/IndexRequest.ts';
import type { KvFrame__Output } from './gen/llavacode/v1/KvFrame.ts';
import type { PrefillEvent__Output } from './gen/llavacode/v1/PrefillEvent.ts';
import type { PrefillRequest } from './gen/llavacode/v1/PrefillRequest.ts';
import type { PullRequest } from './gen/llavacode/v1/PullRequest.ts';
import type { ReembedRequest } from './gen/llavacode/v1/ReembedRequest.ts';
import type { ReembedResponse__Output } from './gen/llavacode/v1/ReembedResponse.ts';
import type { WorkerDescription__Output } from './gen/llavacode/v1/WorkerDescription.ts';
import type { ProtoGrpcType as PrefillProto } from './gen/prefill.ts';
import { fromStatus } from './status.ts';

/** The parsed protos, from which servers take their services and reflection. */
export const packageDefinition = loadSync(
  ['prefill', 'decode', 'indexer'].map((name) => `llavacode/v1/${name}.proto`),
  { includeDirs: [join(PACKAGE_ROOT, 'protos')], longs: Number, enums: String, defaults: true, oneofs: true },
);
type Protos = PrefillProto & DecodeProto & IndexerProto;
export const protocol = (loadPackageDefinition(packageDefinition) as unknown as Protos).llavacode.v1;

export const CHANNEL: ChannelOptions = {
  'grpc.max_receive_message_length': 64 << 20,
  'grpc.max_send_message_length': 64 << 20,
  // KV frames of 1 MiB stream at 1.67 GB/s on loopback with this window.
  'grpc-node.flow_control_window': 16 << 20,
  // A peer whose machine has failed is noticed within 15 s.
  'grpc.keepalive_time_ms': 10_000,
  'grpc.keepalive_timeout_ms': 5_000,
  'grpc.keepalive_permit_without_calls': 1,
  // A worker that comes back is found within a second, however long it was away; connections.ts has the case of a
  // network that loses packets without a sign.
  'grpc.initial_reconnect_backoff_ms': 100,
  'grpc.max_reconnect_backoff_ms': 1_000,
  // An indexer that comes back at another address is found as soon as the name server tells of it, not after 30 s.
  'grpc.dns_min_time_between_resolutions_ms': 1_000,
  // Otherwise each look at a name also asks for a TXT record, by which whoever answers could configure our calls.
  'grpc.service_config_disable_resolution': 1,
};

/** For calls to the indexer: they wait while it is unreachable, since there is no other one to send them to. */
const WAIT_FOR_READY = new Metadata({ waitForReady: true });

function metadataOf(trace: TraceHeaders = {}, options: MetadataOptions = {}): Metadata {
  const metadata = new Metadata(options);
  for (const [name, value] of Object.entries(trace)) if (typeof value === 'string') metadata.set(name, value);
  return metadata;
}

/** The trace that the metadata of a call names. */
export const traceOf = (metadata: Metadata): TraceHeaders =>
  Object.fromEntries(TRACE_KEYS.map((key) => [key, metadata.get(key)[0]?.toString()]));
const TRACE_KEYS = ['traceparent', 'tracestate'];

/**
 * Gives each client its own connection; connections.ts says why. A channel never goes through a proxy: grpc-js would
 * follow the environment (http_proxy, https_proxy, grpc_proxy), which is meant for the internet, not for the inside of
 * one system.
 */
const optionsOf = ({ channelOptions }: RpcSecurity): ChannelOptions => ({
  ...CHANNEL,
  ...channelOptions,
  'grpc.enable_http_proxy': 0,
  'grpc.use_local_subchannel_pool': 1,
});

export interface PrefillClient {
  /**
   * Stays open until the KV has been handed over.
   * @param deadlineMs the worker is told of it and gives up by itself then; in ms of our monotonic clock.
   * @param trace goes along as metadata, so that the worker's spans belong to the caller's trace.
   */
  prefill(
    request: PrefillRequest,
    signal: AbortSignal,
    deadlineMs?: number,
    trace?: TraceHeaders,
  ): AsyncIterable<PrefillEvent__Output>;
  describe(signal: AbortSignal): Promise<WorkerDescription__Output>;
  close(): void;
}

export interface DecodeClient {
  /** @param deadlineMs and trace as for {@link PrefillClient.prefill}. */
  decode(
    request: DecodeRequest,
    signal: AbortSignal,
    deadlineMs?: number,
    trace?: TraceHeaders,
  ): AsyncIterable<DecodeEvent__Output>;
  describe(signal: AbortSignal): Promise<WorkerDescription__Output>;
  close(): void;
}

export interface KvClient {
  pull(request: PullRequest, signal: AbortSignal, trace?: TraceHeaders): AsyncIterable<KvFrame__Output>;
  release(leaseId: string, signal: AbortSignal): Promise<void>;
  renew(leaseId: string, signal: AbortSignal): Promise<void>;
  close(): void;
}

export interface IndexerClient {
  /**
   * Sends the requests while it yields the events. When the call ends early, the rest of the requests is read and
   * dropped, so that their sender can finish.
   */
  index(
    requests: AsyncIterable<IndexRequest>,
    signal: AbortSignal,
    trace?: TraceHeaders,
  ): AsyncIterable<IndexEvent__Output>;
  delete(request: DeleteRequest, signal: AbortSignal): Promise<void>;
  /** Does not wait for an indexer that is away: whoever asks goes on without. */
  encode(request: EncodeRequest, signal: AbortSignal, trace?: TraceHeaders): Promise<EncodeResponse__Output>;
  /** Encodes some of the chunks of a side index; to be called until nothing is left. Does not wait either. */
  reembed(request: ReembedRequest, signal: AbortSignal): Promise<ReembedResponse__Output>;
  describe(signal: AbortSignal): Promise<IndexerDescription__Output>;
  close(): void;
}

/** @param onBroken called when a connection that was there has broken. */
export function connectPrefill(
  address: string,
  security: RpcSecurity = PLAINTEXT,
  onBroken?: () => void,
): PrefillClient {
  const connect = () => new protocol.Prefill(address, security.channel, optionsOf(security));
  const peer = new Connections(address, connect, { onBroken });
  return {
    prefill: (request, signal, deadlineMs, trace) =>
      stream(peer, signal, (client) => client.prefill(request, metadataOf(trace), { deadline: dateOf(deadlineMs) })),
    describe: (signal) => unary(peer, signal, (client, done) => client.describe({}, done)),
    close: () => peer.close(),
  };
}

/** @param onBroken as of {@link connectPrefill}. */
export function connectDecode(address: string, security: RpcSecurity = PLAINTEXT, onBroken?: () => void): DecodeClient {
  const connect = () => new protocol.Decode(address, security.channel, optionsOf(security));
  const peer = new Connections(address, connect, { onBroken });
  return {
    decode: (request, signal, deadlineMs, trace) =>
      stream(peer, signal, (client) => client.decode(request, metadataOf(trace), { deadline: dateOf(deadlineMs) })),
    describe: (signal) => unary(peer, signal, (client, done) => client.describe({}, done)),
    close: () => peer.close(),
  };
}

export function connectKv(address: string, security: RpcSecurity = PLAINTEXT): KvClient {
  const peer = new Connections(address, () => new protocol.Kv(address, security.channel, optionsOf(security)));
  return {
    pull: (request, signal, trace) => stream(peer, signal, (client) => client.pull(request, metadataOf(trace))),
    release: async (leaseId, signal) => {
      await unary(peer, signal, (client, done) => client.release({ leaseId }, done));
    },
    renew: async (leaseId, signal) => {
      await unary(peer, signal, (client, done) => client.renew({ leaseId }, done));
    },
    close: () => peer.close(),
  };
}

export function connectIndexer(address: string, security: RpcSecurity = PLAINTEXT): IndexerClient {
  const connect = () => new protocol.Indexer(address, security.channel, optionsOf(security));
  const peer = new Connections(address, connect, { quotesClient: true });
  return {
    index: (requests, signal, trace) =>
      exchange(peer, signal, requests, (client) => client.index(metadataOf(trace, { waitForReady: true }))),
    delete: async (request, signal) => {
      await unary(peer, signal, (client, done) => client.delete(request, WAIT_FOR_READY, done));
    },
    encode: (request, signal, trace) =>
      unary(peer, signal, (client, done) => client.encode(request, metadataOf(trace), done)),
    reembed: (request, signal) => unary(peer, signal, (client, done) => client.reembed(request, done)),
    describe: (signal) => unary(peer, signal, (client, done) => client.describe({}, WAIT_FOR_READY, done)),
    close: () => peer.close(),
  };
}

/**
 * A deadline as gRPC wants it, by the wall clock; gRPC turns it back into the remaining time at once. It is computed at
 * the moment of the call: with an older one, a wall clock that was set meanwhile would end the call at once, or never.
 */
const dateOf = (deadlineMs: number | undefined) =>
  deadlineMs === undefined ? undefined : Date.now() + deadlineMs - performance.now();

/** A stream in both directions. A failure of `requests` cancels the call and is thrown. */
async function* exchange<C extends Client, Request, T>(
  peer: Connections<C>,
  signal: AbortSignal,
  requests: AsyncIterable<Request>,
  start: (client: C) => ClientDuplexStream<Request, T>,
): AsyncGenerator<T, void, undefined> {
  const over = new AbortController();
  const live = AbortSignal.any([signal, over.signal]);
  const send = async (call: ClientDuplexStream<Request, T>) => {
    for await (const request of requests) {
      if (live.aborted) continue;
      if (!call.write(request)) await once(call, 'drain', { signal: live }).catch(() => {});
    }
    if (!live.aborted) call.end();
  };
  try {
    yield* stream(peer, live, (client) => {
      const call = start(client);
      send(call).catch((error) => over.abort(error));
      return call;
    });
  } finally {
    over.abort();
  }
}

/** A stream from the server. Aborting the signal or leaving the loop cancels the call. */
async function* stream<C extends Client, T>(
  peer: Connections<C>,
  signal: AbortSignal,
  start: (client: C) => ClientReadableStream<T>,
): AsyncGenerator<T, void, undefined> {
  signal.throwIfAborted();
  const { client, release } = peer.acquire();
  const call = start(client);
  let ended = false;
  call.once('status', () => {
    ended = true;
  });
  const cancel = () => call.cancel();
  signal.addEventListener('abort', cancel, { once: true });
  try {
    for await (const message of call) {
      signal.throwIfAborted();
      yield message as T;
    }
  } catch (error) {
    signal.throwIfAborted();
    throw fromStatus(error, peer.address, peer.quotesClient);
  } finally {
    signal.removeEventListener('abort', cancel);
    call.on('error', () => {}); // a cancelled call reports itself once more
    call.cancel();
    release(!ended || signal.aborted);
  }
}

function unary<C extends Client, T>(
  peer: Connections<C>,
  signal: AbortSignal,
  start: (client: C, done: (error: Error | null, answer?: T) => void) => { cancel(): void },
): Promise<T> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(signal.reason);
    const { client, release } = peer.acquire();
    const cancel = () => call.cancel();
    const call = start(client, (error, answer) => {
      signal.removeEventListener('abort', cancel);
      release(signal.aborted);
      if (error || answer === undefined)
        reject(signal.aborted ? signal.reason : fromStatus(error, peer.address, peer.quotesClient));
      else resolve(answer);
    });
    signal.addEventListener('abort', cancel, { once: true });
  });
}
