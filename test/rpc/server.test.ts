/** Real gRPC on a free port, with made-up methods. */
import { Client, credentials } from '@grpc/grpc-js';
import { afterEach, describe, expect, test } from 'vitest';
import { ServingError } from '../../services/lib/process/errors.ts';
import { connectDecode, connectKv, connectPrefill, protocol } from '../../services/lib/rpc/contract.ts';
import type { DecodeEvent } from '../../services/lib/rpc/gen/llavacode/v1/DecodeEvent.ts';
import type { DecodeRequest__Output } from '../../services/lib/rpc/gen/llavacode/v1/DecodeRequest.ts';
import type { WorkerDescription } from '../../services/lib/rpc/gen/llavacode/v1/WorkerDescription.ts';
import { mount, type RpcServer, type Streaming, serveRpc, streaming, unary } from '../../services/lib/rpc/server.ts';
import { gate } from '../support/fake-engine.ts';

const NEVER = new AbortController().signal;
const DESCRIPTION: WorkerDescription = { role: 'decode', model: 'm', fingerprint: 'f', slots: 3 };

const cleanups: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

async function serve(
  decode: Streaming<DecodeRequest__Output, DecodeEvent>,
  describeWorker = async () => DESCRIPTION,
): Promise<RpcServer> {
  const server = await serveRpc('127.0.0.1', 0, [
    mount.decode({ Decode: streaming(decode), Describe: unary(describeWorker) }),
  ]);
  cleanups.push(() => server.close(AbortSignal.abort()));
  return server;
}

function client(server: RpcServer) {
  const connected = connectDecode(server.address);
  cleanups.push(() => connected.close());
  return connected;
}

async function collect<T>(stream: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const message of stream) all.push(message);
  return all;
}

const stepOf = (id: number): DecodeEvent => ({ step: { tokens: [{ id }], finishReason: '' } });

describe('a stream', () => {
  test('a stream arrives whole and in order', async () => {
    const server = await serve(async function* (request) {
      for (let id = 0; id < request.maxTokens; id++) yield stepOf(id);
    });
    const ids: (number | undefined)[] = [];
    for await (const { step } of client(server).decode({ maxTokens: 500 }, NEVER)) ids.push(step?.tokens[0]?.id);
    expect(ids).toEqual(Array.from({ length: 500 }, (_, i) => i));
  });

  test('a stream ends at its deadline for both sides without being cancelled', async () => {
    const stopped = gate();
    let began = false;
    const server = await serve(async function* (_, signal) {
      began = true;
      signal.addEventListener('abort', stopped.open);
      yield stepOf(1);
      await stopped.opened;
    });
    const prefill = connectPrefill(server.address);
    cleanups.push(() => prefill.close());
    const caller = client(server);
    // On a busy machine a short deadline may pass before the call reaches the server.
    for (let ms = 100; !began; ms *= 2) {
      const stream = caller.decode({}, NEVER, performance.now() + ms);
      await expect(collect(stream)).rejects.toMatchObject({ code: 'deadline_exceeded' });
    }
    await stopped.opened;
    const late = prefill.prefill({}, NEVER, performance.now() - 1);
    await expect(collect(late)).rejects.toMatchObject({ code: 'deadline_exceeded' });
  });

  test("an abort by the caller aborts the server's signal, and the caller gets the reason", async () => {
    const serverGone = gate();
    let reason: unknown;
    const server = await serve(async function* (_, signal) {
      signal.addEventListener('abort', () => {
        reason = signal.reason;
        serverGone.open();
      });
      yield stepOf(1);
      await serverGone.opened;
    });
    const caller = new AbortController();
    const stream = client(server).decode({}, caller.signal)[Symbol.asyncIterator]();
    await stream.next();
    const next = stream.next();
    const mine = new Error('hung up');
    caller.abort(mine);
    await expect(next).rejects.toBe(mine);
    await serverGone.opened;
    expect(reason).toMatchObject({ code: 'client_gone' });
  });

  test("the server's method ends when the caller leaves the stream", async () => {
    const left = gate();
    const server = await serve(async function* () {
      try {
        for (let id = 0; ; id++) yield stepOf(id);
      } finally {
        left.open();
      }
    });
    for await (const { step } of client(server).decode({}, NEVER)) if (step?.tokens[0]?.id === 3) break;
    await left.opened;
  });

  test('a stream whose caller does not read produces no more than its buffers hold', async () => {
    const data = Buffer.alloc(1 << 20);
    let produced = 0;
    const left = gate();
    const server = await serveRpc('127.0.0.1', 0, [
      mount.kv({
        Pull: streaming(async function* () {
          try {
            for (; produced < 10_000; produced++) yield { rows: { data } };
          } finally {
            left.open();
          }
        }),
        Renew: unary(async () => ({})),
        Release: unary(async () => ({})),
      }),
    ]);
    cleanups.push(() => server.close(AbortSignal.abort()));
    const kv = connectKv(server.address);
    cleanups.push(() => kv.close());
    for await (const _ of kv.pull({}, NEVER)) break;
    await left.opened;
    expect(produced).toBeLessThan(200);
  });

  test('no running call is lost when thousands of others are cancelled', async () => {
    const server = await serve(async function* () {
      for (let id = 0; ; id++) yield stepOf(id);
    });
    const caller = client(server);
    const long = caller.decode({}, NEVER)[Symbol.asyncIterator]();
    for (let i = 0; i < 1500; i++) {
      for await (const { step } of caller.decode({}, NEVER)) if (step) break;
      if (i % 100 === 0) expect((await long.next()).done).toBe(false);
    }
    expect((await long.next()).done).toBe(false);
    await long.return?.(undefined);
  });

  test('no call is made with a signal that is aborted already', async () => {
    let calls = 0;
    const server = await serve(async function* () {
      calls++;
      yield stepOf(1);
    });
    const mine = new Error('hung up');
    const stream = client(server).decode({}, AbortSignal.abort(mine));
    await expect(stream[Symbol.asyncIterator]().next()).rejects.toBe(mine);
    await expect(client(server).describe(AbortSignal.abort(mine))).rejects.toBe(mine);
    expect(calls).toBe(0);
  });
});

