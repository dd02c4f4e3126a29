/**
 * A gRPC server whose methods are async generators and async functions: one AbortSignal a call, aborted when the caller
 * goes; writes wait for the socket; whatever is thrown becomes a coded status. Health and reflection come with it.
 */
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  type handleBidiStreamingCall,
  type handleServerStreamingCall,
  type handleUnaryCall,
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
import { CHANNEL, packageDefinition, protocol } from './contract.ts';
import { PLAINTEXT, type RpcSecurity } from './credentials.ts';
import type { DecodeHandlers } from './gen/llavacode/v1/Decode.ts';
import type { IndexerHandlers } from './gen/llavacode/v1/Indexer.ts';
import type { KvHandlers } from './gen/llavacode/v1/Kv.ts';
import type { PrefillHandlers } from './gen/llavacode/v1/Prefill.ts';
import { toStatus } from './status.ts';

/** Answers one call with a stream; leaving early is an abort of `signal`. */
export type Streaming<Request, Message> = (request: Request, signal: AbortSignal) => AsyncIterable<Message>;

/** As {@link Streaming}, for a call whose request is a stream as well. */
export type Duplex<Request, Message> = (
  requests: AsyncIterable<Request>,
  signal: AbortSignal,
) => AsyncIterable<Message>;

export function streaming<Request, Message>(
  method: Streaming<Request, Message>,
): handleServerStreamingCall<Request, Message> {
  return (call) => answer(call, (signal) => method(call.request, signal));
}

export function duplex<Request, Message>(method: Duplex<Request, Message>): handleBidiStreamingCall<Request, Message> {
  // The call outlives its requests: it still has to say what was wrong with them.
  return (call) => answer(call, (signal) => method(call.iterator({ destroyOnReturn: false }), signal));
}

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
  method: (request: Request) => Promise<Answer>,
): handleUnaryCall<Request, Answer> {
  return (call, done) =>
    method(call.request).then(
      (answer) => done(null, answer),
      (error) => done(toStatus(error)),
    );
}

/** What calls that are cut have to come to their ends. */
const CUT_MS = 500;

export interface RpcServer {
  /** host:port, with the port that was taken. */
  readonly address: string;
  /** What the health service says of the whole server. */
  setServing(serving: boolean): void;
  /**
   * Waits for the calls under way, which is for those that serve to bring to an end: they refuse new work, and still answer
   * whoever comes for what they hold. When `deadline` aborts, they are cut.
   */
  close(deadline: AbortSignal): Promise<void>;
}

interface Mounted {
  /** As reflection lists it. */
  readonly name: string;
  readonly definition: ServiceDefinition;
  readonly methods: UntypedServiceImplementation;
}

const PACKAGE = 'llavacode.v1';
export const mount = {
  prefill: (methods: PrefillHandlers): Mounted => ({
    name: `${PACKAGE}.Prefill`,
    definition: protocol.Prefill.service,
    methods,
  }),
  decode: (methods: DecodeHandlers): Mounted => ({
    name: `${PACKAGE}.Decode`,
    definition: protocol.Decode.service,
    methods,
  }),
  indexer: (methods: IndexerHandlers): Mounted => ({
    name: `${PACKAGE}.Indexer`,
    definition: protocol.Indexer.service,
    methods,
  }),
  kv: (methods: KvHandlers): Mounted => ({ name: `${PACKAGE}.Kv`, definition: protocol.Kv.service, methods }),
};

/** @throws ServingError address_in_use. */
export async function serveRpc(
  host: string,
  port: number,
  services: readonly Mounted[],
  security: RpcSecurity = PLAINTEXT,
): Promise<RpcServer> {
  const server = new Server(CHANNEL);
  const calls = new Set<Promise<unknown>>();
  for (const { definition, methods } of services) server.addService(definition, tracked(methods, calls));
  const health = new HealthImplementation({ '': 'NOT_SERVING' });
  health.addToServer(server);
  new ReflectionService(packageDefinition, { services: services.map(({ name }) => name) }).addToServer(server);
  const bound = await new Promise<number>((resolve, reject) => {
    server.bindAsync(formatHostPort(host, port), security.server, (error, taken) =>
      error
        ? reject(new ServingError('address_in_use', `cannot listen on ${formatHostPort(host, port)}: ${error.message}`))
        : resolve(taken),
    );
  });
  return {
    address: formatHostPort(host, bound),
    setServing: (serving) => health.setStatus('', serving ? 'SERVING' : 'NOT_SERVING'),
    async close(deadline) {
      // Told to go away first, clients would end their calls at the next keepalive (grpc-node issue 3068).
      const over = aborted(deadline);
      while (calls.size > 0 && !deadline.aborted) await Promise.race([Promise.all(calls), over]);
      const closed = new Promise<void>((resolve) => server.tryShutdown(() => resolve()));
      await Promise.race([closed, over]);
      server.forceShutdown();
      // Their signals are aborted: they give back what they hold, such as a lock that would keep others out.
      await Promise.race([Promise.all(calls), sleep(CUT_MS, undefined, { ref: false })]);
    },
  };
}

/** Keeps what the calls of these methods return, as long as they last. */
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
