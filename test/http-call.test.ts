/** Requests over real sockets, to servers that close kept connections in the wrong moment. */
import { createServer, type RequestListener } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { expect, onTestFinished, test } from 'vitest';
import { type HttpCall, sendRequest } from '../services/http-call.ts';

/**
 * @param answer is given the number of the request, from 1 on.
 * @returns a way to send one, and the number of connections.
 */
async function start(answer: (nth: number, ...exchange: Parameters<RequestListener>) => void) {
  let [requests, connections] = [0, 0];
  const server = createServer((request, response) => answer(++requests, request, response));
  server.on('connection', () => connections++);
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
  const send = async (body: HttpCall['body'] = 'a body') => {
    const signal = AbortSignal.timeout(60_000);
    return text(await sendRequest({ method: 'POST', url, body, signal }));
  };
  return { send, seen: () => ({ requests, connections }) };
}

test('a request that finds its kept connection closed is sent again on a new one', async () => {
  const { send, seen } = await start(async (nth, request, response) => {
    const body = await text(request);
    if (nth === 2) request.socket.destroy();
    else response.end(`${nth}: ${body}`);
  });
  expect(await send()).toBe('1: a body');
  expect(await send()).toBe('3: a body');
  expect(seen()).toEqual({ requests: 3, connections: 2 });
});

test('a server that hangs up on a new connection is not asked again', async () => {
  const { send, seen } = await start((_, request) => request.socket.destroy());
  await expect(send()).rejects.toMatchObject({ code: 'ECONNRESET' });
  expect(seen()).toEqual({ requests: 1, connections: 1 });
});

test('neither a stream nor a request whose answer has begun is sent again', async () => {
  const { send, seen } = await start((nth, request, response) => {
    request.resume();
    if (nth === 1 || nth === 3) return void response.end('well');
    if (nth === 2) return void request.socket.destroy();
    response.write('the beginning', () => request.socket.destroy());
  });
  await send();
  await expect(send(Readable.from(['a body']))).rejects.toMatchObject({ code: 'ECONNRESET' });
  await send();
  await expect(send()).rejects.toThrow();
  expect(seen()).toEqual({ requests: 4, connections: 2 });
});