describe('errors', () => {
  test('an error arrives with code, message and Retry-After, after the messages sent before it', async () => {
    const thrown = new ServingError('saturated', 'zu viele: größer als 100 % "ü"\nline 2', { retryAfterSeconds: 4 });
    const server = await serve(async function* () {
      yield stepOf(1);
      yield stepOf(2);
      throw thrown;
    });
    const ids: (number | undefined)[] = [];
    const reading = (async () => {
      for await (const { step } of client(server).decode({}, NEVER)) ids.push(step?.tokens[0]?.id);
    })();
    await expect(reading).rejects.toMatchObject({ code: 'saturated', message: thrown.message, retryAfterSeconds: 4 });
    expect(ids).toEqual([1, 2]);
  });

  test('errors of unary methods arrive, and errors of any type', async () => {
    const describeWorker = async () => {
      throw new Error('a bug');
    };
    const server = await serve(async function* () {}, describeWorker);
    await expect(client(server).describe(NEVER)).rejects.toMatchObject({ code: 'internal', message: 'a bug' });
  });

  test('a unary call that is aborted ends with the reason', async () => {
    const arrived = gate();
    const answer = gate();
    const server = await serve(
      async function* () {},
      async () => {
        arrived.open();
        await answer.opened;
        return DESCRIPTION;
      },
    );
    const caller = new AbortController();
    const call = client(server).describe(caller.signal);
    await arrived.opened;
    const mine = new Error('hung up');
    caller.abort(mine);
    await expect(call).rejects.toBe(mine);
    answer.open();
  });

  test('an address where nothing listens gives worker_lost and is named', async () => {
    const server = await serve(async function* () {});
    await server.close(AbortSignal.abort());
    const gone = client(server);
    const failure = { code: 'worker_lost', message: expect.stringContaining(server.address) };
    await expect(gone.describe(NEVER)).rejects.toMatchObject(failure);
    await expect(gone.decode({}, NEVER)[Symbol.asyncIterator]().next()).rejects.toMatchObject(failure);
  });

  test('a port that is taken gives address_in_use', async () => {
    const server = await serve(async function* () {});
    const port = Number(server.address.split(':').at(-1));
    await expect(serveRpc('127.0.0.1', port, [])).rejects.toMatchObject({ code: 'address_in_use' });
  });
});

describe('closing', () => {
  test('closing waits for running calls', async () => {
    const finish = gate();
    const server = await serve(async function* () {
      yield stepOf(1);
      await finish.opened;
      yield stepOf(2);
    });
    const stream = client(server).decode({}, NEVER)[Symbol.asyncIterator]();
    await stream.next();
    const closing = server.close(NEVER);
    finish.open();
    expect((await stream.next()).value?.step?.tokens[0]?.id).toBe(2);
    expect((await stream.next()).done).toBe(true);
    await closing;
  });

  test('closing cuts running calls at the deadline, and their callers see a lost worker', async () => {
    const aborted = gate();
    const server = await serve(async function* (_, signal) {
      signal.addEventListener('abort', () => aborted.open());
      yield stepOf(1);
      await aborted.opened;
    });
    const stream = client(server).decode({}, NEVER)[Symbol.asyncIterator]();
    await stream.next();
    const deadline = new AbortController();
    const closing = server.close(deadline.signal);
    const next = stream.next();
    deadline.abort();
    await closing;
    await aborted.opened;
    await expect(next).rejects.toMatchObject({ code: 'worker_lost' });
  });
});

