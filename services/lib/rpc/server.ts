/**
 * A gRPC server whose methods are async generators and async functions. Each call has an AbortSignal, which aborts when
 * the caller goes; writes wait for the socket; every error becomes a coded status. Health and reflection are included.
 */
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  type handleBidiStreamingCall,
  type handleServerStreamingCall,
  type handleUnaryCall,
  type Metadata,
  Server,
  type ServerDuplexStream,
  type ServerWritableStream,
  type ServiceDefinition,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js';
import { ReflectionService } from '@grpc/reflection';
import { HealthImplementation } from 'grpc-health-check';
import { ServingError } from '../process/errors.ts';
import { formatHostPort } from '../process/host-port.ts';
import type { Logger } from '../process/log.ts';
import { listenError } from '../process/os-errors.ts';
import type { TraceHeaders } from '../process/span.ts';
import { isTracing } from '../process/tracing.ts';
import { CHANNEL, packageDefinition, protocol, traceOf } from './contract.ts';
import { PLAINTEXT, type RpcSecurity } from './credentials.ts';
import { type Door, listenForMembers } from './door.ts';
import type { DecodeHandlers } from './gen/llavacode/v1/Decode.ts';
import type { IndexerHandlers } from './gen/llavacode/v1/Indexer.ts';
import type { KvHandlers } from './gen/llavacode/v1/Kv.ts';
import type { KvFrame } from './gen/llavacode/v1/KvFrame.ts';
import type { PrefillHandlers } from './gen/llavacode/v1/Prefill.ts';
import { toStatus } from './status.ts';

/** Answers one call with a stream. `signal` aborts when the caller leaves early; `trace` is the caller's. */
export type Streaming<Request, Message> = (
  request: Request,
  signal: AbortSignal,
  trace: TraceHeaders,
) => AsyncIterable<Message>;

/** Answers one call whose request is a stream as well; otherwise like {@link Streaming}. */
export type Duplex<Request, Message> = (
  requests: AsyncIterable<Request>,
  signal: AbortSignal,
  trace: TraceHeaders,
) => AsyncIterable<Message>;

export function streaming<Request, Message>(
  method: Streaming<Request, Message>,
): handleServerStreamingCall<Request, Message> {
  return (call) => answer(call, (signal) => method(call.request, signal, traceIn(call)));
}

export function duplex<Request, Message>(method: Duplex<Request, Message>): handleBidiStreamingCall<Request, Message> {
  // Requests that are left unread must not end the call: it still has to say what was wrong with them.
  return (call) => answer(call, (signal) => method(call.iterator({ destroyOnReturn: false }), signal, traceIn(call)));
}

const traceIn = ({ metadata }: { readonly metadata: Metadata }): TraceHeaders => (isTracing() ? traceOf(metadata) : {});

async function answer<Request, Message>(
  call: ServerWritableStream<Request, Message> | ServerDuplexStream<Request, Message>,
  start: (signal: AbortSignal) => AsyncIterable<Message>,
): Promise<void> {
  const gone = new AbortController();
  call.on('cancelled', () => gone.abort(new ServingError('client_gone', 'the caller cancelled')));
  try {
    for await (const message of start(gone.signal)) {
      if (gone.signal.aborted) return;
      if (!call.write(message)) await once(call, 'drain', { signal: gone.signal });
    }
    call.end();
  } catch (error) {
    if (!gone.signal.aborted) call.emit('error', toStatus(error));
  }
}

export function unary<Request, Answer>(
  method: (request: Request, trace: TraceHeaders) => Promise<Answer>,
): handleUnaryCall<Request, Answer> {
  return (call, done) =>
    method(call.request, traceIn(call)).then(
      (answer) => done(null, answer),
      (error) => done(toStatus(error)),
    );
}

/** Time in which calls that are cut must end, in ms. */
const CUT_MS = 500;

export interface RpcServer {
  /** host:port, with the port that the server was given. */
  readonly address: string;
  /** Sets the status that the health service reports for the whole server. */
  setServing(serving: boolean): void;
  /**
   * Waits until the running calls have ended. Until then the services go on: they refuse new work by themselves, and
   * still answer calls for what they hold, such as staged KV. When `deadline` aborts, the rest of the calls is cut.
   */
  close(deadline: AbortSignal): Promise<void>;
}

export interface MountedService {
  /** Full name, as reflection lists it. */
  readonly name: string;
  readonly definition: ServiceDefinition;
  readonly methods: UntypedServiceImplementation;
}