describe('standard services', () => {
  const bytes = (message: Buffer) => message;
  const raw = (server: RpcServer) => {
    const client = new Client(server.address, credentials.createInsecure());
    cleanups.push(() => client.close());
    return client;
  };

  test('the health service reports what the process set', async () => {
    const server = await serve(async function* () {});
    const client = raw(server);
    const check = () =>
      new Promise<number | undefined>((resolve, reject) => {
        // HealthCheckRequest {}; HealthCheckResponse { status = 1 }
        client.makeUnaryRequest('/grpc.health.v1.Health/Check', bytes, bytes, Buffer.alloc(0), (error, answer) =>
          error ? reject(error) : resolve(answer?.at(-1)),
        );
      });
    const [serving, notServing] = [1, 2];
    expect(await check()).toBe(notServing);
    server.setServing(true);
    expect(await check()).toBe(serving);
    server.setServing(false);
    expect(await check()).toBe(notServing);
  });

  test('reflection lists exactly the services that are served', async () => {
    const server = await serve(async function* () {});
    const call = raw(server).makeBidiStreamRequest(
      '/grpc.reflection.v1.ServerReflection/ServerReflectionInfo',
      bytes,
      bytes,
    );
    call.write(Buffer.from([0x3a, 0x00])); // list_services
    call.end();
    const [answer] = (await call.toArray()) as Buffer[];
    expect(answer?.toString('latin1')).toContain('llavacode.v1.Decode');
    expect(answer?.toString('latin1')).not.toContain('llavacode.v1.Prefill');
  });
});

test('the Kv service uses the serialiser that it is given and leaves the generated definition unchanged', async () => {
  const generatedBefore = protocol.Kv.service.Pull.responseSerialize;
  const unused = unary(async () => ({}));
  const pull = streaming(async function* () {
    yield { rows: { start: 1 } };
  });
  const server = await serveRpc('127.0.0.1', 0, [
    mount.kv({ Pull: pull, Renew: unused, Release: unused }, (frame, generated) =>
      generated({ rows: { ...frame.rows, end: 7 } }),
    ),
  ]);
  cleanups.push(() => server.close(AbortSignal.abort()));
  const kv = connectKv(server.address);
  cleanups.push(() => kv.close());
  for await (const { rows } of kv.pull({}, NEVER)) expect(rows).toMatchObject({ start: 1, end: 7 });
  expect(protocol.Kv.service.Pull.responseSerialize).toBe(generatedBefore);
});

test('prefill and kv clients reach their services', async () => {
  const server = await serveRpc('127.0.0.1', 0, [
    mount.prefill({
      Prefill: streaming(async function* (request) {
        yield { first: { tokens: request.tokenIds.map((id) => ({ id })) } };
      }),
      Describe: unary(async () => ({ ...DESCRIPTION, role: 'prefill' })),
    }),
    mount.kv({
      Pull: streaming(async function* (request) {
        yield { end: { frames: request.leaseId.length } };
      }),
      Renew: unary(async () => ({})),
      Release: unary(async (request) => {
        if (request.leaseId === 'mine') return { readersLeft: 1 };
        throw new ServingError('lease_unknown', `no lease ${request.leaseId}`);
      }),
    }),
  ]);
  cleanups.push(() => server.close(AbortSignal.abort()));
  const prefill = connectPrefill(server.address);
  const kv = connectKv(server.address);
  cleanups.push(
    () => prefill.close(),
    () => kv.close(),
  );
  const [event] = await collect(prefill.prefill({ tokenIds: [4, 5] }, NEVER));
  expect(event?.first?.tokens.map(({ id }) => id)).toEqual([4, 5]);
  expect(await prefill.describe(NEVER)).toMatchObject({ role: 'prefill', slots: 3, queued: 0 });
  const [frame] = await collect(kv.pull({ leaseId: 'abc' }, NEVER));
  expect(frame?.end?.frames).toBe(3);
  await kv.release('mine', NEVER);
  await expect(kv.release('other', NEVER)).rejects.toMatchObject({ code: 'lease_unknown' });
});