/** Serialises one KvFrame; `generated` does so in the usual way. */
type FrameSerializer = (frame: KvFrame, generated: (frame: KvFrame) => Buffer) => Buffer;

function kvDefinition(serializeFrame: FrameSerializer | undefined): ServiceDefinition {
  const { service } = protocol.Kv;
  if (serializeFrame === undefined) return service;
  const generated = service.Pull.responseSerialize;
  return { ...service, Pull: { ...service.Pull, responseSerialize: (frame) => serializeFrame(frame, generated) } };
}

const PACKAGE = 'llavacode.v1';
export const mount = {
  prefill: (methods: PrefillHandlers): MountedService => ({
    name: `${PACKAGE}.Prefill`,
    definition: protocol.Prefill.service,
    methods,
  }),
  decode: (methods: DecodeHandlers): MountedService => ({
    name: `${PACKAGE}.Decode`,
    definition: protocol.Decode.service,
    methods,
  }),
  indexer: (methods: IndexerHandlers): MountedService => ({
    name: `${PACKAGE}.Indexer`,
    definition: protocol.Indexer.service,
    methods,
  }),
  /** @param serializeFrame serialises the frames of Pull in place of the generated serialiser, which it is given. */
  kv: (methods: KvHandlers, serializeFrame?: FrameSerializer): MountedService => ({
    name: `${PACKAGE}.Kv`,
    definition: kvDefinition(serializeFrame),
    methods,
  }),
};

/**
 * @param log says which callers were refused.
 * @throws ServingError address_in_use.
 */
export async function serveRpc(
  host: string,
  port: number,
  services: readonly MountedService[],
  security: RpcSecurity = PLAINTEXT,
  log?: Pick<Logger, 'warn'>,
): Promise<RpcServer> {
  const server = new Server(CHANNEL);
  const calls = new Set<Promise<unknown>>();
  for (const { definition, methods } of services) server.addService(definition, tracked(methods, calls));
  const health = new HealthImplementation({ '': 'NOT_SERVING' });
  health.addToServer(server);
  new ReflectionService(packageDefinition, { services: services.map(({ name }) => name) }).addToServer(server);
  const door = await openDoor(server, host, port, security, log).catch((error: Error) => {
    throw listenError(`--host ${host} --port ${port}`, error);
  });
  return {
    address: formatHostPort(host, door.port),
    setServing: (serving) => health.setStatus('', serving ? 'SERVING' : 'NOT_SERVING'),
    async close(deadline) {
      // Shut down only afterwards: a client that is told to go away ends its calls at the next keepalive (grpc-node
      // issue 3068).
      const over = aborted(deadline);
      while (calls.size > 0 && !deadline.aborted) await Promise.race([Promise.all(calls), over]);
      door.close();
      const closed = new Promise<void>((resolve) => server.tryShutdown(() => resolve()));
      await Promise.race([closed, over]);
      server.forceShutdown();
      // The signals of cut calls are aborted: give them time to release what they hold, such as a lock.
      await Promise.race([Promise.all(calls), sleep(CUT_MS, undefined, { ref: false })]);
    },
  };
}

/** Listens. Where the secret proves connections, the server is given those of members, and listens nowhere itself. */
async function openDoor(
  server: Server,
  host: string,
  port: number,
  security: RpcSecurity,
  log: Pick<Logger, 'warn'> | undefined,
): Promise<Door> {
  if (security.proof === 'secret' && security.secret) {
    const members = server.createConnectionInjector(security.server);
    return listenForMembers(host, port, security.secret, (socket) => members.injectConnection(socket), log);
  }
  const bound = await new Promise<number>((resolve, reject) => {
    server.bindAsync(formatHostPort(host, port), security.server, (error, taken) =>
      error ? reject(error) : resolve(taken),
    );
  });
  return { port: bound, close: () => {} };
}

/** Methods whose running calls are kept in `calls`. */
function tracked(methods: UntypedServiceImplementation, calls: Set<Promise<unknown>>): UntypedServiceImplementation {
  const wrapped = Object.entries(methods).map(([name, handle]) => [
    name,
    (...parameters: unknown[]) => {
      const call = Promise.resolve(Reflect.apply(handle, undefined, parameters));
      calls.add(call);
      void call.finally(() => calls.delete(call));
    },
  ]);
  return Object.fromEntries(wrapped);
}

const aborted = (signal: AbortSignal) =>
  new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
